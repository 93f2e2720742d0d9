"""data.resize and data.interpolation: frames of a fixed shape, whatever the file's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from vidrobust import config
from vidrobust.config import DataConfig
from vidrobust.data import Record, eval_dataset, source_videos
from vidrobust.data.build import corrupted_videos
from vidrobust.utils.errors import UserError

# a window of 28 x 28 pixels of frames that become 32 x 43, as 112 of 128 x 171
CFG = DataConfig(frames=1, short_side=32, resize=[32, 43], size=28, workers=0)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A picture of 96 x 160 whose columns and rows are even ramps."""
    path = tmp_path_factory.mktemp("image") / "ramp.png"
    rows = np.linspace(20, 230, 96)[:, None].repeat(160, 1)
    columns = np.linspace(10, 240, 160)[None].repeat(96, 0)
    pixels = np.stack([rows, columns, (rows + columns) / 2], 2).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return Record("ramp", str(path), 0), pixels


def resized(pixels, interpolation="bilinear"):
    """The whole frame at 32 x 43, and its centre crop, as torchvision's transforms make them."""
    whole = tvf.resize(
        torch.from_numpy(pixels).permute(2, 0, 1),
        [32, 43],
        InterpolationMode(interpolation),
        antialias=True,
    )
    return whole.permute(1, 2, 0).int(), tvf.center_crop(whole, [28]).permute(1, 2, 0).int()


def test_the_crop_is_that_of_the_resized_frame(image):
    """Our loader resizes the box alone: apart from rounding to whole pixels, it is the same."""
    record, pixels = image
    clip = eval_dataset(CFG, [record], 1)[0, 0]["clips"][0, 0].int()
    expected = resized(pixels)[1]
    assert clip.shape == expected.shape
    assert (clip - expected).abs().max() <= 3
    kept = eval_dataset(DataConfig(**(vars(CFG) | {"resize": []})), [record], 1)
    narrow = kept[0, 0]["clips"][0, 0].int()  # 32 x 53 in place of 32 x 43: fewer columns fit
    assert (narrow - expected).abs().max() > 15


def test_an_attack_on_source_frames_sees_them_in_that_shape(image):
    record, pixels = image
    frames = source_videos(CFG, [record], 1)[0].frames
    assert frames.shape == (1, 32, 43, 3)
    assert np.array_equal(frames[0], resized(pixels)[0].numpy())


def test_corruptions_see_the_same_crop(image):
    record, _ = image
    videos = corrupted_videos(CFG, [record], 1, "uniform", "source", 0)
    videos.work = [(0, [("clean", 0)])]
    (found,) = videos
    assert torch.equal(
        torch.as_tensor(found.clips[0]).int(), eval_dataset(CFG, [record], 1)[0, 0]["clips"].int()
    )


def test_bicubic_frames_are_those_of_torchvision(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    record = Record("noise", str(tmp_path / "noise.png"), 0)
    options = vars(CFG) | {"resize": [], "interpolation": "bicubic", "size": 32}
    frames = source_videos(DataConfig(**options), [record], 1)[0].frames[0]
    clip = eval_dataset(DataConfig(**options), [record], 1)[0, 0]["clips"][0, 0]
    expected = tvf.resize(
        torch.from_numpy(pixels).permute(2, 0, 1), [32, 32], InterpolationMode.BICUBIC
    ).permute(1, 2, 0)
    assert torch.equal(torch.from_numpy(frames), expected) and torch.equal(clip, expected)
    bilinear = source_videos(DataConfig(**(options | {"interpolation": "bilinear"})), [record], 1)
    assert not np.array_equal(bilinear[0].frames[0], frames)


@pytest.mark.parametrize("words", [["data.resize=[128]"], ["data.resize=[100,171]"]])
def test_a_resize_smaller_than_the_crop_is_refused(words):
    with pytest.raises(UserError, match=r"data.resize=.* each at least data.size=112"):
        config.loads("", words)
