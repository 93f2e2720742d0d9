"""Check that NaN is refused wherever it occurs in an attack, and never counted as broken."""

import pytest
import torch
from torch import nn

from tests.attacks.helpers import labelled, seeded, small_net
from vidrobust.attacks import (
    ATTACKS,
    Misclassify,
    ThreatModel,
    attack_step,
    parse_threat,
    pgd,
    worst_case,
)
from vidrobust.attacks.search import Search

STEPPED = {
    "pgd": {"steps": 20, "random_start": False},
    "mim": {"steps": 20},
    "apgd-ce": {"steps": 20},
    "fmn": {"steps": 20},
    "temporal-translation": {"steps": 5, "shift": 1},
}


class _BadBackward(nn.Module):
    """A model of finite logits whose gradient becomes NaN.

    It does once the first pixel has grown by 0.05, by the backward pass of a masked root.
    """

    def forward(self, x):
        f = x.flatten(1)
        room = 0.55 - f[:, 0]
        root = torch.where(room > 0, room.sqrt(), 0.0)
        return torch.stack([torch.ones_like(root), f.mean(1) + f[:, 0] - 0.7 + 0.0 * root], 1)


@pytest.mark.parametrize("threat", ["linf-0.1", "tube-linf-0.1", "l2-1"])
@pytest.mark.parametrize("name", STEPPED)
def test_a_gradient_that_becomes_nan_during_the_attack_is_refused(name, threat):
    x, y = torch.full((2, 3, 2, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)
    loss = Misclassify(_BadBackward(), y, "margin")
    # the losses alone do not show it
    assert torch.isfinite(loss(x)).all() and torch.isfinite(loss(x + 0.1)).all()
    with pytest.raises(
        ValueError, match="became NaN or infinite during the attack|is NaN or infinite"
    ):
        ATTACKS[name](loss, x, parse_threat(threat), generator=seeded(), **STEPPED[name])


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "square", "fab-t", "fgsm", "flicker"])
def test_nan_logits_of_a_class_that_no_score_uses_are_refused(name):
    """argmax treats NaN as the largest value; such a clip must not count as broken."""
    net = small_net(classes=5)
    x, y = labelled(net, (3, 3, 4, 12, 12))
    with torch.no_grad():
        start = net(x)

    def broken(v):
        logits = net(v)
        moved = (
            (logits.detach() - start[: len(logits)]).abs().amax(1, keepdim=True) > 1e-6
            if len(v) == 3
            else None
        )
        # a sixth class of very low logit, NaN once the clip has changed
        extra = torch.zeros(len(v), 1) - 1e3
        return torch.cat(
            [logits, extra if moved is None else torch.where(moved, torch.nan, extra)], 1
        )

    threat = parse_threat("flicker-linf-0.01" if name == "flicker" else "linf-0.01")
    options = {"queries": 100} if name == "square" else {}
    with pytest.raises(ValueError, match="NaN"):
        worst_case(broken, x, y, threat, [attack_step(name, **options)], generator=seeded())
    if name == "fab-t":  # its score uses two classes only
        with pytest.raises(ValueError, match="NaN"):
            ATTACKS[name](Misclassify(broken, y), x, threat, targets=1)


def test_the_cyclic_flicker_refuses_nan_too():
    x, calls = torch.full((2, 3, 4, 4, 4), 0.5), []

    def loss(v):
        calls.append(1)
        return v.flatten(1).sum(1) * (torch.nan if len(calls) > 4 else 1.0)

    with pytest.raises(ValueError, match="during the attack"):
        ATTACKS["flicker"](
            loss, x, parse_threat("flicker-linf-0.1"), steps=10, cyclic=True, generator=seeded()
        )


@pytest.mark.parametrize("nan_call", [2, 7, 20])
def test_a_loss_that_is_nan_once_is_refused(nan_call):
    x, calls = torch.full((2, 3, 4, 4, 4), 0.5), []

    def loss(v):
        calls.append(1)
        return v.flatten(1).sum(1) + (torch.nan if len(calls) == nan_call else 0.0)

    with pytest.raises(ValueError, match="NaN"):
        pgd(loss, x, ThreatModel("linf", 0.1), steps=20)


@pytest.mark.parametrize(
    "name",
    [
        "pgd",
        "mim",
        "apgd-ce",
        "fmn",
        "sparse",
        "frame-saliency",
        "one-frame",
        "roa",
        "salt-and-pepper",
        "temporal-translation",
    ],
)
def test_zero_steps_are_refused(name):
    threat = parse_threat(
        {"roa": "patch2-linf-1", "salt-and-pepper": "pixels2-linf-1"}.get(name, "linf-0.1")
    )
    with pytest.raises(ValueError, match="steps=0.*at least 1"):
        ATTACKS[name](lambda v: v.flatten(1).sum(1), torch.rand(1, 3, 2, 4, 4), threat, steps=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd", {"step_size": 0.0}),
        ("pgd", {"step_size": -0.1}),
        ("mim", {"step_size": 0.0}),
        ("cw", {"lr": 0.0}),
        ("cw", {"c": 0.0}),
        ("sparse", {"lr": -1.0}),
        ("temporal-translation", {"step_size": 0.0}),
    ],
)
def test_steps_of_length_zero_are_refused(name, options):
    """They would leave every clip unchanged, and every sample robust."""
    with pytest.raises(ValueError, match="must be greater than 0"):
        ATTACKS[name](
            lambda v: v.flatten(1).sum(1),
            torch.rand(1, 3, 2, 4, 4),
            ThreatModel("l2", 0.1),
            **options,
        )


@pytest.mark.parametrize("name", ["fgsm", "mim", "fmn"])
def test_an_attack_that_cannot_move_from_its_start_gives_a_warning(name):
    x = torch.rand(2, 3, 2, 4, 4)
    with pytest.warns(UserWarning, match="Begin at a random point"):
        ATTACKS[name](lambda v: (v - x).square().flatten(1).sum(1), x, ThreatModel("linf", 0.1))


def test_a_loss_that_detaches_its_input_is_refused():
    linear = nn.Linear(96, 3)
    x = torch.rand(2, 3, 2, 4, 4)
    for loss in (
        lambda v: linear(v.detach().flatten(1)).sum(1),
        lambda v: linear(v.flatten(1)).sum(1).detach(),
    ):
        with pytest.raises(ValueError, match="no gradient at x"):
            pgd(loss, x, ThreatModel())


def test_numpy_arrays_are_refused():
    with pytest.raises(TypeError, match="torch.from_numpy"):
        pgd(lambda v: v.sum(), torch.rand(1, 3, 2, 4, 4).numpy(), ThreatModel())


def test_saliency_is_taken_nearby_where_the_gradient_is_0():
    """A distance to x has no gradient at x; the point nearby is at most 0.01 away per pixel."""
    asked = []

    def distance(v):
        asked.append(v.detach())
        return (v - 0.5).square().flatten(1).sum(1)

    x = torch.full((2, 3, 4, 6, 6), 0.5)
    Search(distance, x, parse_threat("frames1-linf-0.1"), seeded()).begin()
    away = max(asked, key=lambda v: (v - x).abs().max()) - x
    assert away.max() == pytest.approx(0.01, abs=5e-4)
    assert away.min() == pytest.approx(-0.01, abs=5e-4)
    assert abs(away.mean()) < 1e-3
