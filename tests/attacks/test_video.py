"""Check attacks made for video, and properties that all attacks share."""

import pytest
import torch
from torch import nn

from tests.attacks.helpers import accuracy, labelled, loss_of, seeded, small_net
from vidrobust.attacks import (
    ATTACKS,
    SCORES,
    ThreatModel,
    contains,
    flicker,
    frame_saliency,
    measure,
    mim,
    one_frame,
    parse_threat,
    pgd,
    roa,
    salt_and_pepper,
    sparse,
    temporal_translation,
)


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    return (net, *labelled(net, (24, 3, 4, 12, 12)))


@pytest.fixture(scope="module")
def one_frame_counts():
    """Return a model, clips and labels: class 1 when frame 2 is bright, else 0.

    The other frames do not matter.
    """

    def predict(x):
        bright = 40 * (x[:, :, 2].flatten(1).mean(1) - 0.5)
        return torch.stack([-bright, bright], 1)

    x = torch.rand(6, 3, 5, 8, 8, generator=seeded()) * 0.04 + 0.45
    return predict, x, torch.zeros(6, dtype=torch.long)


DENSE = ThreatModel("linf", 6 / 255)


@pytest.mark.parametrize("mode", ["one_shot", "iterative", "refresh"])
def test_frame_saliency_changes_only_the_frame_that_matters(one_frame_counts, mode):
    predict, x, y = one_frame_counts
    threat = ThreatModel("linf", 0.1)
    x_adv = frame_saliency(loss_of(predict, y), x, threat, mode=mode, generator=seeded())
    assert contains(threat, x, x_adv).all() and (predict(x_adv).argmax(1) == 1).all()
    changed = (x_adv - x).abs().amax((1, 3, 4)) > 1e-6
    assert changed.tolist() == [[False, False, True, False, False]] * 6


@pytest.mark.parametrize("mode", ["one_shot", "iterative", "refresh"])
def test_frame_saliency_adds_frames_until_a_sample_is_broken(problem, mode):
    net, x, y = problem
    x_adv = frame_saliency(loss_of(net, y), x, DENSE, mode=mode, generator=seeded())
    used = ((x_adv - x).abs().amax((1, 3, 4)) > 1e-6).sum(1)
    wrong = net(x_adv).argmax(1) != y
    assert contains(DENSE, x, x_adv).all() and wrong.float().mean() > 0.5
    # at least as strong as one frame, and on average below all four
    one = pgd(
        loss_of(net, y), x, ThreatModel("linf", 6 / 255, "frames", 1), steps=10, generator=seeded()
    )
    assert wrong.sum() >= (net(one).argmax(1) != y).sum() and used[wrong].float().mean() < 4


