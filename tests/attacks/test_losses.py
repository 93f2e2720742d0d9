"""Check scores, levels, labels and targets of the loss of a classifier."""

import math

import pytest
import torch

from tests.attacks.helpers import labelled, small_net
from vidrobust.attacks import (
    SCORES,
    Misclassify,
    ThreatModel,
    apgd,
    apgd_t,
    attack_step,
    contains,
    dlr_toward,
    eot,
    fab_t,
    fmn,
    pgd,
    toward,
    worst_case,
)
from vidrobust.attacks.losses import checked_logits, rounded


def _logits(classes=6, n=20):
    torch.manual_seed(0)
    return 3 * torch.randn(n, classes), torch.randint(classes, (n,))


def test_scores_equal_their_formulas_in_plain_python():
    logits, y = _logits()
    target = (y + 1) % 6
    scores = {name: score(logits, y) for name, score in SCORES.items()}
    scores |= {"toward": toward(target)(logits, y), "dlr_toward": dlr_toward(target)(logits, y)}
    for i in range(len(y)):
        z, label = logits[i].tolist(), int(y[i])
        other = max(v for k, v in enumerate(z) if k != label)
        top = sorted(z, reverse=True)
        p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        gap = p[label] - max(v for k, v in enumerate(p) if k != label) + 0.05
        expected = {
            "ce": -math.log(p[label]),
            "margin": other - z[label],
            "dlr": (other - z[label]) / (top[0] - top[2]),
            "cosine": 1 - z[label] / math.sqrt(sum(v * v for v in z)),
            "escape": math.log(1 - p[label]),
            "flicker_hinge": -max(0.0, min(gap * gap / 0.05, gap)),
            "toward": z[int(target[i])] - z[label],
            "dlr_toward": (z[int(target[i])] - z[label]) / (top[0] - (top[2] + top[3]) / 2),
        }
        for name, value in expected.items():
            assert float(scores[name][i]) == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("name", ["margin", "dlr"])
def test_margins_are_positive_exactly_where_the_prediction_is_wrong(name):
    logits, y = _logits()
    assert ((SCORES[name](logits, y) > 0) == (logits.argmax(1) != y)).all()


@pytest.mark.parametrize("name", ["dlr", "cosine"])
def test_dlr_and_cosine_do_not_change_with_the_scale_of_the_logits(name):
    logits, y = _logits()
    assert torch.allclose(SCORES[name](logits, y), SCORES[name](1e4 * logits, y), rtol=1e-3)


def test_a_loss_of_some_samples_keeps_their_targets():
    logits, y = _logits(n=8)
    rows = torch.tensor([6, 1, 3])
    loss = Misclassify(lambda v: logits[v[:, 0].long()], y, dlr_toward((y + 2) % 6))
    clips = torch.arange(8.0).unsqueeze(1)
    assert torch.equal(loss.at(rows)(clips[rows]), loss(clips)[rows])
    assert torch.equal(loss.at(rows).at(torch.tensor([2]))(clips[rows[2:]]), loss(clips)[rows[2:]])


def test_levels_are_right_wrong_and_wrong_after_rounding():
    """0: right, 1: wrong, 2: wrong after rounding too; without clean clips, wrong is 2."""
    clips = torch.tensor([0.2, 0.503, 0.6]).view(3, 1)  # 0.503 rounds to 128/255 = 0.50196
    predict = lambda v: torch.stack([torch.full((len(v),), 0.50198), v[:, 0]], 1)  # noqa: E731
    y = torch.zeros(3, dtype=torch.long)
    assert Misclassify(predict, y, clean=torch.full((3, 1), 0.4)).judge(clips)[1].tolist() == [
        0,
        1,
        2,
    ]
    assert Misclassify(predict, y).judge(clips)[1].tolist() == [0, 2, 2]


@pytest.mark.parametrize("clean", [None, torch.zeros(4, 1)])
def test_a_clip_that_is_barely_wrong_is_not_finished(clean):
    """With another batch size the same clip may be right."""
    gap = torch.tensor([-1e-4, 1e-6, 5e-6, 1e-2])

    def predict(v):
        return torch.stack([torch.full((len(v),), 0.6), 0.6 + gap[: len(v)]], 1)

    levels = Misclassify(predict, torch.zeros(4, dtype=torch.long), clean=clean).judge(
        torch.full((4, 1), 0.6)
    )[1]
    assert levels.tolist()[:3] == [0, 1, 1] and (clean is not None or levels[3] == 2)


