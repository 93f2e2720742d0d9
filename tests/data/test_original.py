"""The first clip as it was before augmentation, which some methods take besides their views."""

import numpy as np
import pytest
import torch

from tests.helpers import read_numbers, tiny_ucf101
from vidrobust.config import Augment, Data
from vidrobust.data import ClipSpec, eval_dataset, read_frames, train_dataset, ucf101
from vidrobust.data.decode import resize

CFG = Data(frames=3, stride=2, short_side=32, size=24, workers=0)
HARD = Augment(corruptions=["gaussian_noise"], corruption_prob=1.0)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tiny_ucf101(tmp_path_factory.mktemp("data"))
    return ucf101(root, "train", 1)[0]


def made(records, augment=HARD, **options):
    return train_dataset(CFG, augment, records, seed=3, **options)


def test_it_shows_the_frames_of_the_first_clip_as_an_evaluation_sees_them(records):
    for index in range(4):
        sample = made(records, clips=3, original=True)[1, index]
        first, _, start = sample["start"].tolist()
        assert start == first and sample["clips"].shape == (3, 3, 24, 24, 3)
        frames = read_frames(records[index].path, np.arange(first, first + 5, 2))
        side = round(min(frames.shape[1:3]) * 24 / 32)
        top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
        expected = resize(frames[:, top : top + side, left : left + side], 24, 24)
        assert np.array_equal(sample["clips"][2].numpy(), expected)
        centre = eval_dataset(CFG, records, 1)[0, index]
        assert torch.equal(sample["draws"][2], centre["draws"][0]), "nothing happens to it on the device"


def test_the_views_are_drawn_as_without_it(records):
    with_it, without = made(records, clips=3, original=True)[2, 1], made(records, clips=2)[2, 1]
    for key in ("clips", "draws", "start"):
        assert torch.equal(with_it[key][:2], without[key])


def test_the_numbers_of_whole_frames(records):
    cfg = Data(frames=4, stride=3, short_side=32, size=32, workers=0)
    sample = train_dataset(cfg, Augment(), records, clips=3, seed=0, original=True)[0, 0]
    numbers = read_numbers(sample["clips"][2].numpy())
    assert np.diff(numbers).tolist() == [3, 3, 3]


def test_pairs_in_time_are_still_pairs(records):
    cfg = Data(frames=2, stride=2, short_side=32, size=24, workers=0, sampling="interval_uniform")
    dataset = train_dataset(cfg, Augment(), records, clips=3, seed=0, original=True)
    assert dataset.draw_clips(0, 0, 20)[0].shape == (3, 2) and dataset.spec == ClipSpec(2, 2, 3)
