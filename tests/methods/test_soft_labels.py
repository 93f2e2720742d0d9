"""Label smoothing, mixup and CutMix against timm, torchvision and plain loops."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vidrobust.methods.soft_labels import (
    LabelSettings,
    cross_entropy,
    mixed,
    random_box,
    smoothed,
)

LABELS = torch.tensor([0, 2, 1, 1])


def test_smoothing_is_that_of_torch_and_of_timm():
    logits = torch.randn(4, 3)
    expected = F.cross_entropy(logits, LABELS, reduction="none", label_smoothing=0.2)
    assert torch.allclose(cross_entropy(logits, LABELS, 0.2), expected)
    assert torch.allclose(cross_entropy(logits, smoothed(LABELS, 3, 0.2)), expected)
    data = pytest.importorskip("timm.data.mixup")
    ours = smoothed(LABELS, 3, 0.2)
    assert torch.allclose(ours, data.mixup_target(LABELS, 3, 1.0, 0.2))


def test_videos_without_a_label_add_nothing():
    logits = torch.randn(2, 3)
    labels = torch.tensor([-1, 1])
    assert not smoothed(labels, 3, 0.1)[0].any()
    for targets in (labels, smoothed(labels, 3, 0.1)):
        losses = cross_entropy(logits, targets, 0.1)
        assert float(losses[0]) == 0 and float(losses[1]) > 0


@pytest.mark.parametrize("settings", [LabelSettings(0.1, mixup=0.8), LabelSettings(0.1, cutmix=1)])
def test_labels_of_mixed_clips_are_those_of_timm(settings):
    """timm blends a clip with its mirror image in the batch: in a batch of two, its neighbour."""
    data = pytest.importorskip("timm.data.mixup")
    x = torch.rand(2, 3, 2, 8, 8)
    torch.manual_seed(3)
    clips, targets = mixed(x, LABELS[:2], 3, settings)
    if settings.cutmix:
        weight = float((clips[0] == x[0]).float().mean())
    else:
        change, whole = clips[0] - x[1], x[0] - x[1]
        weight = float((change * whole).sum() / (whole**2).sum())
    assert torch.allclose(targets, data.mixup_target(LABELS[:2], 3, weight, 0.1), atol=1e-5)
    # as in torchvision's transforms, which roll a batch: the same for two clips
    v2 = pytest.importorskip("torchvision.transforms.v2")
    one_hot = v2.MixUp(num_classes=3)._mixup_label(F.one_hot(LABELS[:2], 3), lam=weight)
    assert torch.allclose(targets, 0.9 * one_hot + 0.1 / 3, atol=1e-5)


def test_mixup_blends_neighbours():
    x = torch.rand(4, 3, 2, 4, 4)
    torch.manual_seed(0)
    clips, targets = mixed(x, LABELS, 3, LabelSettings(mixup=0.8))
    weight = float(targets[0, 0])
    for i, other in enumerate((1, 0, 3, 2)):
        assert torch.allclose(clips[i], weight * x[i] + (1 - weight) * x[other], atol=1e-6)
        for k in range(3):
            label = weight * (LABELS[i] == k) + (1 - weight) * (LABELS[other] == k)
            assert float(targets[i, k]) == pytest.approx(float(label), abs=1e-6)


def test_a_box_is_the_same_in_all_frames_and_weighs_its_area():
    x = torch.rand(4, 3, 5, 12, 8)
    torch.manual_seed(1)
    clips, targets = mixed(x, LABELS, 3, LabelSettings(cutmix=1.0))
    pasted = (clips != x).any(1).any(0)  # (T, H, W)
    assert 0 < int(pasted.sum()) < pasted.numel()
    rows = pasted[0].any(1).nonzero().flatten()
    columns = pasted[0].any(0).nonzero().flatten()
    box = torch.zeros(12, 8, dtype=torch.bool)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert all(torch.equal(frame, box) for frame in pasted)
    for i, other in enumerate((1, 0, 3, 2)):
        assert torch.equal(clips[i][:, :, box], x[other][:, :, box])
    assert float(targets[0, 0]) == pytest.approx(1 - float(box.float().mean()))
    assert torch.allclose(targets.sum(1), torch.ones(4))


def test_boxes_are_those_of_timm():
    """The same centres: both take a row and a column, in this order."""
    data = pytest.importorskip("timm.data.mixup")

    class Legacy:
        """Give timm's function the numbers of a generator."""

        def __init__(self, rng):
            self.rng = rng

        def randint(self, low, high, size=None):
            return int(self.rng.integers(low, high))

    for seed in range(20):
        weight = float(np.random.default_rng(100 + seed).random())
        patch = pytest.MonkeyPatch()
        with patch.context() as context:
            context.setattr(data.np, "random", Legacy(np.random.default_rng(seed)))
            expected = data.rand_bbox((3, 12, 9), weight)
        assert random_box(np.random.default_rng(seed), 12, 9, weight) == tuple(map(int, expected))


def test_weights_follow_the_beta_distribution():
    x = torch.rand(2, 1, 1, 2, 2)
    torch.manual_seed(0)
    weights = [
        float(mixed(x, torch.tensor([0, 1]), 2, LabelSettings(mixup=0.8))[1][0, 0])
        for _ in range(2000)
    ]
    variance = 1 / (4 * (2 * 0.8 + 1))
    assert np.mean(weights) == pytest.approx(0.5, abs=3 * math.sqrt(variance / 2000))
    assert np.var(weights) == pytest.approx(variance, rel=0.1)


def test_each_batch_takes_one_of_both():
    x = torch.rand(2, 3, 2, 16, 16)
    torch.manual_seed(0)
    cut = 0
    for _ in range(400):
        clips, _ = mixed(x, LABELS[:2], 3, LabelSettings(mixup=0.8, cutmix=1.0))
        unchanged = (clips == x) | (clips == x.flip(0))
        cut += bool(unchanged.all())
    assert cut / 400 == pytest.approx(0.5, abs=0.08)


def test_two_ranks_mix_the_pairs_of_one_process():
    x = torch.rand(8, 3, 2, 4, 4)
    labels = torch.arange(8) % 3
    settings = LabelSettings(mixup=0.8, cutmix=1.0)
    parts = []
    for part in (slice(0, 8), slice(0, 4), slice(4, 8)):
        torch.manual_seed(5)  # the global generator, which is the same on all ranks
        parts.append(mixed(x[part], labels[part], 3, settings))
    for whole, *ranks in zip(*parts, strict=True):
        assert torch.equal(whole, torch.cat(ranks))


def test_the_last_of_an_odd_batch_stays():
    x = torch.rand(3, 3, 1, 4, 4)
    clips, targets = mixed(x, LABELS[:3], 3, LabelSettings(mixup=0.8))
    assert torch.allclose(clips[2], x[2]) and torch.allclose(targets[2], smoothed(LABELS, 3, 0)[2])