def test_rounding_moves_no_pixel_away_from_the_clean_clip():
    x = torch.randint(0, 256, (4, 3, 2, 8, 8)) / 255
    for size in (0.4, 0.5, 1.5, 2.6, 4.0):
        x_adv = (
            x + size / 255 * (2 * torch.rand_like(x) - 1).sign() * torch.rand_like(x).round()
        ).clamp(0, 1)
        x_rounded = rounded(x_adv, x)
        # the result is a uint8 value, not farther from x, and near x_adv
        assert ((x_rounded * 255).round() - x_rounded * 255).abs().max() < 1e-3
        assert ((x_rounded - x).abs() <= (x_adv - x).abs() + 1e-6).all()
        assert ((x_rounded - x_adv).abs() <= 1 / 255 + 1e-6).all()
    assert torch.equal(rounded(x, x), x)
    off = torch.tensor([0.3 / 255, 0.7 / 255])  # clips off the grid go to the nearest value
    assert rounded(off, off).tolist() == [0.0, pytest.approx(1 / 255)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_refused_in_any_precision_and_logits_are_not(dtype):
    logits, y = _logits()
    with pytest.raises(ValueError, match="leave out its softmax"):
        checked_logits(logits.softmax(1).to(dtype), y)
    assert checked_logits(logits.to(dtype), y).dtype == torch.float32
    assert checked_logits(logits.abs().to(dtype), y).shape == (
        20,
        6,
    )  # all positive, but not probabilities
    # log-probabilities are logits too
    checked_logits(logits.log_softmax(1), y)


def _clips(n=4):
    return torch.rand(n, 3, 2, 4, 4)


def _model(x):
    return x.flatten(1)[:, :5] * 10 - 3


@pytest.mark.parametrize(
    "y",
    [
        torch.zeros(4, 1, dtype=torch.long),
        torch.zeros(4),
        torch.eye(5)[:4],
        torch.eye(5)[:4].long(),
        torch.zeros(4, dtype=torch.bool),
        [0, 0, 0, 0],
    ],
)
def test_labels_of_other_shapes_and_types_are_refused(y):
    with pytest.raises(ValueError, match="y must be a .B,. tensor of integer labels"):
        Misclassify(_model, y)
    with pytest.raises(ValueError, match="y must be a .B,. tensor of integer labels"):
        worst_case(_model, _clips(), y, ThreatModel(), [attack_step("fgsm")])


@pytest.mark.parametrize("n", [3, 5, 1])
def test_too_few_and_too_many_labels_are_refused(n):
    with pytest.raises(ValueError, match=f"4 samples, but {n} labels"):
        worst_case(
            _model, _clips(), torch.zeros(n, dtype=torch.long), ThreatModel(), [attack_step("fgsm")]
        )
    with pytest.raises(ValueError, match=f"4 samples, but {n} labels"):
        pgd(Misclassify(_model, torch.zeros(n, dtype=torch.long)), _clips(), ThreatModel())


def test_labels_may_have_any_integer_type():
    x, y = _clips(), torch.tensor([0, 1, 2, 3])
    expected = Misclassify(_model, y)(x)
    assert all(
        torch.equal(Misclassify(_model, y.to(kind))(x), expected)
        for kind in (torch.int32, torch.uint8)
    )


def test_a_score_may_be_given_by_its_name():
    x, y = _clips(), torch.tensor([0, 1, 2, 3])
    for name, score in SCORES.items():
        assert torch.equal(Misclassify(_model, y, name)(x), Misclassify(_model, y, score)(x))
    with pytest.raises(ValueError, match="score='hinge': must be one of ce, dlr, margin"):
        Misclassify(_model, y, "hinge")


def test_a_model_of_one_class_is_refused():
    with pytest.raises(ValueError, match="2 classes or more"):
        Misclassify(lambda v: v.flatten(1)[:, :1], torch.zeros(4, dtype=torch.long))(_clips())


@pytest.mark.parametrize("score", ["ce", "margin"])
def test_a_targeted_loss_is_broken_where_the_target_is_predicted(score):
    """With toward() a third class may be predicted; with targeted=True it may not."""
    net = small_net()
    x, y = labelled(net, (12, 3, 4, 12, 12))
    target, threat = (y + 2) % 6, ThreatModel("linf", 8 / 255)
    loss = Misclassify(net, target, score, targeted=True)
    assert torch.equal(loss(x), -SCORES[score](net(x), target))
    assert loss.judge(x)[1].max() == 0 and loss.at(torch.tensor([3])).targeted
    for attack in (pgd, apgd) if score == "ce" else (pgd, fmn):
        x_adv = attack(loss, x, threat, steps=40, generator=torch.Generator().manual_seed(0))
        assert (net(x_adv).argmax(1) == target).all() and contains(threat, x, x_adv).all()
    # the same after rounding to uint8
    whole = (x * 255).round() / 255
    x_adv = pgd(Misclassify(net, target, score, whole, targeted=True), whole, threat, steps=40)
    assert (net(rounded(x_adv, whole)).argmax(1) == target).all()
    # these choose the targets themselves
    for attack in (apgd_t, fab_t):
        with pytest.raises(ValueError, match="give it an untargeted loss"):
            attack(loss, x, threat)


@pytest.mark.parametrize(
    ("target", "message"), [(99, "labels span 99 to 99"), (None, "4 samples, but 2 targets")]
)
def test_targets_must_be_classes_and_one_per_sample(target, message):
    net = small_net()
    x, y = labelled(net, (4, 3, 4, 12, 12))
    targets = torch.zeros(2, dtype=torch.long) if target is None else torch.full((4,), target)
    with pytest.raises(ValueError, match=message):
        pgd(Misclassify(net, y, toward(targets)), x, ThreatModel())


def test_eot_refuses_zero_draws():
    with pytest.raises(ValueError, match="draws=0: must be at least 1"):
        eot(_model, 0)
