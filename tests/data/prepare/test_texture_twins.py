"""Texture twins: how they are made, and how the loader pairs them with their files."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import counting_frames, counting_video, read_numbers, same_batch, tiny_ucf101
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import Failure, Record, TrainBatches, batch_loader, train_dataset, ucf101
from vidrobust.data.prepare.texture_twins import Twins, texture_frames, twin_draw
from vidrobust.utils.errors import UserError
from vidrobust.views import DRAW_COLUMNS
from vidrobust.views.augment import ViewDraw

CFG = DataConfig(frames=3, stride=2, short_side=32, size=24, workers=0)


@pytest.fixture
def paired(tmp_path):
    """Return a data set and one of other frame sizes, with equal names and frame numbers."""
    root, twins = tiny_ucf101(tmp_path / "data"), tmp_path / "twins"
    for c, name in enumerate(("Alpha", "Beta")):
        for i in range(6):
            counting_video(
                twins / f"videos/{name}/v_{name}_g{i + 1:02d}_c01.avi",
                20,
                first=1000 * c + 50 * i,
                size=96,
            )
    return root, twins


def _dataset(root, twins, records=None, **options):
    records = records or ucf101(root, "train", 1)[0]
    cfg = DataConfig(**vars(CFG) | {"root": str(root), "twins": str(twins)})
    whole = AugmentConfig(scale=[1.0, 1.0], jitter_prob=0.5)
    return train_dataset(cfg, whole, records, clips=2, seed=7, twins=True, **options)


@pytest.mark.parametrize("kind", ["still", "moving"])
@pytest.mark.parametrize("count", [1, 5])
def test_a_texture_has_as_many_frames_as_its_clip(kind, count):
    """Frame n of the clip is grey level 40 n, plus the same noise in every frame.

    Its texture is 40 n if it moves, and 40 * (count // 2) if it is still.
    """
    noise = np.random.default_rng(0).integers(0, 30, (40, 50, 3))
    clip = np.stack([40 * n + noise for n in range(count)]).astype(np.uint8)

    def texture(seed, size=224):
        rng = np.random.default_rng(seed)
        return np.stack(
            list(texture_frames(iter(clip), count, rng, kind=kind, patch_px=96, size=size))
        )

    frames_made = texture(0)
    assert frames_made.shape == (count, 40, 40, 3) and texture(0, 24).shape == (count, 24, 24, 3)
    numbers = frames_made.reshape(count, -1).min(1) // 40
    assert numbers.tolist() == (list(range(count)) if kind == "moving" else [count // 2] * count)
    assert (frames_made == texture(0)).all() and (frames_made != texture(1)).any()
    assert kind == "still" or (np.diff(frames_made.astype(int), axis=0) == 40).all(), (
        "each place keeps its noise"
    )


def test_the_twin_shows_the_frames_of_the_first_clip_under_its_view(paired):
    dataset = _dataset(*paired)
    for index in range(4):
        sample = dataset[0, index]
        assert sample["clips"].shape == (3, 3, 24, 24, 3) and sample["draws"].shape == (
            3,
            DRAW_COLUMNS,
        )
        first, _, twin = (read_numbers(clip.numpy()) for clip in sample["clips"])
        assert twin == first and torch.equal(sample["draws"][2], sample["draws"][0])
        assert sample["start"].shape == (2,)
    assert any(
        read_numbers(dataset[0, i]["clips"][1].numpy())
        != read_numbers(dataset[0, i]["clips"][0].numpy())
        for i in range(4)
    )


def test_views_are_the_same_as_without_twins(paired):
    records, _ = ucf101(paired[0], "train", 1)
    plain = train_dataset(
        CFG, AugmentConfig(scale=[1.0, 1.0], jitter_prob=0.5), records, clips=2, seed=7
    )
    for index in range(3):
        a, b = plain[1, index], _dataset(*paired)[1, index]
        assert torch.equal(a["clips"], b["clips"][:2]) and torch.equal(a["draws"], b["draws"][:2])


def test_twins_do_not_depend_on_workers_and_child_processes(paired):
    in_process, by_workers = (
        [*batch_loader(_dataset(*paired), TrainBatches(8, 4, 7, 0, 3), workers)]
        for workers in (0, 2)
    )
    assert all(same_batch(a, b) for a, b in zip(in_process, by_workers, strict=True))
    watched = _dataset(*paired)
    watched.timeout_s = 0.0
    assert torch.equal(_dataset(*paired)[0, 1]["clips"], watched[0, 1]["clips"])


def test_a_twin_that_is_missing_stops_the_run_before_it_begins(paired):
    root, twins = paired
    (twins / "videos/Alpha/v_Alpha_g02_c01.avi").unlink()
    with pytest.raises(
        UserError, match="1 of 8 files have no texture, first .*g02_c01.avi; python datasets"
    ):
        _dataset(root, twins)
    with pytest.raises(UserError, match="data.twins is empty"):
        _dataset(root, "")


def test_a_twin_that_is_too_short_or_broken_is_a_bad_video(paired):
    root, twins = paired
    counting_video(twins / "videos/Alpha/v_Alpha_g01_c01.avi", 3)
    (twins / "videos/Alpha/v_Alpha_g02_c01.avi").write_bytes(b"")
    dataset = _dataset(root, twins)
    dataset.replace = False
    for index, reason in (
        (0, "not all within its 3 frames"),
        (1, "twins/videos/Alpha/v_Alpha_g02_c01.avi"),
    ):
        sample = dataset[0, index]
        assert isinstance(sample, Failure) and reason in sample.reason


def test_a_folder_of_frames_whose_twin_misses_a_frame_is_a_bad_video(tmp_path):
    for top in ("data", "twins"):
        (tmp_path / top / "v").mkdir(parents=True)
        for n in range(9):
            Image.fromarray(counting_frames(1, 32, n)[0]).save(tmp_path / top / f"v/{n:02d}.png")
    dataset = _dataset(
        tmp_path / "data", tmp_path / "twins", [Record("v", str(tmp_path / "data/v"), 0)]
    )
    dataset.replace = False
    assert not isinstance(dataset[0, 0], Failure)
    (tmp_path / "twins/v/03.png").unlink()
    sample = dataset[0, 0]
    assert (
        isinstance(sample, Failure)
        and "twins/v: the texture has 8 frames, the video 9" in sample.reason
    )


def test_a_box_keeps_its_shape_and_fraction_of_the_area_in_a_twin_of_another_size():
    draw = ViewDraw(10, 60, 100, 150)
    assert twin_draw(draw, (240, 320), (240, 320)) is draw
    assert twin_draw(draw, (240, 320), (120, 80)) == ViewDraw(6, 10, 35, 53)
    assert twin_draw(draw, (240, 320), (480, 640)) == ViewDraw(20, 120, 200, 300)
    assert twin_draw(ViewDraw(0, 40, 240, 240), (240, 320), (64, 64)) == ViewDraw(0, 4, 55, 55)
    assert twin_draw(ViewDraw(0, 0, 240, 320), (240, 320), (64, 64)) == ViewDraw(0, 0, 48, 64), (
        "what fits of it"
    )
    for draw in (
        ViewDraw(0, 0, 1, 1),
        ViewDraw(239, 319, 1, 1),
        ViewDraw(0, 0, 240, 320),
        ViewDraw(3, 7, 236, 311),
    ):
        for size in ((1, 1), (7, 224), (1000, 3)):
            small = twin_draw(draw, (240, 320), size)
            assert small.top >= 0 and small.top + small.height <= size[0] and small.height > 0
            assert small.left >= 0 and small.left + small.width <= size[1] and small.width > 0


def test_a_twin_is_corrupted_as_its_clip_is(paired):
    root, twins = paired
    records, _ = ucf101(root, "train", 1)
    cfg = DataConfig(**vars(CFG) | {"root": str(root), "twins": str(root.parent / "same")})
    (root.parent / "same").symlink_to(twins)
    shutil.rmtree(twins)
    shutil.copytree(root, twins)  # each is its own twin, but for what is drawn
    changed = AugmentConfig(corruptions=["gaussian_noise", "fog"], corruption_prob=0.7)
    dataset = train_dataset(cfg, changed, records, clips=2, seed=7, twins=True)
    plain = train_dataset(cfg, AugmentConfig(), records, clips=2, seed=7, twins=True)
    changes = 0
    for index in range(8):
        clips = dataset[0, index]["clips"]
        assert torch.equal(clips[2], clips[0])
        changes += not torch.equal(clips[0], plain[0, index]["clips"][0])
    assert changes > 2


def test_a_file_is_never_its_own_twin(tmp_path):
    with pytest.raises(UserError, match="the files are not their own textures"):
        Twins(str(tmp_path), f"{tmp_path}/").require([Record("a", f"{tmp_path}/a.avi", 0)])
    with pytest.raises(
        UserError,
        match="data.twins=.*/t: no such folder; python datasets/prepare.py texture makes it",
    ):
        Twins(f"{tmp_path}/lists", f"{tmp_path}/t").require(
            [Record("a", f"{tmp_path}/lists/a.avi", 0)]
        )
    (tmp_path / "t").mkdir()
    with pytest.raises(UserError, match="v/a.avi is outside .*lists, and has no texture"):
        Twins(f"{tmp_path}/lists", f"{tmp_path}/t").require([Record("a", f"{tmp_path}/v/a.avi", 0)])


def test_copies_that_are_not_textures_are_refused_and_doubtful_ones_are_reported(paired, caplog):
    root, twins = paired
    _dataset(root, twins)
    assert "was not made by prepare.py texture: its files are used as they are" in caplog.text
    mark, files = twins / "prepared.json", sorted((root / "videos").rglob("*.avi"))
    mark.write_text(json.dumps({"short_side": 16}))
    with pytest.raises(
        UserError,
        match="holds copies that are not textures; datasets/prepare.py texture makes them",
    ):
        _dataset(root, twins)
    sizes = {str(file.relative_to(root)): file.stat().st_size for file in files}
    caplog.clear()
    mark.write_text(json.dumps({"texture": "still", "sources": sizes}))
    _dataset(root, twins)
    assert not caplog.records
    mark.write_text(
        json.dumps(
            {"texture": "still", "sources": {name: size + 1 for name, size in sizes.items()}}
        )
    )
    _dataset(root, twins)
    assert "textures of files that have other sizes" in caplog.text
    caplog.clear()  # both are of the same third data set
    (root / "prepared.json").write_text(
        json.dumps({"sources": {name: size + 1 for name, size in sizes.items()}})
    )
    _dataset(root, twins)
    assert not caplog.records


def test_paths_mirror_the_data_set():
    twins = Twins("/data/ucf", "/made/")
    assert twins("/data/ucf/videos/a.avi") == "/made/videos/a.avi"


def test_data_sets_in_memory_have_no_twins():
    with pytest.raises(UserError, match="torchvision's data sets are arrays"):
        Twins("a", "b").require([Record("0", "torchvision:CIFAR10:train:0:root", 0)])


def test_frames_that_are_too_small_have_no_texture():
    with pytest.raises(ValueError, match="side=9: patches must be at most as large as the frames"):
        next(
            texture_frames(
                iter(counting_frames(1, 8)),
                1,
                np.random.default_rng(0),
                kind="still",
                patch_px=9,
                size=8,
            )
        )
