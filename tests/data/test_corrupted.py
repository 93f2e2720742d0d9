"""Corruptions in the loader, on videos with numbered frames."""

import numpy as np
import pytest

from tests.helpers import children_begin_with, counting_frames, counting_video, encode, read_numbers
from vidrobust.config import DataConfig
from vidrobust.corruptions import corrupt
from vidrobust.data import (
    CLEAN,
    DecodeError,
    Failure,
    Record,
    corrupted_loader,
    corrupted_videos,
    eval_dataset,
    worker_deaths,
)
from vidrobust.data.decoding.read_frames import checked_frames

CFG = DataConfig(frames=4, stride=3, short_side=64, size=64, workers=0)
CONDITIONS = [
    CLEAN,
    ("gaussian_noise", 2),
    ("sampling", 1),
    ("h264_crf", 1),
    ("temporal_blur", 1),
    ("freeze", 5),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v")
    paths = [counting_video(folder / f"{n}.avi", n) for n in (60, 7, 1)]
    bad = folder / "bad.avi"
    bad.touch()
    return [Record(f"{i}", str(path), i % 2) for i, path in enumerate([*paths, bad])]


def corrupted_of(records, work, clips=2, place="source", workers=0, cfg=CFG):
    videos = corrupted_videos(cfg, records, clips, "uniform", place, seed=5)
    videos.work = work
    with worker_deaths(videos):
        return list(corrupted_loader(videos, workers))


def test_clean_clips_equal_those_of_other_evaluations(tmp_path):
    """The same frames, crop and resize: clips are bitwise identical."""
    frames = np.random.default_rng(0).integers(0, 256, (30, 50, 70, 3), dtype=np.uint8)
    records = [Record("a", str(encode(tmp_path / "a.mp4", frames, "mpeg4")), 0)]
    cfg = DataConfig(frames=4, stride=2, short_side=40, size=32, workers=0)
    expected = eval_dataset(cfg, records, 3)[0, 0]["clips"]
    for place in ("source", "view"):
        (item,) = corrupted_of(records, [(0, [CLEAN])], 3, place, cfg=cfg)
        assert (item.clips[0] == expected).all()


def test_each_kind_of_corruption_receives_the_frames_that_it_needs(videos):
    (item,) = corrupted_of(videos, [(0, CONDITIONS)], clips=2)
    clean, noisy, sampled, coded, blurred, frozen = (clips.numpy() for clips in item.clips)
    starts = [0, 50]
    spans = [[s, s + 3, s + 6, s + 9] for s in starts]
    assert [read_numbers(clip) for clip in clean] == spans
    assert [read_numbers(clip) for clip in noisy] == spans
    assert [read_numbers(clip) for clip in sampled] == [
        [2 * n % 60 for n in span] for span in spans
    ], "of all frames"
    assert [read_numbers(clip) for clip in coded] == spans, (
        "consecutive ones went through the encoder"
    )
    whole = counting_frames(60)
    for clip, start in zip(blurred, starts, strict=True):
        span = corrupt(whole[start : start + 10], "temporal_blur", 1, np.random.default_rng(0))[::3]
        assert np.abs(clip.astype(int) - span).mean() < 3, (
            "those that the clip skips are in the mean"
        )
    assert len({number for clip in frozen for number in read_numbers(clip)}) == 1, (
        "one frame of the whole video"
    )


def test_clips_of_a_video_share_the_random_parameters_of_a_condition(videos):
    twice = [
        corrupted_of(videos, [(0, [("gaussian_noise", 1)]), (1, [("gaussian_noise", 1)])])
        for _ in range(2)
    ]
    assert all((a.clips[0] == b.clips[0]).all() for a, b in zip(*twice, strict=True))
    noise = [
        item.clips[0].int() - clean.clips[0].int()
        for item, clean in zip(
            twice[0], corrupted_of(videos, [(0, [CLEAN]), (1, [CLEAN])]), strict=True
        )
    ]
    gray = (noise[0] != noise[1]).float().mean()
    assert gray > 0.3, "another video, another draw"


def test_results_do_not_depend_on_groups_of_conditions_or_workers(videos):
    whole = {
        (item.index, condition): clips
        for item in corrupted_of(videos, [(i, CONDITIONS) for i in range(3)])
        for condition, clips in zip(item.conditions, item.clips, strict=True)
    }
    pieces = [(i, CONDITIONS[start : start + 2]) for i in range(3) for start in (0, 2, 4)]
    for workers in (0, 2):
        items = corrupted_of(videos, pieces, workers=workers)
        assert sorted((i.index, tuple(i.conditions)) for i in items) == sorted(
            (i, tuple(c)) for i, c in pieces
        )
        for item in items:
            for condition, clips in zip(item.conditions, item.clips, strict=True):
                assert (clips == whole[item.index, condition]).all()


def test_a_video_is_decoded_once_for_all_its_conditions(videos, monkeypatch):
    import vidrobust.data.corrupted as module

    opened = []
    real = module.open_record
    monkeypatch.setattr(
        module,
        "open_record",
        lambda record, *rest: opened.append(record.path) or real(record, *rest),
    )
    cfg = DataConfig(**(vars(CFG) | {"timeout_s": 0.0}))
    corrupted_of(videos, [(0, CONDITIONS[:3]), (1, CONDITIONS), (0, CONDITIONS[3:])], cfg=cfg)
    assert len(opened) == len(set(opened)) == 2


@pytest.mark.parametrize("timeout_s", [0.0, 20.0])
def test_a_bad_video_is_a_failure_at_every_condition(videos, timeout_s):
    cfg = DataConfig(**(vars(CFG) | {"timeout_s": timeout_s}))
    good, bad = corrupted_of(videos, [(0, CONDITIONS), (3, CONDITIONS)], cfg=cfg)
    assert (
        not [clips for clips in good.clips if isinstance(clips, Failure)]
        and bad.conditions == CONDITIONS
    )
    assert all("is empty" in clips.reason for clips in bad.clips)


def _damaged(video, path, unique):
    for number, frame in zip(unique, checked_frames(video, path, unique), strict=True):
        if number >= 45:
            raise DecodeError(f"{path}: frame {number} cannot be decoded")
        yield frame


def _broken(clip, name, *rest):
    if name == "h264_crf":
        raise RuntimeError("no more bits")
    return corrupt(clip, name, *rest)


@pytest.mark.parametrize("timeout_s", [0.0, 20.0])
def test_a_frame_that_does_not_decode_fails_those_that_need_it(videos, monkeypatch, timeout_s):
    """The result does not depend on which other conditions are requested.

    A resumed evaluation requests fewer.
    """
    import vidrobust.data.corrupted as module

    monkeypatch.setattr(module, "checked_frames", _damaged)
    children_begin_with(
        monkeypatch,
        "import vidrobust.data.corrupted as module; from tests.data.test_corrupted import"
        " _damaged\nmodule.checked_frames = _damaged",
    )
    cfg, records = DataConfig(**(vars(CFG) | {"timeout_s": timeout_s})), videos[:1]
    conditions = [
        CLEAN,
        ("contrast", 1),
        ("jumble", 5),
        ("sampling", 1),
    ]  # the last shows frames 50 and 56
    (whole,) = corrupted_of(records, [(0, conditions)], clips=1, cfg=cfg)
    failed = [isinstance(clips, Failure) for clips in whole.clips]
    assert failed == [False, False, False, True]
    assert "60.avi: frame" in whole.clips[3].reason
    for condition, clips in zip(conditions, whole.clips, strict=True):
        (alone,) = corrupted_of(records, [(0, [condition])], clips=1, cfg=cfg)
        assert isinstance(alone.clips[0], Failure) == isinstance(clips, Failure)
        assert isinstance(clips, Failure) or (alone.clips[0] == clips).all()


def test_an_encoder_error_fails_only_its_condition(videos, monkeypatch):
    import vidrobust.data.corrupted as module

    monkeypatch.setattr(module, "corrupt", _broken)
    children_begin_with(
        monkeypatch,
        "import vidrobust.data.corrupted as module; from tests.data.test_corrupted import _broken\n"
        "module.corrupt = _broken",
    )
    (item,) = corrupted_of(videos, [(0, CONDITIONS)])
    assert [isinstance(clips, Failure) for clips in item.clips] == [
        name == "h264_crf" for name, _ in CONDITIONS
    ]
    assert "60.avi: h264_crf: RuntimeError('no more bits')" in item.clips[3].reason


def test_short_videos_and_single_frames_can_be_corrupted(videos):
    seven, one = corrupted_of(videos, [(1, CONDITIONS), (2, CONDITIONS)])
    assert read_numbers(seven.clips[0][0].numpy()) == [0, 3, 6, 6]
    assert read_numbers(seven.clips[2][0].numpy()) == [
        0,
        6,
        4,
        4,
    ], "0 2 4 6 0 2 4: what is shown at 0, 3, 6"
    assert all(read_numbers(one.clips[i][0].numpy()) == [0] * 4 for i in (0, 2, 5))


def test_at_place_view_the_crop_is_corrupted(videos):
    cfg = DataConfig(frames=4, stride=3, short_side=64, size=32, workers=0)
    clean, noisy = corrupted_of(videos, [(0, [CLEAN, ("contrast", 3)])], 1, "view", cfg=cfg)[
        0
    ].clips
    assert (
        noisy[0].numpy() == corrupt(clean[0].numpy(), "contrast", 3, np.random.default_rng(0))
    ).all()


def test_large_frames_are_shrunk_first(tmp_path):
    frames = np.zeros((3, 300, 420, 3), np.uint8)
    records = [Record("a", str(encode(tmp_path / "a.mp4", frames, "mpeg4")), 0)]
    videos = corrupted_videos(
        DataConfig(frames=2, stride=1, timeout_s=0.0), records, 1, "uniform", "source", 0
    )
    assert videos.reader.read(videos.records[0], 0, [CLEAN]).frames.shape == (2, 256, 358, 3)
