"""data.in_memory: samples from memory are those from files, bit by bit."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.helpers import children_begin_with, same_batch, tiny_cifar10
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import (
    EvalBatches,
    TrainBatches,
    batch_loader,
    build_records,
    eval_dataset,
    image_memory,
    train_dataset,
)
from vidrobust.data.image_memory import read_into_memory
from vidrobust.data.records import Record
from vidrobust.utils.errors import UserError

CFG = DataConfig(name="image_folder", frames=1, short_side=32, size=32, workers=0)
COUNT = 12
BAD = 5  # of the images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noisy images of 40 x 48 pixels, one of which is cut short, and their texture twins."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for below, side in (("data", (40, 48, 3)), ("twins", (32, 32, 3))):
        for number in range(COUNT):
            path = root / below / "train" / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, side, np.uint8)).save(path)
    bad = root / "data/train" / f"class{BAD % 2}" / f"{BAD}.png"
    bad.write_bytes(bad.read_bytes()[:200])
    return root


def batches(root, wanted, augment=None, clips=2, workers=0, cfg=CFG, **options):
    """Three epochs of four batches, and the data set that they come from."""
    cfg = replace(cfg, root=str(root / "data"), twins=str(root / "twins"))
    records, _ = build_records(cfg, "train")
    cfg = replace(cfg, in_memory=wanted)
    dataset = train_dataset(cfg, augment or AugmentConfig(), records, clips, 3, **options)
    keys = TrainBatches(len(records), 3, 3, 0, 12)
    return list(batch_loader(dataset, keys, workers)), dataset


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"workers": 2, "cfg": replace(CFG, timeout_s=60.0)},
        {"augment": AugmentConfig(shift=6, blur=1.0)},
        {"augment": AugmentConfig(corruptions=["gaussian_noise"]), "original": True, "clips": 3},
        {"twins": True, "numbers": 7},
        {"cfg": replace(CFG, frames=3)},
        {"cfg": replace(CFG, interpolation="bicubic", size=56)},
    ],
    ids=["plain", "processes", "shift", "original", "twins", "frames", "bicubic"],
)
def test_samples_are_those_from_files(folder, options):
    from_files, files = batches(folder, "false", **options)
    from_memory, memory = batches(folder, "auto", **options)
    assert files.images is None
    assert memory.images.is_held.sum() == COUNT - 1 and memory.images.pixels.shape[1:3] == (40, 48)
    assert (memory.twin_images is not None) == ("twins" in options)
    for a, b in zip(from_files, from_memory, strict=True):
        assert same_batch(a, b)
        assert a.replaced == b.replaced and a.uids == b.uids
    replaced = [failure.uid for batch in from_memory for failure in batch.replaced]
    assert replaced == [f"class{BAD % 2}/{BAD}.png"] * 3  # once per epoch


def test_pixels_come_from_memory_alone(folder, tmp_path):
    """Files are not read again: samples stay the same when the files change."""
    copy = tmp_path / "data/train/a"
    copy.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((40, 40, 3), 60 * number, np.uint8)).save(copy / f"{number}.png")
    cfg = replace(CFG, root=str(tmp_path / "data"))
    records, _ = build_records(cfg, "train")
    dataset = train_dataset(cfg, AugmentConfig(jitter_prob=0, gray=0, blur=0), records, 1, 0)
    dataset.keep_in_memory(4, 0)
    for record in records:
        Image.new("RGB", (40, 40), "white").save(record.path)
    sample = dataset[0, 2]
    assert np.unique(sample["clips"].numpy()).tolist() == [120]


def test_auto_keeps_what_is_needed_and_fits(folder, monkeypatch):
    _, dataset = batches(folder, "auto")
    size = COUNT * 40 * 48 * 3

    def is_kept(wanted, reads, limit=size):
        monkeypatch.setattr(image_memory, "MOST_BYTES", limit)
        dataset.images = None
        dataset.in_memory = wanted
        dataset.keep_in_memory(reads, 0)
        return dataset.images is not None

    assert is_kept("auto", COUNT // 2 + 1) and not is_kept("auto", COUNT // 2)
    assert not is_kept("auto", COUNT, limit=size - 1)
    assert is_kept("true", 0, limit=size - 1) and not is_kept("false", COUNT)


def test_evaluations_read_them_too(folder):
    cfg = replace(CFG, root=str(folder / "data"))
    records, _ = build_records(cfg, "train")
    found = []
    for wanted in ("false", "auto"):
        dataset = eval_dataset(replace(cfg, in_memory=wanted), records, 1)
        found.append(list(batch_loader(dataset, EvalBatches(list(range(COUNT)), 5), 0)))
        assert (dataset.images is not None) == (wanted == "auto")
    for a, b in zip(*found, strict=True):
        assert same_batch(a, b) and a.failed == b.failed
    assert sum(len(batch.failed) for batch in found[1]) == 1


@pytest.mark.parametrize("name", ["other.png", "clip.avi"])
def test_other_sizes_and_videos_are_not_kept(folder, tmp_path, name):
    good = next((folder / "data/train/class0").iterdir())
    other = tmp_path / name
    Image.new("RGB", (48, 41)).save(tmp_path / "other.png")
    records = [Record("a", str(good), 0), Record("b", str(other), 0)]
    read = {"backend": "auto", "timeout_s": 0.0, "workers": 1}
    assert read_into_memory(records, "auto", **read) is None
    with pytest.raises(UserError) as error:
        read_into_memory(records, "true", **read)
    message = str(error.value)
    assert message.startswith(f"data.in_memory=true: {other} ")
    assert ("41 x 48 pixels, others 40 x 48" in message) == (name == "other.png")
    assert message.endswith("set data.in_memory=auto")


def test_a_long_list_is_not_unpacked_for_videos_or_several_sizes(folder, tmp_path):
    """Only the first records are looked at, of which there may be a million."""

    class Long(list):
        def __getitem__(self, index):
            assert index < image_memory._AT_ONCE
            return super().__getitem__(index)

        def __iter__(self):
            raise AssertionError("all records are unpacked")

    good = next((folder / "data/train/class0").iterdir())
    Image.new("RGB", (48, 41)).save(tmp_path / "other.png")
    for second in ("other.png", "clip.avi"):
        paths = [str(good), str(tmp_path / second)] * 50
        records = Long(Record(str(i), path, 0) for i, path in enumerate(paths))
        assert read_into_memory(records, "auto", backend="auto", timeout_s=0.0, workers=1) is None


def test_images_whose_reader_dies_are_read_from_their_files(folder, monkeypatch):
    children_begin_with(
        monkeypatch,
        "from vidrobust.data import image_memory, clip_reader\n"
        "import os\n"
        "image_memory._read_image = lambda *_: os._exit(3)\n",
    )
    cfg = replace(CFG, timeout_s=60.0)
    from_files, _ = batches(folder, "false", cfg=cfg)
    from_memory, dataset = batches(folder, "auto", cfg=cfg)
    assert dataset.images is None
    assert all(map(same_batch, from_files, from_memory))


def test_arrays_of_torchvision_are_kept_too(tmp_path, monkeypatch):
    root = tiny_cifar10(tmp_path, monkeypatch)
    cfg = DataConfig(name="cifar10", root=str(root), frames=1, short_side=32, size=32, workers=0)
    records, _ = build_records(cfg, "train")
    datasets = [train_dataset(cfg, AugmentConfig(), records, 2, 0) for _ in range(2)]
    datasets[1].keep_in_memory(len(records), 0)
    assert datasets[1].images.is_held.all()
    keys = [(0, index) for index in range(len(records))]
    assert same_batch(*(dataset.__getitems__(keys) for dataset in datasets))
