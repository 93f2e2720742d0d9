"""Every adversary with every method that takes it, as it is configured: its attack is led by a
gradient and moves every clip; without it the clean objective is left.
"""

import contextlib
import dataclasses

import pytest
import torch

from vidrobust import config
from vidrobust.benchmarks.steps import configured
from vidrobust.methods import ADVERSARIES, METHODS, Adversary
from vidrobust.training.pass_counter import PassCounter

SMALL = [
    "model.backbone=r2plus1d_10",
    "model.width=4",
    "data.size=16",
    "model.hidden=64",
    "model.dim=8",
    "method.predictor=64",
    "method.queue=8",
    "method.adversary.clusters=[2]",
    "train.batch_size=4",
]
PAIRS = [
    (method, name, words)
    for method, spec in METHODS.items()
    for name in spec.adversaries
    for words in (
        [],
        *([["pairing=a2a"], ["pairing=a2s"], ["sir=0.5", "air=0.5"]] if name == "acl" else []),
        *([["faithful=true"]] if name == "clae" and method != "moco" else []),
    )
]


def made(method, words):
    """With the weights of the seed."""
    torch.manual_seed(0)
    cfg = config.loads("", [*SMALL, f"method.name={method}", *words])
    return configured(cfg, method, cfg.method.adversary.name, torch.device("cpu"))


def taken(method, frames, negatives=0):
    torch.manual_seed(1)
    views = torch.rand(4, method.views + negatives, 3, frames, 16, 16)
    return method(views, torch.arange(4), torch.arange(4) % 3)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(("method", "name", "words"), PAIRS)
def test_the_attack_is_led_by_a_gradient_and_moves_every_clip(
    method, name, words, frames, monkeypatch
):
    told = []
    monkeypatch.setattr(
        Adversary,
        "warn_without_effect",
        lambda self, threat, x, x_adv, norm: told.append((x, x_adv, float(norm))),
    )
    net = made(
        method, [f"method.adversary.name={name}", *(f"method.adversary.{word}" for word in words)]
    )
    loss = taken(net, frames)["loss"]
    loss.mean().backward()
    assert loss.shape == (4,) and torch.isfinite(loss).all()
    assert len(told) == (2 if name == "advcl" else 1)
    for x, x_adv, norm in told:
        assert norm > 0 and all(not torch.equal(a, b) for a, b in zip(x, x_adv, strict=True))


@pytest.mark.parametrize(("method", "name", "words"), PAIRS)
def test_views_can_be_recorded_without_a_change_of_the_loss(method, name, words):
    options = [f"method.adversary.name={name}", *(f"method.adversary.{word}" for word in words)]
    plain = taken(made(method, options), 2)["loss"]
    net = made(method, options)
    adversaries = [module for module in net.modules() if isinstance(module, Adversary)]
    with contextlib.ExitStack() as stack:
        recorded = [stack.enter_context(each.recording(2)) for each in adversaries]
        assert torch.equal(taken(net, 2)["loss"], plain)
    views = [each for one in recorded for each in one]
    assert views
    for each in views:
        assert each.x.shape == each.x_adv.shape == (2, 3, 2, 16, 16)
        assert not torch.equal(each.x, each.x_adv)
    taken(net, 2)
    assert sum(len(one) for one in recorded) == len(views)  # nothing is kept afterwards


@pytest.mark.parametrize(("method", "name", "words"), PAIRS)
def test_without_an_adversary_its_options_leave_the_clean_objective_to_the_last_bit(
    method, name, words
):
    """Weights, loss, gradients and buffers."""
    found = []
    for options in (
        [],
        [
            f"method.adversary.{word}"
            for word in (*words, "alpha=0.3", "steps=3", "schedule=linear")
        ],
    ):
        net = made(method, options)
        loss = taken(net, 2)["loss"]
        loss.mean().backward()
        found.append(
            (loss, {k: p.grad for k, p in net.named_parameters()}, dict(net.named_buffers()))
        )
    (a, grads, buffers), (b, others, theirs) = found
    assert torch.equal(a, b) and grads.keys() == others.keys() and buffers.keys() == theirs.keys()
    assert all(
        (g is None and others[k] is None) or torch.equal(g, others[k]) for k, g in grads.items()
    )
    assert all(torch.equal(value, theirs[k]) for k, value in buffers.items())


@pytest.mark.parametrize("method", ["simclr", "supcon", "moco", "plain", "uel"])
def test_with_weight_0_the_attack_is_made_and_the_clean_loss_is_left(method):
    words = ["method.adversary.name=clae", "method.adversary.alpha=0"]
    with_attack = taken(made(method, words), 2)["loss"]
    net = made(method, words)
    net.adversary = None
    assert torch.equal(with_attack, taken(net, 2)["loss"])


def test_the_pairs_are_all_there_are():
    assert {name for _, name, _ in PAIRS} == ADVERSARIES.keys() and len(PAIRS) > 20
    assert dataclasses.fields(config.AdversaryConfig)[0].default == "none"


@pytest.mark.parametrize(
    ("method", "name", "words"),
    [*PAIRS, *((method, "none", []) for method in METHODS)],
)
def test_a_step_makes_the_passes_that_its_entry_names(method, name, words):
    """docs/methods.md has them, and the benchmark's floor."""
    if name == "none":
        cost, steps = METHODS[method].cost, 0
    else:
        spec = ADVERSARIES[name]
        variants = {"sir=0.5 air=0.5": None} | dict(spec.variants)
        cost = variants[" ".join(words)] if words else spec.cost(method)
        steps = spec.steps
    if cost is None:
        pytest.skip("not in the table: AIR is dynacl's row")
    net = made(method, [f"method.adversary.name={name}", *(f"method.adversary.{w}" for w in words)])
    counter = PassCounter(net)
    for _ in range(net.replays):
        taken(net, 1)["loss"].mean().backward()
    forward, backward, _ = cost.passes(steps)
    assert counter.take() == (4 * forward, 4 * backward)  # of four videos