def test_one_frame_finds_the_frame_that_saliency_misses():
    """The gradient of frame 0 is the largest but saturates; only frame 1 can cross the boundary."""

    def predict(x):
        first, second = (x[:, :, t].flatten(1).mean(1) - 0.5 for t in (0, 1))
        score = (20 * first).clamp(max=0.1) + 10 * second - 0.5
        return torch.stack([-score, score], 1)

    x, y = torch.full((2, 3, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)
    threat = ThreatModel("linf", 0.1)
    # the threat of one frame uses the most salient one, and fails
    salient = pgd(loss_of(predict, y), x, ThreatModel("linf", 0.1, "frames", 1), steps=20)
    assert (predict(salient).argmax(1) == 0).all()
    x_adv = one_frame(loss_of(predict, y), x, threat, generator=seeded())
    assert (predict(x_adv).argmax(1) == 1).all() and contains(
        ThreatModel("linf", 0.1, "frames", 1), x, x_adv
    ).all()


def test_temporal_translation_averages_gradients_over_shifts():
    """The model is linear, and its weights alternate in time; shifts average them."""
    weight = torch.tensor([1.0, -1.0] * 4).view(1, 1, 8, 1, 1) + 0.2
    x = torch.full((1, 3, 8, 2, 2), 0.5)
    loss = lambda v: (v * weight).flatten(1).sum(1)  # noqa: E731
    plain = temporal_translation(loss, x, ThreatModel("linf", 0.1), shift=0) - x
    shifted = temporal_translation(loss, x, ThreatModel("linf", 0.1), shift=7) - x
    assert (plain.sign()[0, 0, :, 0, 0] == weight.sign().flatten()).all()
    assert (shifted > 0).all()  # the mean of the weights is positive at every shift


def test_temporal_translation_of_an_image_is_mim(problem):
    net, x, y = problem

    def loss(v):
        logits = net(v.expand(-1, -1, 4, -1, -1))
        return nn.functional.cross_entropy(logits, y, reduction="none")

    image = x[:, :, :1]
    x_adv = temporal_translation(loss, image, DENSE)
    assert contains(DENSE, image, x_adv).all() and (loss(x_adv) > loss(image)).all()
    assert torch.allclose(loss(x_adv), loss(mim(loss, image, DENSE)), atol=1e-3)


def test_the_flicker_penalty_smooths_the_flicker_within_a_hard_budget(problem):
    net, x, y = problem
    threat = ThreatModel("linf", 20 / 255, "flicker")

    def rough(x_adv):
        line = (x_adv - x).mean((3, 4))
        return line.diff(dim=2).square().mean()

    loss = loss_of(net, y, score=SCORES["flicker_hinge"])
    mild, strict = (flicker(loss, x, threat, lam=lam, generator=seeded()) for lam in (0.0, 100.0))
    for x_adv in (mild, strict):
        assert contains(threat, x, x_adv).all()
    assert rough(strict) < 0.5 * rough(mild) and accuracy(net, mild, y) < 1


def test_a_cyclic_flicker_works_at_any_offset():
    """Only a perturbation that was computed with shifts breaks clips at most offsets."""
    net = small_net(frames=6, classes=2, seed=3)
    x, y = labelled(net, (16, 3, 6, 12, 12), seed=2)
    threat, loss = ThreatModel("linf", 60 / 255, "flicker"), loss_of(net, y, score=SCORES["ce"])

    def fraction_broken(x_adv):
        delta = (x_adv - x).mean((3, 4), keepdim=True)
        moved = torch.stack(
            [net((x + delta.roll(by, 2)).clamp(0, 1)).argmax(1) != y for by in range(6)]
        )
        return moved.float().mean()

    options = {"lam": 0.01, "steps": 150}
    fixed, cyclic = (
        flicker(loss, x, threat, cyclic=c, generator=seeded(), **options) for c in (False, True)
    )
    assert (
        contains(threat, x, cyclic).all() and fraction_broken(cyclic) > fraction_broken(fixed) + 0.1
    )


def test_sparse_changes_few_frames(one_frame_counts):
    predict, x, y = one_frame_counts
    threat = ThreatModel("linf", 0.2)
    x_adv = sparse(
        loss_of(predict, y, score=SCORES["escape"]),
        x,
        threat,
        lam=0.05,
        lr=0.01,
        generator=seeded(),
    )
    assert contains(threat, x, x_adv).all() and (predict(x_adv).argmax(1) == 1).all()
    # L2 norm of the change of each frame
    size = (x_adv - x).square().sum((1, 3, 4)).sqrt()
    assert (size[:, 2] > 10 * size[:, [0, 1, 3, 4]].amax(1)).all()
    masked = ThreatModel(
        "linf", 0.2, "frames", 2, "uniform"
    )  # the paper's temporal mask, which holds frame 3 and 1
    kept = sparse(loss_of(predict, y, score=SCORES["escape"]), x, masked, generator=seeded())
    assert contains(masked, x, kept).all() and (predict(kept).argmax(1) == 0).all()


@pytest.mark.parametrize("attack", [sparse, flicker])
def test_sparse_and_flicker_keep_the_broken_iterate_of_least_penalty(attack):
    """The kept iterate is just beyond the boundary, and not the first that crossed it."""

    def predict(x):
        score = 100 * (x.flatten(1).mean(1) - 0.52)
        return torch.stack([-score, score], 1)

    x, y = torch.full((2, 3, 4, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)
    threat = ThreatModel("linf", 0.3, "flicker" if attack is flicker else "dense")
    options = {"lam": 30.0 if attack is flicker else 0.1, "lr": 0.02, "steps": 200}
    x_adv = attack(
        loss_of(predict, y, score=SCORES["flicker_hinge"]), x, threat, generator=seeded(), **options
    )
    assert (predict(x_adv).argmax(1) == 1).all()
    assert ((x_adv - x).flatten(1).mean(1) < 0.03).all(), (x_adv - x).flatten(1).mean(1)


def test_roa_finds_the_place_that_matters():
    def predict(x):
        corner = 30 * (x[..., 6:9, 9:12].flatten(1).mean(1) - 0.2)
        return torch.stack([-corner, corner], 1)

    x, y = torch.full((3, 3, 2, 12, 12), 0.1), torch.zeros(3, dtype=torch.long)
    threat = ThreatModel("linf", 1.0, "patch", 3)
    x_adv = roa(loss_of(predict, y), x, threat, stride=3, steps=5)
    assert contains(threat, x, x_adv).all() and (predict(x_adv).argmax(1) == 1).all()
    # a given place is kept, also where it does no harm
    given = parse_threat("patch3@0+0-linf-1")
    x_adv_given = roa(loss_of(predict, y), x, given, steps=5)
    assert contains(given, x, x_adv_given).all() and (predict(x_adv_given).argmax(1) == 0).all()


def test_salt_and_pepper_paints_k_pixels_of_each_frame_black_or_white(problem):
    net, x, y = problem
    threat = ThreatModel("linf", 1.0, "pixels", 7)
    x_adv = salt_and_pepper(loss_of(net, y), x, threat)
    changed = ((x_adv - x).abs() > 1e-6).any(1)
    assert contains(threat, x, x_adv).all() and changed.flatten(2).sum(2).max() <= 7
    values = x_adv.movedim(1, -1)[changed]
    assert ((values < 1e-6) | (values > 1 - 1e-6)).all() and (
        values.amax(1) - values.amin(1) < 1e-6
    ).all()
    assert accuracy(net, x_adv, y) < 0.6


# attack -> a threat that it is defined for; linf-8/255 for the others
FOR = {
    "roa": "patch3-linf-1",
    "salt-and-pepper": "pixels5-linf-1",
    "flicker": "flicker-linf-20/255",
    "cw": "l2-0.5",
}
# attack -> options that make it fast
FAST = {
    "square": {"queries": 60},
    "nes": {"queries": 200},
    "geo-trap": {"queries": 60},
    "sparse": {"steps": 20},
    "apgd-ce": {"steps": 10},
    "apgd-dlr": {"steps": 10},
    "apgd-t": {"steps": 5},
    "fab": {"steps": 10},
    "fab-t": {"steps": 5},
    "cw": {"steps": 20, "searches": 3},
    "fmn": {"steps": 20},
}


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_obeys_its_threat_raises_the_loss_and_leaves_the_model_alone(name, frames):
    net = small_net(frames=frames).train()  # modes and flags belong to the caller
    x, y = labelled(net, (8, 3, frames, 12, 12))
    threat = parse_threat(FOR.get(name, "linf-8/255"))
    loss = loss_of(net, y, score=SCORES["margin"])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    # twice with equal generators
    runs = [
        ATTACKS[name](loss, x, threat, generator=seeded(7), **FAST.get(name, {})) for _ in range(2)
    ]
    assert torch.equal(*runs), "the same generator gives the same clips"
    x_adv = runs[0]
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad
    assert contains(threat, x, x_adv).all()
    assert (loss(x_adv) >= loss(x) - 1e-5).all() and loss(x_adv).mean() > loss(x).mean()
    assert net.training and not any(p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_leaves_a_clip_alone_at_eps_0_and_works_in_bf16(name):
    net = small_net()
    x, y = labelled(net, (4, 3, 4, 12, 12))
    threat = parse_threat(FOR.get(name, "linf-8/255"))
    nothing = ThreatModel(threat.norm, 0.0, threat.support, threat.k)
    options = FAST.get(name, {})
    assert torch.equal(
        ATTACKS[name](loss_of(net, y, score="margin"), x, nothing, generator=seeded(), **options), x
    )
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = ATTACKS[name](
            loss_of(net, y, score=SCORES["margin"]), x, threat, generator=seeded(), **options
        )
    assert x_adv.dtype == torch.float32 and contains(threat, x, x_adv).all()


@pytest.mark.parametrize(
    ("attack", "threat", "message"),
    [
        (frame_saliency, "tube-linf-0.1", "defined for support dense"),
        (one_frame, "frames1-linf-0.1", "frame itself, is defined for support dense"),
        (flicker, "linf-0.1", "threat=linf-0.1: .* defined for support flicker"),
        (roa, "linf-1", "defined for norm linf and support patch"),
        (roa, "patch2-l2-1", "defined for norm linf and support patch"),
        (salt_and_pepper, "linf-1", "defined for norm linf and support pixels"),
        (salt_and_pepper, "pixels200-linf-1", "200 pixels of frames"),
        (ATTACKS["cw"], "linf-0.1", "defined for norm l2"),
        (ATTACKS["fab"], "l2_frame-0.1", "defined for norms linf, l2, l1"),
        (ATTACKS["fab-t"], "l2_frame-0.1", "threat=l2_frame-0.1: FAB is defined"),
    ],
)
def test_threats_that_an_attack_is_not_defined_for_are_refused(problem, attack, threat, message):
    net, x, y = problem
    with pytest.raises(ValueError, match=message):
        attack(loss_of(net, y), x, parse_threat(threat))


def test_the_dense_threat_includes_all_other_supports(problem):
    """So the worst case of the dense threat is no better for the defender."""
    net, x, y = problem
    dense = ThreatModel("linf", 4 / 255)
    worst = accuracy(net, pgd(loss_of(net, y), x, dense, steps=30, generator=seeded()), y)
    for support, k in (
        ("flicker", 0),
        ("tube", 0),
        ("frames", 2),
        ("patch", 5),
        ("border", 2),
        ("pixels", 9),
    ):
        part = ThreatModel("linf", 4 / 255, support, k)
        x_adv = pgd(loss_of(net, y), x, part, steps=30, generator=seeded())
        assert contains(dense, x, x_adv).all() and contains(part, x, x_adv).all()
        assert (
            accuracy(net, x_adv, y) >= worst and (measure(part, x, x_adv) <= 4 / 255 + 1e-6).all()
        )


def test_the_penalty_of_a_cyclic_flicker_includes_the_difference_around_the_end():
    """Compare with Adam by hand, on a loss whose gradient is the same at every offset."""
    threat, frames, steps = parse_threat("flicker-linf-0.5"), 5, 12
    x = torch.full((1, 3, frames, 2, 2), 0.5, dtype=torch.float64)
    slope = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)

    def loss(v):
        return (v.mean((3, 4)).sum(2) * slope).sum(1)

    def run(steps, lr):
        adv = flicker(loss, x, threat, steps=steps, lam=7.0, lr=lr, cyclic=True, generator=seeded())
        return (adv - x)[0, :, :, 0, 0]

    delta = run(1, 1e-12)  # the start
    first, second = torch.zeros_like(delta), torch.zeros_like(delta)
    for step in range(1, steps + 1):
        # the gradient of the three squared parts, entry by entry
        rough = torch.zeros_like(delta)
        for c in range(3):
            for t in range(frames):
                before, current, after = delta[c, t - 1], delta[c, t], delta[c, (t + 1) % frames]
                rough[c, t] += current
                rough[c, t] += current - before
                rough[c, t - 1] -= current - before
                bend = after - 2 * current + before
                rough[c, (t + 1) % frames] += bend
                rough[c, t] -= 2 * bend
                rough[c, t - 1] += bend
        gradient = 7.0 * 0.5 * 2 * rough / (3 * frames) - slope[:, None]
        # Adam with torch's defaults
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9**step), second / (1 - 0.999**step)
        delta = delta - 0.01 * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    assert torch.allclose(run(steps, 0.01), delta, atol=1e-9)
