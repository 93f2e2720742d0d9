"""Attacks on features without labels: losses, budgets, clips of a video, kills and NaN."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.evaluation.helpers import CFG, CPU, clips_of
from tests.helpers import tiny_ucf101
from vidrobust.attacks import contains, leave_neighbors, parse_threat, pgd, push_away
from vidrobust.config import DataConfig
from vidrobust.data import build_records, eval_dataset, source_videos
from vidrobust.evaluation.adversarial import retrieval_attack
from vidrobust.evaluation.adversarial.retrieval_attack import (
    LOSSES,
    FeatureAttack,
    Side,
    attack_features,
)
from vidrobust.utils.errors import UserError

THREATS = [parse_threat(name) for name in ("linf-0", "linf-4/255", "flicker-linf-8/255")]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tiny_ucf101(tmp_path_factory.mktemp("attacked"), train=1, test=3)
    return build_records(DataConfig(name="ucf101", root=str(root)), "test")[0]


class _Backbone(nn.Module):
    """A small random network; it keeps the clips that it received without a gradient."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 3 * 2 * 256, generator=generator) / 30, False)
        self.seen = []

    def forward(self, x):
        if not x.requires_grad:
            self.seen.append(x.clone())
        flat = x.flatten(1)
        if flat.shape[1] != self.weight.shape[1]:
            flat = flat.repeat(1, 2)
        return torch.tanh(flat @ self.weight.T)


def _attack(records, tmp_path, *, clips=2, threats=THREATS, backbone=None, dataset=None, **options):
    backbone = backbone or _Backbone()
    dataset = dataset or eval_dataset(CFG, records, clips)
    gallery = F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    attack = FeatureAttack(threats, options.pop("steps", 4), 1, 0, options.pop("neighbors", 3))
    side = Side("queries", dataset, list(range(len(records))), directions, gallery)
    batch_size = options.pop("batch_size", 4)
    return attack_features(backbone, side, attack, tmp_path, batch_size, 0, CPU), attack, side


def directions(features):
    return F.normalize(features, dim=-1)


def test_the_margin_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    x, moved = (torch.rand(5, 1, 1, 1, 4, generator=generator) for _ in range(2))
    gallery = torch.randn(7, 4, generator=generator)
    values = leave_neighbors(lambda v: v.flatten(1), x, gallery, 2)(moved)
    for clip, new, value in zip(x.flatten(1), moved.flatten(1), values.tolist(), strict=True):
        before = [float((clip * item).sum()) for item in gallery]
        after = [float((new * item).sum()) for item in gallery]
        near = sorted(range(7), key=lambda j: -before[j])[:2]
        far = [j for j in range(7) if j not in near]
        assert value == pytest.approx(
            max(after[j] for j in far) - max(after[j] for j in near), abs=1e-5
        )


def test_the_margin_is_positive_exactly_where_the_nearest_item_is_new():
    generator = torch.Generator().manual_seed(0)
    x, moved = (torch.rand(200, 1, 1, 1, 3, generator=generator) for _ in range(2))
    gallery = torch.randn(6, 3, generator=generator)
    values = leave_neighbors(lambda v: v.flatten(1), x, gallery, 1)(moved)
    is_new = (moved.flatten(1) @ gallery.T).argmax(1) != (x.flatten(1) @ gallery.T).argmax(1)
    assert torch.equal(values > 0, is_new)
    assert is_new.any() and not is_new.all()


@pytest.mark.parametrize("neighbors", [0, 4])
def test_neighbors_leave_other_items(neighbors):
    with pytest.raises(ValueError, match=f"neighbors={neighbors}: must be 1 to 3"):
        leave_neighbors(lambda v: v.flatten(1), torch.rand(1, 1, 1, 1, 2), torch.eye(4), neighbors)


def test_moving_to_a_new_item_succeeds_where_moving_away_does_not():
    """Features may move far without a change of the nearest item, along a direction without any."""
    # the first pixel decides between two items, the second only moves features away from both
    weight = torch.tensor([[1.0, 0, 0], [0, 0, 20.0]])
    gallery = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])

    def encode(v):
        return (v.flatten(1) - 0.5) @ weight.T

    x = torch.tensor([0.52, 0.5, 0.5]).view(1, 3, 1, 1, 1)
    threat = parse_threat("l2-0.05")
    found = {}
    for name, loss in (
        ("push", push_away(encode, x)),
        ("leave", leave_neighbors(encode, x, gallery, 1)),
    ):
        x_adv = pgd(loss, x, threat, steps=20, generator=torch.Generator().manual_seed(0))
        assert contains(threat, x, x_adv).all()
        found[name] = int((encode(x_adv) @ gallery.T).argmax())
    assert found == {"push": 0, "leave": 1}


@pytest.mark.parametrize("frames", [1, 2])
def test_every_clip_of_a_video_is_attacked_within_its_budget(records, tmp_path, frames):
    cfg = DataConfig(frames=frames, stride=2, short_side=20, size=16, workers=0)
    backbone = _Backbone()
    threat = parse_threat("linf-4/255")
    attacked, _, _ = _attack(
        records,
        tmp_path,
        threats=[threat],
        backbone=backbone,
        dataset=eval_dataset(cfg, records, 2),
    )
    # per batch and loss: the clean clips, and those of the best iterate, judged in the end
    clean, best = backbone.seen[0], backbone.seen[2]
    assert clean.shape == best.shape == (4, 3, frames, 16, 16)
    assert contains(threat, clean, best).all()
    assert ((best - clean).flatten(1).abs().amax(1) > 3 / 255).all(), "no clip stays clean"
    for videos in attacked.videos.values():
        assert all(video.in_budget and video.measured <= 4 / 255 + 1e-6 for video in videos)


