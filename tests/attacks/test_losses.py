import math

import pytest
import torch

from vidrobust.attacks import SCORES, Misclassify, dlr_toward, toward
from vidrobust.attacks.losses import checked_logits, rounded


def _logits(classes=6, n=20):
    torch.manual_seed(0)
    return 3 * torch.randn(n, classes), torch.randint(classes, (n,))


def test_scores_are_their_formulas_in_plain_python():
    logits, y = _logits()
    target = (y + 1) % 6
    found = {name: score(logits, y) for name, score in SCORES.items()}
    found |= {"toward": toward(target)(logits, y), "dlr_toward": dlr_toward(target)(logits, y)}
    for i in range(len(y)):
        z, own = logits[i].tolist(), int(y[i])
        other = max(v for k, v in enumerate(z) if k != own)
        top = sorted(z, reverse=True)
        p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        gap = p[own] - max(v for k, v in enumerate(p) if k != own) + 0.05
        expected = {
            "ce": -math.log(p[own]),
            "margin": other - z[own],
            "dlr": (other - z[own]) / (top[0] - top[2]),
            "cosine": 1 - z[own] / math.sqrt(sum(v * v for v in z)),
            "escape": math.log(1 - p[own]),
            "flicker_hinge": -max(0.0, min(gap * gap / 0.05, gap)),
            "toward": z[int(target[i])] - z[own],
            "dlr_toward": (z[int(target[i])] - z[own]) / (top[0] - (top[2] + top[3]) / 2),
        }
        for name, value in expected.items():
            assert float(found[name][i]) == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("name", ["margin", "dlr"])
def test_margins_are_positive_exactly_where_the_prediction_is_wrong(name):
    logits, y = _logits()
    assert ((SCORES[name](logits, y) > 0) == (logits.argmax(1) != y)).all()


@pytest.mark.parametrize("name", ["dlr", "cosine"])
def test_scale_free_scores(name):
    logits, y = _logits()
    assert torch.allclose(SCORES[name](logits, y), SCORES[name](1e4 * logits, y), rtol=1e-3)


def test_a_target_goes_with_its_sample():
    logits, y = _logits(n=8)
    rows = torch.tensor([6, 1, 3])
    loss = Misclassify(lambda v: logits[v[:, 0].long()], y, dlr_toward((y + 2) % 6))
    clips = torch.arange(8.0).unsqueeze(1)
    assert torch.equal(loss.at(rows)(clips[rows]), loss(clips)[rows])
    assert torch.equal(loss.at(rows).at(torch.tensor([2]))(clips[rows[2:]]), loss(clips)[rows[2:]])


def test_levels():
    """0 right, 1 wrong, 2 wrong after rounding as well; without rounding wrong is the last."""
    clips = torch.tensor([0.2, 0.502, 0.6]).view(3, 1)  # 0.502 rounds to 128/255 = 0.50196
    predict = lambda v: torch.stack([torch.full((len(v),), 0.50198), v[:, 0]], 1)  # noqa: E731
    y = torch.zeros(3, dtype=torch.long)
    assert Misclassify(predict, y, rounding=True).judge(clips)[1].tolist() == [0, 1, 2]
    assert Misclassify(predict, y).judge(clips)[1].tolist() == [0, 2, 2]
    assert torch.equal(rounded(torch.tensor([0.5, 0.1])) * 255, (torch.tensor([0.5, 0.1]) * 255).round())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_refused_in_any_precision_and_logits_are_not(dtype):
    logits, y = _logits()
    with pytest.raises(ValueError, match="leave out its softmax"):
        checked_logits(logits.softmax(1).to(dtype), y)
    assert checked_logits(logits.to(dtype), y).dtype == torch.float32
    assert checked_logits(logits.abs().to(dtype), y).shape == (20, 6)  # all positive, but no probabilities
    checked_logits(logits.log_softmax(1), y)
