"""Check one perturbation for a whole data set."""

import pytest
import torch
from torch.nn import functional as F

from tests.attacks.helpers import labelled, small_net
from vidrobust.attacks import ThreatModel, apply_universal, contains, universal


def _problem():
    net = small_net(frames=6, classes=3)
    net[-1].weight.mul_(10)
    x, y = labelled(net, (40, 3, 6, 12, 12))
    return net, x, y, lambda v, t: F.cross_entropy(net(v), t, reduction="none")


def _batches(x, y):
    return list(zip(x.split(10), y.split(10), strict=True))


@pytest.mark.parametrize("support", ["dense", "tube", "flicker"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_delta_breaks_clips_that_it_was_not_computed_from(norm, support):
    net, x, y, loss = _problem()
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 3.0}[norm], support)
    # computed from the first 30 clips, and tested on the others
    delta = universal(loss, _batches(x[:30], y[:30]), threat, epochs=10)
    shape = {"dense": (1, 3, 6, 12, 12), "tube": (1, 3, 1, 12, 12), "flicker": (1, 3, 6, 1, 1)}[
        support
    ]
    unseen = apply_universal(delta, x[30:])
    assert delta.shape == shape and contains(threat, x[30:], unseen).all()
    assert loss(unseen, y[30:]).mean() > loss(x[30:], y[30:]).mean() + (
        0.02 if support == "flicker" else 0.2
    )
    if support != "flicker":
        assert (net(unseen).argmax(1) != y[30:]).float().mean() > 0.3


def test_a_delta_computed_with_shifts_works_from_any_frame_on():
    _, x, y, loss = _problem()
    threat = ThreatModel("linf", 0.05)
    fixed, shifting = (
        universal(
            loss,
            _batches(x, y),
            threat,
            epochs=20,
            shift=shift,
            generator=torch.Generator().manual_seed(0),
        )
        for shift in (False, True)
    )

    # the mean loss at the least harmful shift
    def worst(delta):
        return min(float(loss(apply_universal(delta, x, by), y).mean()) for by in range(6))

    assert worst(shifting) > worst(fixed)


def test_other_supports_and_bad_batches_are_refused():
    _, x, y, loss = _problem()
    with pytest.raises(ValueError, match="defined for supports dense, tube, flicker"):
        universal(loss, _batches(x, y), ThreatModel("linf", 0.1, "frames", 1))
    with pytest.raises(ValueError, match="batches is empty"):
        universal(loss, [], ThreatModel())
    with pytest.raises(ValueError, match="attack before normalisation|divide by 255"):
        universal(loss, _batches(x * 255, y), ThreatModel())
    with pytest.raises(ValueError, match="empty after one epoch"):
        universal(loss, iter(_batches(x, y)), ThreatModel())


def test_the_gradient_is_rolled_back_to_where_delta_is():
    """With a loss of the first frame only, shifting moves every part of delta."""
    x, y = torch.full((2, 3, 4, 2, 2), 0.5), torch.zeros(2)
    generator = torch.Generator().manual_seed(0)
    delta = universal(
        lambda v, _: v[:, :, 0].flatten(1).sum(1),
        [(x, y)],
        ThreatModel("linf", 0.1),
        epochs=80,
        shift=True,
        generator=generator,
    )
    assert torch.allclose(delta, torch.full_like(delta, 0.1))


def test_a_clipped_pixel_does_not_count_in_the_gradient():
    """Two frames share a delta; one frame is black, where a darker delta changes nothing."""
    x = torch.full((1, 1, 2, 1, 1), 0.5)
    x[:, :, 0] = 0
    threat = ThreatModel("linf", 0.1, "tube")

    def loss(v, t):
        return -3 * v[:, 0, 0, 0, 0] + v[:, 0, 1, 0, 0]

    y = torch.zeros(1, dtype=torch.long)
    once, twice = (universal(loss, [(x, y)], threat, epochs=n, step_size=0.02) for n in (1, 2))
    assert torch.allclose(once, torch.tensor(-0.02)), "at 0 both count, and the black one more"
    assert torch.allclose(twice, torch.tensor(0.0), atol=1e-6), "below 0 the other decides"
    white = universal(
        lambda v, t: -loss(1 - v, t) * -1, [(1 - x, y)], threat, epochs=2, step_size=0.02
    )
    assert torch.allclose(white, torch.tensor(0.0), atol=1e-6)


def test_random_frames_come_from_a_generator_of_another_device_than_the_default():
    _, x, y, loss = _problem()
    generator = torch.Generator("cpu").manual_seed(0)
    # stands for a generator of a GPU, with the CPU as default
    with torch.device("meta"):
        delta = universal(
            loss,
            [(x[:4], y[:4])],
            ThreatModel("linf", 0.05),
            epochs=1,
            shift=True,
            generator=generator,
        )
    assert delta.device == x.device
