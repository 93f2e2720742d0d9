import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch

from tests.helpers import counting_video, read_numbers, same_batch, tiny_ucf101
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import (
    ClipDataset,
    ClipSpec,
    EvalBatches,
    Record,
    TrainBatches,
    batch_loader,
    eval_dataset,
    random_clips,
    train_dataset,
    ucf101,
)
from vidrobust.utils.errors import UserError
from vidrobust.views import AugmentSpec

CFG = DataConfig(frames=2, stride=3, short_side=32, size=24, workers=0)


def _batches(ucf, workers, start=0, stop=4, rank=0, world=1):
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, AugmentConfig(), records, clips=2, seed=7)
    return list(batch_loader(dataset, TrainBatches(8, 4, 7, start, stop, rank, world), workers))


def test_batches_do_not_depend_on_the_number_of_workers(ucf):
    for a, b in zip(_batches(ucf, 0), _batches(ucf, 3), strict=True):
        assert same_batch(a, b)


def test_the_same_batches_after_a_resume_in_mid_epoch(ucf):
    whole, resumed = _batches(ucf, 0), _batches(ucf, 0, start=1)
    assert all(same_batch(a, b) for a, b in zip(whole[1:], resumed, strict=True))


def test_ranks_divide_the_batch_of_a_single_process(ucf):
    parts = [_batches(ucf, 0, rank=rank, world=2) for rank in (0, 1)]
    for whole, first, second in zip(_batches(ucf, 0), *parts, strict=True):
        assert torch.equal(whole.clips, torch.cat([first.clips, second.clips]))


def test_epochs_and_seeds_differ(ucf):
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, AugmentConfig(), records, clips=2, seed=7)
    assert not torch.equal(dataset[0, 0]["clips"], dataset[1, 0]["clips"])
    assert not torch.equal(dataset[0, 0]["draws"][0], dataset[0, 0]["draws"][1])
    other = train_dataset(CFG, AugmentConfig(), records, clips=2, seed=8)
    assert not torch.equal(dataset[0, 0]["draws"], other[0, 0]["draws"])


def test_a_training_epoch_is_a_permutation_without_its_remainder():
    epoch = [index for batch in TrainBatches(10, 4, 0, 0, 2) for _, index in batch]
    assert len(set(epoch)) == 8
    following = [key for batch in TrainBatches(10, 4, 0, 2, 4) for key in batch]
    assert {e for e, _ in following} == {1} and [i for _, i in following] != epoch


def test_evaluation_drops_and_pads_nothing():
    assert [len(b) for b in EvalBatches(list(range(7)), 3)] == [3, 3, 1]
    assert [i for b in EvalBatches([5, 1, 2, 0], 3) for _, i in b] == [5, 1, 2, 0]


def test_samples_contain_the_frames_that_they_claim(ucf):
    """The pixels are checked after sampler, decoder, resize and crop."""
    records, _ = ucf101(ucf, "test", 1)
    cfg = DataConfig(frames=3, stride=4, short_side=32, size=32, workers=0)
    batch = next(iter(batch_loader(eval_dataset(cfg, records, 2), EvalBatches([0, 3], 2), 0)))
    assert batch.clips.shape == (2, 2, 3, 32, 32, 3) and batch.clips.dtype == torch.uint8
    assert batch.start.tolist() == [[0, 11], [0, 11]] and batch.labels.tolist() == [0, 1]
    first = [200, 1250]  # what frame 0 of test video 0 and 3 shows
    for video, offset in enumerate(first):
        for clip, start in enumerate((0, 11)):
            frames = batch.clips[video, clip].numpy()
            assert read_numbers(frames) == [offset + start + 4 * t for t in range(3)]


