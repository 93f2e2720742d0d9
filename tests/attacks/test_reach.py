"""Check which modules are found behind a callable, and which norms are in training mode."""

from functools import partial

import pytest
import torch
from torch import nn

from vidrobust.attacks import Passes, eot, reachable_modules
from vidrobust.attacks.reach import batch_norms_in_training

GLOBAL = nn.Linear(2, 2)


def _module():
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))


def _with_closure(net):
    return lambda x: net(x).float()


def _with_default(net):
    def predict(x, model=net):
        return model(x)

    return predict


class _Object:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)

    def logits(self, x):
        return self.net(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        _with_closure,
        _with_default,
        _Object,
        lambda net: _Object(net).logits,
        lambda net: net.forward,
        lambda net: partial(_with_closure(net)),
        Passes,
        lambda net: eot(_with_closure(net), 2),
    ],
)
def test_the_module_behind_a_callable_is_found(wrap):
    net = _module()
    assert reachable_modules(wrap(net)) == [net]


def test_a_module_that_is_named_as_a_global_is_found():
    assert reachable_modules(lambda x: GLOBAL(x)) == [GLOBAL]


def test_a_function_without_a_module_has_none():
    assert reachable_modules(lambda x: torch.zeros(len(x), 2)) == []


def test_norms_in_training_mode_are_named_and_those_in_eval_mode_are_not():
    # new modules are in training mode
    net = _module()
    assert batch_norms_in_training(_with_closure(net)) == ["BatchNorm1d"]
    assert batch_norms_in_training(_with_closure(net.eval())) == []
