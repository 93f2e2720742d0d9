"""Check AutoAttack and the worst case of several attacks."""

import warnings

import pytest
import torch
from torch import nn

from tests.attacks.helpers import accuracy, labelled, seeded, small_net
from vidrobust.attacks import (
    Misclassify,
    Step,
    ThreatModel,
    apgd,
    attack_step,
    autoattack,
    contains,
    eot,
    pgd,
    rounded,
    suite_steps,
    worst_case,
)


@pytest.fixture(scope="module")
def problem():
    net = small_net()
    return (net, *labelled(net, (16, 3, 4, 12, 12)))


THREAT = ThreatModel("linf", 2 / 255)


def test_each_attack_receives_only_what_the_ones_before_it_left(problem):
    net, x, y = problem
    batch_sizes = {}

    def spy(name):
        def attack(loss, clips, threat, generator=None):
            batch_sizes[name] = len(clips)
            return pgd(loss, clips, threat, steps=2, generator=generator)

        return Step(name, attack)

    y = torch.cat([(y[:2] + 1) % 6, y[2:]])  # two are wrong without any attack
    # small enough that some samples are left for each attack
    small = ThreatModel("linf", 0.3 / 255)
    outcome = worst_case(net, x, y, small, [spy("a"), spy("b"), spy("c")], generator=seeded())
    assert outcome.broken_by[:2] == ["clean", "clean"] and torch.equal(outcome.x_adv[:2], x[:2])
    broken = {name: outcome.broken_by.count(name) for name in "abc"}
    assert batch_sizes == {"a": 14, "b": 14 - broken["a"], "c": 14 - broken["a"] - broken["b"]}
    assert 14 > broken["a"] > 0 and sum(outcome.robust) == 14 - sum(broken.values())
    # the outcome agrees with the clips that it returns
    wrong = net(outcome.x_adv).argmax(1) != y
    assert wrong.tolist() == [by is not None for by in outcome.broken_by]


def test_clips_outside_the_budget_are_discarded_and_counted(problem):
    net, x, y = problem

    def cheat(loss, clips, threat, generator=None):
        return pgd(loss, clips, ThreatModel("linf", 0.5), steps=5)

    outcome = worst_case(net, x, y, THREAT, [Step("cheat", cheat)])
    assert (
        outcome.rejected == {"cheat": 16} and all(outcome.robust) and torch.equal(outcome.x_adv, x)
    )


def test_an_attack_that_changes_nothing_breaks_nothing(problem):
    """The suite classifies every clip itself."""
    net, x, y = problem
    outcome = worst_case(
        net, x, y, THREAT, [Step("idle", lambda loss, clips, threat, generator=None: clips)]
    )
    assert all(outcome.robust)


def test_passes_are_counted_in_clips(problem):
    net, x, y = problem
    calls = []

    def spied(v):
        calls.append(len(v))
        return net(v)

    outcome = worst_case(
        spied,
        x,
        y,
        ThreatModel("linf", 1e-6),
        [attack_step("pgd", steps=3), attack_step("square", queries=5)],
    )
    left = 16 - outcome.broken_by.count("pgd")
    assert outcome.passes == {"pgd": (64, 48), "square": (6 * left, 0)}
    assert sum(calls) == 16 + 64 + 16 + 6 * left + left  # clean, PGD, verified, Square, verified


def test_rounded_clips_are_attacked_until_they_are_broken_too(problem):
    net, x, y = problem
    # uint8 clips, so that a budget of 1/255 survives rounding
    x = (x * 255).round() / 255
    y = net(x).argmax(1)
    steps = [attack_step("pgd", steps=20), attack_step("apgd-t", steps=30)]
    outcome = worst_case(
        net, x, y, ThreatModel("linf", 1 / 255), steps, rounding=True, generator=seeded()
    )
    x_rounded = rounded(outcome.x_rounded, x)
    after = net(x_rounded).argmax(1) != y
    assert contains(ThreatModel("linf", 1 / 255), x, x_rounded).all()
    assert after.tolist() == [by is not None for by in outcome.rounded_by] and after.any()
    assert contains(ThreatModel("linf", 1 / 255), x, outcome.x_rounded).all()


