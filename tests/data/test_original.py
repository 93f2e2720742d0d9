"""The first clip before augmentation, which some methods use in addition to their views."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import read_numbers, tiny_ucf101
from vidrobust import config
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import ClipSpec, clip_reader, eval_dataset, read_frames, train_dataset, ucf101
from vidrobust.data.decoding.read_frames import resize
from vidrobust.data.prepare.texture_twins import twin_draw
from vidrobust.data.records import Record
from vidrobust.utils.errors import UserError
from vidrobust.views.augment import ViewDraw

CFG = DataConfig(frames=3, stride=2, short_side=32, size=24, workers=0)
HARD = AugmentConfig(corruptions=["gaussian_noise"], corruption_prob=1.0)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tiny_ucf101(tmp_path_factory.mktemp("data"))
    return ucf101(root, "train", 1)[0]


def dataset_with_original(records, augment=HARD, **options):
    return train_dataset(CFG, augment, records, seed=3, **options)


def test_the_original_shows_the_frames_of_the_first_clip_as_an_evaluation_does(records):
    for index in range(4):
        sample = dataset_with_original(records, clips=3, original=True)[1, index]
        first, _, start = sample["start"].tolist()
        assert start == first and sample["clips"].shape == (3, 3, 24, 24, 3)
        frames = read_frames(records[index].path, np.arange(first, first + 5, 2))
        side = round(min(frames.shape[1:3]) * 24 / 32)
        top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
        expected = resize(frames[:, top : top + side, left : left + side], 24, 24)
        assert np.array_equal(sample["clips"][2].numpy(), expected)
        centre = eval_dataset(CFG, records, 1)[0, index]
        assert torch.equal(sample["draws"][2], centre["draws"][0]), (
            "nothing happens to it on the device"
        )


def test_the_views_are_the_same_as_without_the_original(records):
    with_it, without = (
        dataset_with_original(records, clips=3, original=True)[2, 1],
        dataset_with_original(records, clips=2)[2, 1],
    )
    for key in ("clips", "draws", "start"):
        assert torch.equal(with_it[key][:2], without[key])


def test_the_original_shows_frames_at_the_configured_stride(records):
    cfg = DataConfig(frames=4, stride=3, short_side=32, size=32, workers=0)
    sample = train_dataset(cfg, AugmentConfig(), records, clips=3, seed=0, original=True)[0, 0]
    numbers = read_numbers(sample["clips"][2].numpy())
    assert np.diff(numbers).tolist() == [3, 3, 3]


def test_interval_pairs_are_still_pairs_with_an_original(records):
    cfg = DataConfig(
        frames=2, stride=2, short_side=32, size=24, workers=0, sampling="interval_uniform"
    )
    dataset = train_dataset(cfg, AugmentConfig(), records, clips=3, seed=0, original=True)
    assert dataset.draw_clips(0, 0, 20)[0].shape == (3, 2) and dataset.spec == ClipSpec(2, 2, 3)


def _shifted(frames, down, right):
    """Return what torchvision's RandomCrop(size, padding) returns, pixel by pixel."""
    moved = np.zeros_like(frames)
    height, width = frames.shape[1:3]
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                moved[:, y, x] = frames[:, y + down, x + right]
    return moved


@pytest.mark.parametrize("frames", [1, 3])
def test_a_shifted_view_is_black_beyond_the_frame(tmp_path, frames):
    rng = np.random.default_rng(0)
    for n in range(frames):
        image = Image.fromarray(rng.integers(1, 256, (32, 32, 3), np.uint8))
        (tmp_path / "v").mkdir(exist_ok=True)
        image.save(tmp_path / "v" / f"img_{n:05}.png")
    record = Record("v", str(tmp_path / "v"), 0)
    cfg = DataConfig(frames=frames, stride=1, short_side=32, size=32, workers=0)
    whole = read_frames(record.path, np.arange(frames))
    plain = AugmentConfig(shift=4, flip=0.0, jitter_prob=0.0, gray=0.0, blur=0.0)
    shifts = set()
    for epoch in range(40):
        clip = train_dataset(cfg, plain, [record], clips=1, seed=0)[epoch, 0]["clips"][0].numpy()
        black = (clip[0] == 0).all(-1)
        down = int(black.all(1)[16:].sum() - black.all(1)[:16].sum())
        right = int(black.all(0)[16:].sum() - black.all(0)[:16].sum())
        assert np.array_equal(clip, _shifted(whole, down, right)), (down, right)
        shifts.add((down, right))
    assert len(shifts) > 15 and max(map(max, shifts)) == 4 and min(map(min, shifts)) == -4


def test_old_memory_does_not_show_beyond_the_frame():
    frame = np.full((8, 8, 3), 200, np.uint8)
    out = np.empty((1, 8, 8, 3), np.uint8)
    room = np.full(1000, 77, np.uint8)
    boxes = clip_reader._Boxes(ViewDraw(-2, 3, 8, 8), out, room, "bilinear")
    boxes.add(frame, 0)
    boxes.resize()
    assert np.array_equal(out, _shifted(frame[None], -2, 3))


def test_the_original_may_be_shifted_and_mirrored(records):
    augment = AugmentConfig(original_shift=6, flip=0.5)
    draws = [
        dataset_with_original(records, augment, clips=3, original=True)[epoch, 0]["draws"][2]
        for epoch in range(40)
    ]
    assert 8 < sum(bool(draw[10]) for draw in draws) < 32
    assert not any(
        draw[[3, 8, 9, 11, 12]].any() for draw in draws
    )  # no hue, gray, blur, solarise, motion
    assert all(draw[:3].eq(1).all() for draw in draws)
    dataset = dataset_with_original(records, augment, clips=3, original=True)
    clips = {dataset[epoch, 0]["clips"][2].numpy().tobytes() for epoch in range(9)}
    assert len(clips) > 4  # most of these frames is flat


def test_a_texture_is_shifted_as_its_source_is():
    source = ViewDraw(-3, 4, 32, 32)
    assert twin_draw(source, (32, 32), (32, 32)) == source
    assert twin_draw(source, (32, 32), (64, 64)) == ViewDraw(-6, 8, 64, 64)
    # 6 pixels beyond the last place where it fits, of which there is one alone here, and 1.25 times
    # as large
    assert twin_draw(ViewDraw(14, 0, 32, 32), (40, 32), (40, 64)) == ViewDraw(8, 0, 40, 40)


@pytest.mark.parametrize("option", ["shift", "original_shift"])
def test_a_shift_of_the_whole_crop_is_refused(option):
    with pytest.raises(UserError, match=f"augment.{option}=32: must be less than data.size=32"):
        config.loads("", [f"augment.{option}=32", "data.size=32", "data.short_side=32"])


def test_threads_that_read_at_the_same_time_do_not_mix_their_frames(records):
    """Boxes of a sample wait in memory that is used again for the next one."""
    here = replace(CFG, timeout_s=0)  # not in a child process
    dataset = train_dataset(here, AugmentConfig(), records, clips=3, seed=3)
    keys = [(epoch, index) for epoch in range(20) for index in range(len(records))]
    expected = [dataset[key]["clips"] for key in keys]
    rooms = set()

    def read(key):
        rooms.add(clip_reader._waiting_room().ctypes.data)
        return dataset[key]["clips"]

    with ThreadPoolExecutor(2, initializer=Barrier(2).wait) as threads:
        found = list(threads.map(read, keys))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert clip_reader._waiting_room().ctypes.data not in rooms
