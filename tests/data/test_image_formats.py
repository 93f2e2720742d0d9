import numpy as np
import pytest
from PIL import Image

from tests.helpers import tiny_cifar10
from vidrobust.config import DataConfig
from vidrobust.data import (
    FORMATS,
    DecodeError,
    build_records,
    find_format,
    frame_folder,
    frame_list,
    image_folder,
    read_frames,
    torchvision_images,
)
from vidrobust.utils.errors import UserError


def _images(folder, count, size=(40, 30), first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.new("RGB", size, (first + n, 100, 200)).save(folder / f"img_{n + 1}.png")


def test_frame_lists_use_as_many_frames_as_they_list(tmp_path):
    _images(tmp_path / "frames/clip one", 12)
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("frames/clip one 11 0\n")
    (record,), classes = frame_list(tmp_path, "train", 1)
    assert record.frames == 11 and record.label == 0 and classes == ["0"]
    frames = read_frames(record.path, np.array([0, 1, 10]), frames=record.frames)
    assert frames[:, 0, 0, 0].tolist() == [0, 1, 10]  # img_2 before img_10
    for text, message in {
        "frames/clip one 0": "folder, its number of frames",
        "frames/clip one 0 0": "has 0 frames",
    }.items():
        (tmp_path / "train.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            frame_list(tmp_path, "train", 1)


def test_frame_folders_are_clips(tmp_path):
    for split in ("train", "test"):
        _images(tmp_path / split / "run" / "a.b (1)", 3)
        _images(tmp_path / split / "swim" / "c", 2)
    records, classes = frame_folder(tmp_path, "train", 1)
    assert [(r.uid, r.label) for r in records] == [
        ("run/a.b (1)", 0),
        ("swim/c", 1),
    ] and classes == ["run", "swim"]
    assert read_frames(records[0].path, np.array([2])).shape == (1, 30, 40, 3)


def test_image_folders_are_clips_of_one_frame(tmp_path):
    for split in ("train", "test"):
        _images(tmp_path / split / "cat", 2)
        _images(tmp_path / split / "dog", 1, first=50)
    records, classes = image_folder(tmp_path, "train", 1)
    assert classes == ["cat", "dog"] and [r.label for r in records] == [0, 0, 1]
    assert read_frames(records[2].path, np.array([0, 0]))[:, 0, 0].tolist() == [[50, 100, 200]] * 2


def test_cifar10_is_read_through_torchvision(tmp_path, monkeypatch):
    tiny_cifar10(tmp_path, monkeypatch)
    train, classes = build_records(DataConfig(name="cifar10", root=str(tmp_path)), "train")
    test, _ = build_records(DataConfig(name="torchvision:CIFAR10", root=str(tmp_path)), "test")
    assert (len(train), len(test), classes) == (15, 3, list("abcdefghij"))
    assert [r.label for r in test] == [5, 6, 7] and train[4].uid == "train/000004"
    frames = read_frames(test[1].path, np.array([0]))
    assert frames.shape == (1, 32, 32, 3) and frames[0, 3, 3].tolist() == [6, 5, 0]


def test_any_torchvision_data_set_is_read_by_name(tmp_path):
    for split in ("train", "valid", "test"):
        _images(tmp_path / "country211" / split / "AD", 2)
        _images(tmp_path / "country211" / split / "ZW", 1, first=9)
    records, classes = torchvision_images("Country211", tmp_path, "train", 1)
    assert [r.label for r in records] == [0, 0, 1] and classes == ["AD", "ZW"]
    assert read_frames(records[2].path, np.array([0]))[0, 0, 0].tolist() == [9, 100, 200]


def test_a_missing_torchvision_data_set_is_reported_with_the_way_to_download_it(tmp_path):
    with pytest.raises(UserError, match=r"holds no CIFAR100 .*CIFAR100\('.*', download=True\)"):
        FORMATS["cifar100"](tmp_path, "train", 1)
    with pytest.raises(UserError, match="torchvision has no such data set; did you mean 'CIFAR10'"):
        find_format("torchvision:CIFAR-10")(tmp_path, "train", 1)


def test_a_torchvision_data_set_of_one_list_is_held_out_in_part(tmp_path):
    for name in ("A", "B"):
        _images(tmp_path / "eurosat/2750" / name, 5)
    cfg = DataConfig(name="torchvision:EuroSAT", root=str(tmp_path))
    assert len(build_records(cfg, "train")[0]) == 10
    with pytest.raises(UserError, match="data.validation holds out a part of it"):
        build_records(cfg, "test")
    cfg.validation = 0.3
    assert len(build_records(cfg, "test")[0]) == 3


def test_a_torchvision_data_set_with_unknown_split_names_is_refused(tmp_path):
    with pytest.raises(UserError, match="no train split is known of it .*Unknown value 'train'"):
        torchvision_images("EMNIST", tmp_path, "train", 1)


def test_images_of_sixteen_bits_keep_their_range(tmp_path):
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_frames(tmp_path / "deep.png", np.array([0]))[0, ..., 1].ravel().tolist() == list(
        range(256)
    )
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DecodeError, match="floating-point numbers of unknown range"):
        read_frames(tmp_path / "float.tiff", np.array([0]))
