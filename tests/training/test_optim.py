import math

import pytest
import torch
from torch import nn

from vidrobust.config import OptimConfig
from vidrobust.training.optim import LARS, OPTIMIZERS, build_optimizer, learning_rate, set_rate
from vidrobust.utils.errors import UserError


def test_the_rate_climbs_then_falls_and_is_a_function_of_the_step():
    cfg = OptimConfig(lr=2.0, warmup=0.1)
    rates = [learning_rate(step, 100, cfg) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(1.0) and 0 < rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_constant_schedule_and_no_warmup():
    cfg = OptimConfig(lr=0.3, schedule="constant", warmup=0.0)
    assert {learning_rate(step, 7, cfg) for step in range(7)} == {0.3}
    with pytest.raises(
        UserError, match="optim.schedule: unknown name 'cosin'; did you mean 'cosine'"
    ):
        learning_rate(0, 10, OptimConfig(schedule="cosin"))


def test_steps_fall_at_their_milestones_and_a_triangle_is_linear():
    cfg = OptimConfig(lr=1.0, schedule="step", milestones=[0.4, 0.8], gamma=0.1, warmup=0.0)
    rates = [learning_rate(step, 10, cfg) for step in range(10)]
    assert rates == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 2)
    triangle = OptimConfig(lr=2.0, schedule="linear", warmup=0.5)
    rates = [learning_rate(step, 8, triangle) for step in range(8)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5])


def test_a_head_trained_alone_has_its_own_rate_and_the_schedule_begins_behind_it():
    cfg = OptimConfig(lr=1.0, head_lr=0.01, schedule="step", milestones=[0.5], warmup=0.0)
    rates = [learning_rate(step, 14, cfg, 2 / 7) for step in range(14)]
    assert rates == pytest.approx([0.01] * 4 + [1.0] * 5 + [0.1] * 5)
    assert learning_rate(0, 14, OptimConfig(lr=1.0, warmup=0.0), 2 / 7) == 1.0, "no rate of its own"


def test_norms_may_decay_and_be_adapted_and_a_predictors_rate_may_stay():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    _, rest = build_optimizer(
        net, OptimConfig(name="lars", weight_decay=0.5, decay_norms=True)
    ).param_groups
    assert rest["weight_decay"] == 0.5 and rest["adapt"] is False
    _, rest = build_optimizer(net, OptimConfig(name="lars", lars_exclude=False)).param_groups
    assert rest["weight_decay"] == 0 and rest["adapt"] is True
    method = nn.ModuleDict({"model": net, "predictor": nn.Linear(4, 4)})
    optimizer = build_optimizer(method, OptimConfig(name="sgd", lr=0.3, fix_predictor=True))
    set_rate(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in net.parameters()} == {0.1}
    assert {rates[id(p)] for p in method["predictor"].parameters()} == {0.3}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_biases_do_not_decay_and_weights_do(name):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = build_optimizer(net, OptimConfig(name=name, weight_decay=0.5, lr=1.0))
    decayed, rest = optimizer.param_groups
    assert decayed["weight_decay"] == 0.5 and rest["weight_decay"] == 0
    assert [p.ndim for p in decayed["params"]] == [2, 2] and len(rest["params"]) == 4
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for old, new in zip(before, net.parameters(), strict=True):
        assert (new.norm() < old.norm()) if new.ndim == 2 else torch.equal(old, new)


def test_lars_is_its_formula():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    b = nn.Parameter(torch.tensor([2.0]))
    groups = [
        {"params": [w], "weight_decay": 0.1},
        {"params": [b], "weight_decay": 0.0, "adapt": False},
    ]
    optimizer = LARS(groups, lr=0.5, momentum=0.9, trust=0.01)
    expected, velocity = w.detach().clone(), torch.zeros(1, 2)
    plain, moved = 2.0, 0.0
    for gradient in ([[0.6, 0.8]], [[0.0, 2.0]]):
        g = torch.tensor(gradient)
        w.grad, b.grad = g.clone(), torch.tensor([1.0])
        optimizer.step()
        ratio = 0.01 * expected.norm() / (g.norm() + 0.1 * expected.norm())
        velocity = 0.9 * velocity + ratio * (g + 0.1 * expected)
        expected = expected - 0.5 * velocity
        moved = 0.9 * moved + 1.0
        plain -= 0.5 * moved
        assert torch.allclose(w, expected) and math.isclose(b.item(), plain, rel_tol=1e-6)


def test_lars_moves_weights_that_start_at_zero():
    w = nn.Parameter(torch.zeros(2, 2))
    w.grad = torch.ones(2, 2)
    LARS([w], lr=1.0, momentum=0.0).step()
    assert torch.equal(w, -torch.ones(2, 2))


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UserError, match="optim.name: unknown name 'sdg'; did you mean 'sgd'"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(name="sdg"))