def test_the_features_are_those_of_the_mean_over_clips(records, tmp_path):
    backbone = _Backbone()
    attacked, _, side = _attack(records, tmp_path, threats=THREATS[:1], backbone=backbone)
    for place, index in enumerate(attacked.index.tolist()):
        expected = backbone(clips_of(side.dataset, index)).mean(0)
        assert torch.allclose(attacked.features[0][place], expected, atol=1e-6)


def test_attacks_move_features_and_count_their_passes(records, tmp_path):
    attacked, attack, _ = _attack(records, tmp_path)
    clean = attacked.features[0]
    number = {(str(threat), name): i for i, (threat, name) in enumerate(attack.conditions)}
    for threat in ("linf-4/255", "flicker-linf-8/255"):
        for name in LOSSES:
            moved = attacked.features[number[threat, name]]
            assert (F.cosine_similarity(moved, clean) < 0.9999).all()
    # 6 videos x 2 clips: the clean pass, 4 + 1 of PGD, and the judgement; 4 with a gradient
    assert attacked.passes[number["linf-4/255", "push_away"]] == [12 * 7, 12 * 4]
    assert attacked.passes[0] == [12 * 2, 0]


def test_source_frames_are_attacked_for_all_clips(records, tmp_path):
    dataset = source_videos(CFG, records, 3, "uniform")
    attacked, _, side = _attack(records, tmp_path, dataset=dataset, threats=THREATS[1:2])
    assert side.clips == 1
    assert len(attacked.videos) == 6 and not attacked.errors
    assert all(v.in_budget and v.measured > 0 for each in attacked.videos.values() for v in each)


def test_a_clip_outside_of_its_budget_is_not_used(records, tmp_path, monkeypatch):
    def cheat(loss, x, threat, **options):
        x_adv = x.clone()
        x_adv[0] = 1 - x_adv[0]
        return x_adv

    clean, _, _ = _attack(records, tmp_path / "clean", threats=THREATS[:1])
    monkeypatch.setattr(retrieval_attack, "pgd", cheat)
    attacked, _, _ = _attack(records, tmp_path / "cheat", threats=THREATS[1:2])
    assert attacked.rejected == [3, 3]  # a clip of each batch
    assert torch.equal(attacked.features[0], clean.features[0])
    assert all(v.in_budget and v.measured == 0 for each in attacked.videos.values() for v in each)


def test_killed_it_continues_with_the_same_features(records, tmp_path, monkeypatch):
    whole, _, _ = _attack(records, tmp_path / "whole")
    calls = []
    original = retrieval_attack._attack_unit

    def killed(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(retrieval_attack, "_attack_unit", killed)
        with pytest.raises(KeyboardInterrupt):
            _attack(records, tmp_path / "cut")
    # a kill within a row leaves a part of it
    with open(tmp_path / "cut/attacked_queries.rows.jsonl", "a") as file:
        file.write('{"index": 2, "ui')
    again = []
    monkeypatch.setattr(
        retrieval_attack, "_attack_unit", lambda *args: again.append(args) or original(*args)
    )
    cut, _, _ = _attack(records, tmp_path / "cut")
    assert len(again) == 2, "the first of three batches was finished"
    assert all(torch.equal(a, b) for a, b in zip(cut.features, whole.features, strict=True))
    assert (cut.videos, cut.passes) == (whole.videos, whole.passes)


def test_a_video_without_finite_features_fails_alone(records, tmp_path):
    class Faulty(_Backbone):
        def forward(self, x):
            features = super().forward(x)
            first = (x[:, :, 0] - self.clip).abs().amax((1, 2, 3)) < 0.1
            return features / (~first).float()[:, None]

    side = _attack(records, tmp_path / "sound", threats=THREATS[1:2])[2]
    backbone = Faulty()
    backbone.clip = clips_of(side.dataset, 2)[1, :, 0]
    attacked, _, _ = _attack(records, tmp_path / "nan", threats=THREATS[1:2], backbone=backbone)
    assert attacked.index.tolist() == [0, 1, 3, 4, 5]
    (reason,) = attacked.errors.values()
    assert list(attacked.errors) == [2] and "no finite numbers from the model" in reason


def test_a_model_without_any_finite_features_is_refused(records, tmp_path):
    class Broken(_Backbone):
        def forward(self, x):
            return super().forward(x) / 0

    with pytest.raises(UserError, match="no video of the queries has finite features under attack"):
        _attack(records, tmp_path, threats=THREATS[1:2], backbone=Broken())


def test_other_settings_are_not_continued(records, tmp_path):
    first, _, _ = _attack(records, tmp_path, threats=THREATS[1:2])
    second, _, _ = _attack(records, tmp_path, threats=THREATS[1:2], steps=1)
    assert not torch.equal(first.features[0], second.features[0])
