"""Check attacks on features, which use no labels."""

import pytest
import torch
from torch import nn

from tests.attacks.helpers import small_net
from vidrobust.attacks import (
    ThreatModel,
    contains,
    impersonate,
    own_loss,
    parse_threat,
    pgd,
    pull_toward,
    push_away,
)
from vidrobust.methods import nt_xent


@pytest.fixture(scope="module")
def encode():
    return small_net(classes=16)


@pytest.fixture(scope="module")
def clips():
    torch.manual_seed(0)
    return torch.rand(10, 3, 4, 12, 12), torch.rand(10, 3, 4, 12, 12)


THREAT = ThreatModel("linf", 0.05)


def test_features_are_pushed_away_and_pulled_toward_a_target(encode, clips):
    x, target = clips
    away = pgd(push_away(encode, x), x, THREAT, steps=20)
    near = pgd(pull_toward(encode, target), x, THREAT, steps=20)
    distance = lambda a, b: (encode(a) - encode(b)).norm(dim=1)  # noqa: E731
    assert contains(THREAT, x, away).all() and contains(THREAT, x, near).all()
    # random noise of the same size moves the features much less
    noise = (x + 0.1 * torch.rand_like(x) - 0.05).clamp(0, 1)
    assert (distance(away, x) > 3 * distance(noise, x)).all()
    assert (distance(near, target) < distance(x, target)).all() and (
        distance(near, target) < distance(away, target)
    ).all()


def test_the_loss_is_the_squared_distance_and_needs_a_random_start(encode, clips):
    x, target = clips
    assert torch.allclose(
        push_away(encode, x)(target), (encode(target) - encode(x)).square().sum(1), rtol=1e-5
    )
    assert torch.allclose(
        pull_toward(encode, target)(x), -(encode(target) - encode(x)).square().sum(1), rtol=1e-5
    )
    # without a random start the gradient is 0, and nothing moves
    stuck = pgd(push_away(encode, x), x, THREAT, random_start=False)
    assert torch.equal(stuck, x)


def test_the_models_own_loss_is_raised(encode, clips):
    x, other = clips

    def pair_loss(a, b):
        ids = torch.arange(len(a)).repeat(2)
        return nt_xent(torch.cat([a, b]), ids, 0.5).view(2, -1).mean(0)

    loss = own_loss(encode, pair_loss, other)
    x_adv = pgd(loss, x, THREAT, steps=10)
    assert contains(THREAT, x, x_adv).all() and loss(x_adv).mean() > loss(x).mean() + 0.05


def test_impersonation_succeeds_where_the_probe_predicts_the_target_class(encode, clips):
    x, target = clips
    torch.manual_seed(1)
    probe = nn.Linear(16, 3)
    large = ThreatModel("linf", 0.3)
    x_adv, success = impersonate(encode, probe, x, target, large)
    assert contains(large, x, x_adv).all()
    assert (
        success.tolist()
        == (probe(encode(x_adv)).argmax(1) == probe(encode(target)).argmax(1)).tolist()
    )
    # some clips look like their target to the probe already
    _, without = impersonate(encode, probe, x, target, ThreatModel("linf", 0.0))
    assert success.sum() > without.sum()


@pytest.mark.parametrize("name", ["frames1-linf-0.1", "patch4-linf-0.1", "pixels5-linf-0.1"])
def test_places_are_chosen_although_the_gradient_at_the_clip_is_0(encode, clips, name):
    x, threat = clips[0], parse_threat(name)
    x_adv = pgd(
        push_away(encode, x), x, threat, steps=10, generator=torch.Generator().manual_seed(0)
    )
    assert contains(threat, x, x_adv).all()
    # the first changed value of each sample
    places = [
        tuple(((a - b).abs() > 1e-6).nonzero()[0].tolist()) for a, b in zip(x_adv, x, strict=True)
    ]
    if threat.support == "frames":
        assert {place[1] for place in places} <= {
            1,
            2,
        }  # the middle frames, which more weights of the network use
    else:
        assert len(set(places)) > 2  # each sample has its own