@pytest.mark.parametrize("name", ["linf", "l2", "l1", "l2_frame"])
def test_the_versions_have_the_documented_attacks(name):
    threat = ThreatModel(name, 0.1)
    names = {
        v: [s.name for s in suite_steps(v, threat, 8, 10)]
        for v in ("standard", "plus", "rand", "video")
    }
    # FAB is not defined for l2_frame
    fab = [] if name == "l2_frame" else ["fab-t"]
    assert names["standard"] == ["apgd-ce", "apgd-t", *fab, "square"]
    assert names["plus"] == [
        "apgd-ce",
        "apgd-dlr",
        *(["fab"] if fab else []),
        "square",
        "apgd-t",
        *fab,
    ]
    assert names["rand"] == ["apgd-ce", "apgd-dlr"]
    assert names["video"] == [
        *names["standard"],
        "apgd-flicker",
        "apgd-tube",
        "apgd-frames2",
        "apgd-frames1",
    ]
    assert [s.name for s in suite_steps("video", threat, 1, 10)] == names["standard"]  # an image
    short = [
        s.name for s in suite_steps("video", threat, 3, 10)
    ]  # a quarter of three frames is none
    assert short == [*names["standard"], "apgd-flicker", "apgd-tube", "apgd-frames1"]
    tube = ThreatModel(name, 0.1, "tube")
    assert [s.name for s in suite_steps("video", tube, 8, 10)] == names["standard"]
    assert "apgd-dlr" not in [s.name for s in suite_steps("rand", threat, 8, 2)]
    with pytest.raises(ValueError, match="standard, plus, rand, video"):
        suite_steps("fast", threat, 8, 10)


@pytest.mark.parametrize("support", ["dense", "tube", "flicker", "frames"])
@pytest.mark.parametrize("frames", [1, 4])
def test_autoattack_is_at_least_as_strong_as_each_of_its_attacks(support, frames):
    net = small_net(frames=frames, classes=5)
    x, y = labelled(net, (12, 3, frames, 12, 12))
    threat = ThreatModel("linf", 3 / 255, support, 1 if support == "frames" else 0)
    steps = suite_steps("video", threat, frames, 5, effort=0.1)
    outcome = worst_case(net, x, y, threat, steps, generator=seeded())
    assert contains(threat, x, outcome.x_adv).all() and not outcome.rejected
    alone = min(accuracy(net, step(net, x, y, threat, False, seeded()), y) for step in steps)
    assert accuracy(net, outcome.x_adv, y) <= alone


def test_autoattack_on_a_robust_model_has_the_documented_cost_and_breaks_nothing():
    net = nn.Sequential(nn.Flatten(1), nn.Linear(3 * 2 * 16, 3)).eval().requires_grad_(False)
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
        net[1].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    x, y, calls = torch.rand(3, 3, 2, 4, 4), torch.zeros(3, dtype=torch.long), []

    def spied(v):
        calls.append(len(v))
        return net(v)

    x_adv = autoattack(spied, x, y, ThreatModel("linf", 8 / 255), checks=0, generator=seeded())
    assert (
        contains(ThreatModel("linf", 8 / 255), x, x_adv).all() and (net(x_adv).argmax(1) == 0).all()
    )
    # with three classes there are two targets
    apgd_passes, targets = 101, 2
    expected = apgd_passes + (1 + targets * apgd_passes) + (1 + targets * 200) + 5001
    assert sum(calls) == 1 + 3 * (1 + expected + 4)  # classes, clean, the attacks, each verified


@pytest.mark.parametrize("classes", [2, 3])
def test_models_of_few_classes_are_attacked_without_dlr(classes):
    net = small_net(classes=classes)
    x, y = labelled(net, (8, 3, 4, 12, 12))
    outcome = worst_case(
        net, x, y, THREAT, suite_steps("plus", THREAT, 4, classes, effort=0.1), generator=seeded()
    )
    assert not all(outcome.robust)
    with pytest.raises(
        ValueError, match="DLR needs 3 classes" if classes == 2 else "targeted DLR needs 4"
    ):
        if classes == 2:
            attack_step("apgd-dlr", steps=2)(net, x, y, THREAT, False, None)
        else:
            from vidrobust.attacks import Misclassify, dlr_toward

            apgd(Misclassify(net, y, dlr_toward((y + 1) % 3)), x, THREAT, steps=2)


def test_eot_averages_over_draws_of_a_random_model():
    torch.manual_seed(0)
    net = small_net()
    x, y = labelled(net, (8, 3, 4, 12, 12))

    def noisy(v):
        return net(v) + 3 * torch.randn(len(v), 6)

    # 30 passes reduce the deviation by a factor of about 5
    spread = torch.stack([noisy(x).log_softmax(1) for _ in range(20)]).std(0).mean()
    assert torch.stack([eot(noisy, 30)(x) for _ in range(20)]).std(0).mean() < spread / 4
    drawn = []

    def darker(v):
        drawn.append(1)
        return v * 0.5

    assert (
        torch.allclose(eot(net, 3, darker)(x), net(x * 0.5).log_softmax(1), atol=1e-5)
        and len(drawn) == 3
    )
    outcome = worst_case(
        eot(net, 2),
        x,
        y,
        THREAT,
        suite_steps("rand", THREAT, 4, 6, effort=0.05),
        generator=seeded(),
    )
    assert not all(outcome.robust)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 255.0}, "divide by 255"),
        ({"y": 6}, "labels span 6 to 6; the model has classes 0 to 5"),
        ({"y": -1}, "labels span -1"),
        ({"predict": "softmax"}, "leave out its softmax"),
        ({"predict": "all nan"}, r"NaN logits for samples \[0\]"),
        ({"predict": "features"}, r"a classifier gives \(B, K\) logits"),
        ({"predict": "nan"}, "NaN or infinite"),
    ],
)
def test_bad_input_is_refused_with_the_reason(problem, change, message):
    net, x, y = problem
    predict = {
        None: net,
        "softmax": lambda v: net(v).softmax(1),
        "features": lambda v: net(v)[:, :, None],
        "all nan": lambda v: net(v) * float("nan"),
        "nan": lambda v: net(v) + (v.sum() - v.sum()).sqrt(),
    }[change.get("predict")]
    x, y = x * change.get("x", 1.0), y if "y" not in change else torch.full_like(y, change["y"])
    with pytest.raises(ValueError, match=message):
        autoattack(predict, x, y, THREAT)