def test_random_clips_show_the_frames_of_the_sampler(tmp_path):
    path = counting_video(tmp_path / "v.avi", 50)
    view = AugmentSpec(size=64, scale=(1, 1), ratio=(1, 1), flip=0, jitter_prob=0, gray=0, blur=0)
    data = ClipDataset([Record("v", str(path), 0)], ClipSpec(4, 5, 3), random_clips, view, seed=1)
    sample = data[2, 0]
    for clip, start in zip(sample["clips"], sample["start"].tolist(), strict=True):
        assert read_numbers(clip.numpy()) == [start + 5 * t for t in range(4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_a_failure_in_the_batch(tmp_path, workers):
    root = tiny_ucf101(tmp_path)
    (root / "videos/Beta/v_Beta_g05_c01.avi").write_bytes(b"")
    records, _ = ucf101(root, "test", 1)
    (batch,) = batch_loader(eval_dataset(CFG, records, 1), EvalBatches(list(range(4)), 4), workers)
    assert len(batch.uids) == 3 and batch.clips.shape[0] == 3
    (failure,) = batch.failed
    assert (
        failure.uid == "Beta/v_Beta_g05_c01.avi"
        and failure.index == 2
        and "is empty" in failure.reason
    )


def test_policy_error_makes_a_short_video_a_failure(ucf):
    records, _ = ucf101(ucf, "test", 1)
    failure = eval_dataset(DataConfig(frames=16, stride=2, policy="error"), records, 1)[0, 0]
    assert "has 20 frames, a clip spans 31" in failure.reason and records[0].path in failure.reason


def test_images_are_clips_of_one_frame(tmp_path):
    from PIL import Image

    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 1] = 200
    Image.fromarray(pixels).save(tmp_path / "i.png")
    data = eval_dataset(
        DataConfig(frames=1, stride=1, short_side=32, size=32),
        [Record("i", str(tmp_path / "i.png"), 3)],
        1,
    )
    sample = data[0, 0]
    assert sample["clips"].shape == (1, 1, 32, 32, 3)
    assert sample["clips"][0, 0, 5, 5].tolist() == [0, 200, 0]


def test_samples_do_not_depend_on_the_time_limit(ucf):
    records, _ = ucf101(ucf, "train", 1)
    spec, view = ClipSpec(3, 2, 2), AugmentSpec(size=24)
    plain = ClipDataset(records, spec, random_clips, view, seed=3)
    watched = ClipDataset(records, spec, random_clips, view, seed=3, timeout_s=20)
    for key in ((0, 0), (0, 5), (4, 5)):
        a, b = plain[key], watched[key]
        assert a.keys() == b.keys() and a["uid"] == b["uid"]
        assert all(torch.equal(a[name], b[name]) for name in ("clips", "draws", "start"))
    kept = watched[0, 1]["clips"].clone(), watched[0, 1]["clips"]
    assert watched[0, 2] and torch.equal(
        *kept
    )  # a sample is its own, not a window on the child's memory


def test_every_sample_has_its_own_random_numbers(ucf):
    """Over epochs, videos and views, whichever worker sampled them."""
    records, _ = ucf101(ucf, "train", 1)
    dataset = train_dataset(CFG, AugmentConfig(jitter_prob=1), records, clips=2, seed=7)
    draws = torch.cat(
        [
            batch.draws.flatten(0, 1)
            for batch in batch_loader(dataset, TrainBatches(8, 4, 7, 0, 8), 4)
        ]
    )
    assert len(torch.unique(draws[:, :4], dim=0)) == len(draws) == 64


@pytest.mark.parametrize("train", [True, False])
def test_a_data_set_can_be_pickled_for_spawned_processes(ucf, train):
    records, _ = ucf101(ucf, "train", 1)
    dataset = (
        train_dataset(CFG, AugmentConfig(), records, 2, 7)
        if train
        else eval_dataset(CFG, records, 2, "dense")
    )
    sample = dataset[1, 3]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1, 3]["clips"], sample["clips"])


def test_a_system_that_cannot_fork_is_refused_with_the_remedy(ucf, monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(UserError, match="set data.timeout_s=0"):
        train_dataset(CFG, AugmentConfig(), ucf101(ucf, "train", 1)[0], 2, 7)


def test_records_are_kept_as_one_array(ucf):
    """A list of objects would be copied, memory page by memory page, into every worker.

    See PyTorch issue 13246.
    """
    records, _ = ucf101(ucf, "train", 1)
    kept = train_dataset(CFG, AugmentConfig(), records * 1000, 2, 7).records
    assert [kept[i] for i in (0, 7, 4242, len(kept) - 1)] == [
        records[i % 8] for i in (0, 7, 4242, 7999)
    ]
    held = [value for value in vars(kept).values() if not isinstance(value, np.ndarray)]
    assert len(kept) == 8000 and held == []
    with pytest.raises(IndexError):
        kept[8000]


def test_corruptions_are_sampled_last_and_change_nothing_else(ucf):
    """Boxes and colours are the same, and some of the clips have one of the corruptions.

    The number of workers does not matter.
    """
    records, _ = ucf101(ucf, "train", 1)
    augment = AugmentConfig(
        corruptions=["contrast", "brightness"], corruption_prob=0.5, corruption_severities=[5]
    )
    plain, corrupted = (
        train_dataset(CFG, a, records, clips=2, seed=7) for a in (AugmentConfig(), augment)
    )
    pairs = [(plain[e, i], corrupted[e, i]) for e in range(4) for i in range(8)]
    assert all(
        torch.equal(a["draws"], b["draws"]) and torch.equal(a["start"], b["start"])
        for a, b in pairs
    )
    changed = [
        bool((x != y).any()) for a, b in pairs for x, y in zip(a["clips"], b["clips"], strict=True)
    ]
    assert 16 < sum(changed) < 48, "about half of 64"
    one, two = (
        next(iter(batch_loader(corrupted, [[(0, i) for i in range(8)]], workers)))
        for workers in (0, 2)
    )
    assert same_batch(one, two)


def test_fading_augmentations_are_a_function_of_the_epoch(ucf):
    """The first epoch equals that of a run without fading.

    The last of twenty shows nearly the whole frame, without colour changes.
    """
    records, _ = ucf101(ucf, "train", 1)
    augment = AugmentConfig(scale=[0.1, 1.0], jitter_prob=1.0)
    plain = train_dataset(CFG, augment, records, 2, 7, 20)
    fading = train_dataset(CFG, dataclasses.replace(augment, fade=True), records, 2, 7, 20)
    first = [(plain[0, i], fading[0, i]) for i in range(8)]
    assert all(
        torch.equal(a["clips"], b["clips"]) and torch.equal(a["draws"], b["draws"])
        for a, b in first
    )
    last = [(plain[19, i]["draws"], fading[19, i]["draws"]) for i in range(8)]
    spread = [torch.stack([pair[k][:, :3] for pair in last]).sub(1).abs().mean() for k in (0, 1)]
    assert spread[1] < 0.1 * spread[0]