def test_an_unknown_attack_is_refused():
    with pytest.raises(ValueError, match="name='bim': must be one of fgsm, pgd"):
        attack_step("bim")


def test_autoattack_warns_of_random_models_and_norms_in_training_mode(problem):
    net, x, y = problem
    noisy = lambda v: net(v + 0.05 * torch.randn_like(v))  # noqa: E731
    with pytest.warns(UserWarning, match="draws random numbers"):
        autoattack(noisy, x, y, THREAT, effort=0.02, generator=seeded())
    with warnings.catch_warnings():
        # no warning where none is due
        warnings.simplefilter("error")
        autoattack(
            noisy, x, y, THREAT, "rand", effort=0.02, generator=seeded()
        )  # the version for random models
    normed = nn.Sequential(nn.BatchNorm3d(3), net).train()
    with pytest.warns(UserWarning, match="call eval"):
        autoattack(normed, x, normed(x).argmax(1), THREAT, effort=0.02, generator=seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoattack(net, x, y, THREAT, effort=0.02, generator=seeded())
        autoattack(noisy, x, y, THREAT, effort=0.02, checks=0, generator=seeded())


@pytest.mark.parametrize("batch_size", [1, 5, 16, 99])
def test_autoattack_keeps_to_its_batch_size(problem, batch_size):
    net, x, y = problem
    sizes = []

    def spied(v):
        sizes.append(len(v))
        return net(v)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x_adv = autoattack(
            spied, x, y, THREAT, "video", effort=0.05, batch_size=batch_size, generator=seeded()
        )
    assert (
        x_adv.shape == x.shape
        and contains(THREAT, x, x_adv).all()
        and max(sizes) == min(batch_size, 16)
    )
    assert accuracy(net, x_adv, y) < 0.5 and not torch.equal(x_adv, x)
    assert autoattack(net, x[:0], y[:0], THREAT).shape == (0, *x.shape[1:])


def test_an_outcome_prints_no_pixels(problem):
    net, x, y = problem
    assert len(repr(worst_case(net, x, y, THREAT, [attack_step("fgsm")]))) < 1500


def test_threats_and_generators_of_other_types_are_refused(problem):
    net, x, y = problem
    with pytest.raises(TypeError, match="threat='linf-4/255': must be a ThreatModel; parse_threat"):
        autoattack(net, x, y, "linf-4/255")
    with pytest.raises(TypeError, match="parse_threat"):
        pgd(Misclassify(net, y), x, "linf-4/255")
    with pytest.raises(TypeError, match="generator=0: must be a torch.Generator"):
        pgd(Misclassify(net, y), x, THREAT, generator=0)


def test_a_loss_without_a_gradient_is_refused_except_by_black_box_attacks(problem):
    net, x, y = problem
    detached = lambda v: net(v).detach()  # noqa: E731
    with pytest.raises(ValueError, match="something on its way detaches"):
        pgd(Misclassify(detached, y), x, THREAT)
    outcome = worst_case(
        detached, x, y, THREAT, [attack_step("square", queries=30)], generator=seeded()
    )
    assert outcome.passes["square"][1] == 0


@pytest.mark.parametrize("steps", [[], attack_step("pgd"), ["pgd"]])
def test_steps_of_other_types_are_refused(problem, steps):
    net, x, y = problem
    with pytest.raises(TypeError, match="steps: must be a list of steps"):
        worst_case(net, x, y, THREAT, steps)


def test_options_that_an_attack_does_not_have_are_refused():
    with pytest.raises(
        ValueError,
        match="pgd has no option queries; it has steps, step_size, restarts, random_start",
    ):
        attack_step("pgd", queries=3)
    with pytest.raises(ValueError, match="effort=0: must be greater than 0"):
        suite_steps("standard", THREAT, 4, 6, effort=0)


def test_labels_for_another_batch_are_refused(problem):
    net, x, y = problem
    for labels, n in ((torch.cat([y, y]), 32), (y[:5], 5)):
        with pytest.raises(ValueError, match=f"16 samples, but {n} labels"):
            autoattack(net, x, labels, THREAT)
    with pytest.raises(ValueError, match="the shapes must be equal"):
        contains(THREAT, x, x[:4])
