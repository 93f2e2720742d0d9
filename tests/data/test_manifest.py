from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import counting_video, cut, tiny_ucf101
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import (
    BACKENDS,
    ClipDataset,
    ClipSpec,
    Record,
    apply_manifest,
    build_records,
    eval_dataset,
    read_manifest,
    records_sha,
    scan,
    train_dataset,
    uniform_clips,
)
from vidrobust.data.decoding.pyav import PyAV
from vidrobust.utils.errors import UserError
from vidrobust.views import AugmentSpec


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    path = str(counting_video(tmp_path / "v.avi", 10))
    manifest = tmp_path / "m.jsonl"
    scan([path], tmp_path, manifest)
    text = manifest.read_text()
    for wrong, message in {
        text.replace('"frames": 10', '"frames": 99'): "changed or cut after its scan",
        text.splitlines()[0] + "\n": "changed or cut after its scan",
        text.replace('"format": 1', '"format": 7'): "changed or cut after its scan",
        "uid,frames\n": "is not a manifest",
        "": "is not a manifest",
    }.items():
        manifest.write_text(wrong)
        with pytest.raises(UserError, match=message):
            read_manifest(manifest)
    with pytest.raises(UserError, match="no manifest .*scan makes one"):
        read_manifest(tmp_path / "none")


def test_the_hash_depends_on_the_content_of_files(tmp_path):
    shas = []
    for folder, count in (("a", 10), ("b", 10), ("c", 11)):
        counting_video(tmp_path / folder / "v.avi", count)
        scan([str(tmp_path / folder / "v.avi")], tmp_path / folder, tmp_path / f"{folder}.jsonl")
        shas.append(read_manifest(tmp_path / f"{folder}.jsonl")[1])
    assert shas[0] == shas[1] != shas[2]


def _with_manifest(tmp_path):
    """Return a tiny UCF101 with a truncated training and an empty test video, and its manifest."""
    root = tiny_ucf101(tmp_path / "data")
    cut(root / "videos/Alpha/v_Alpha_g02_c01.avi", 0.9)
    (root / "videos/Alpha/v_Alpha_g01_c01.avi").write_bytes(b"")
    (root / "videos/Beta/v_Beta_g06_c01.avi").write_bytes(b"")
    cfg = DataConfig(
        name="ucf101",
        root=str(root),
        manifest=str(root / "m.jsonl"),
        frames=2,
        stride=2,
        short_side=32,
        size=32,
    )
    scan([str(p) for p in root.rglob("*.avi")], root, root / "m.jsonl")
    return root, cfg


def test_training_leaves_bad_videos_out_and_clamps_to_what_decodes(tmp_path, caplog):
    _, cfg = _with_manifest(tmp_path)
    records, _ = build_records(cfg, "train")
    assert (
        len(records) == 7
        and "1 of 8 train videos are bad" in caplog.text
        and "left out" in caplog.text
    )
    assert "the file is empty" in caplog.text
    frames = {record.uid: record.frames for record in records}
    cut = frames.pop("Alpha/v_Alpha_g02_c01.avi")
    assert set(frames.values()) == {20} and 0 < cut < 20
    dataset = train_dataset(cfg, AugmentConfig(), records, clips=2, seed=0)
    assert all(dataset[epoch, index]["start"].max() <= cut for epoch in range(5) for index in [0])


def test_few_labels_are_chosen_among_good_videos(tmp_path):
    """Chosen before, a bad video left its class with one fewer in some draws."""
    _, cfg = _with_manifest(tmp_path)
    for cfg.labels_seed in range(4):
        for amount in (1, 2, 3):
            cfg.labels = str(amount)
            chosen, _ = build_records(cfg, "train")
            assert sorted(record.label for record in chosen) == [0] * amount + [1] * amount


def test_evaluation_keeps_bad_videos_as_failures(tmp_path):
    _, cfg = _with_manifest(tmp_path)
    records, _ = build_records(cfg, "test")
    samples = [eval_dataset(cfg, records, 1)[0, i] for i in range(4)]
    assert [isinstance(s, dict) for s in samples] == [True, True, True, False]
    assert samples[3].reason.endswith("v_Beta_g06_c01.avi: the file is empty (manifest)")


def test_the_manifest_decides_which_decoder_reads_a_file(tmp_path, monkeypatch):
    used = []

    class Spy(PyAV):
        def __init__(self, path, frames=0, seekable=None):
            used.append(Path(path).name)
            super().__init__(path, frames, seekable)

    monkeypatch.setitem(BACKENDS, "decord", Spy)
    path = counting_video(tmp_path / "v.avi", 10)
    records = [Record("v", str(path), 0, backend="decord", frames=10, verified=("decord",))]
    for backend, times in (("auto", 1), ("pyav", 0), ("decord", 1)):
        used.clear()
        spec = ClipSpec(2, 2)
        ClipDataset(
            records,
            spec,
            lambda n, spec, rng: uniform_clips(n, spec),
            AugmentSpec(size=16),
            backend=backend,
        )[0, 0]
        assert len(used) == times


def test_results_name_their_manifest(tmp_path):
    _, cfg = _with_manifest(tmp_path)
    scanned, _ = build_records(cfg, "test")
    cfg.manifest = ""
    plain, _ = build_records(cfg, "test")
    assert records_sha(scanned) != records_sha(plain)


def test_a_manifest_of_other_data_is_refused(tmp_path):
    root, cfg = _with_manifest(tmp_path)
    counting_video(root / "videos/Beta/v_Beta_g01_c01.avi", 35)
    with pytest.raises(
        UserError, match="v_Beta_g01_c01.avi has changed since .* was written; scan again"
    ):
        build_records(cfg, "train")
    rows = [str(p) for p in (root / "videos/Alpha").iterdir()]
    scan(rows, root, root / "m.jsonl")
    with pytest.raises(UserError, match="does not know Beta/v_Beta_g01_c01.avi; scan again"):
        build_records(cfg, "train")


def test_a_list_that_promises_more_frames_than_there_are_makes_a_bad_video(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for n in range(3):
        Image.new("RGB", (30, 20)).save(folder / f"{n}.png")
    scan([str(folder)], tmp_path, tmp_path / "m.jsonl")
    records = [Record("clip", str(folder), 0, frames=5), Record("same", str(folder), 0, frames=2)]
    first, second = apply_manifest(records, tmp_path / "m.jsonl", tmp_path)
    assert first.bad == "5 frames are listed, 3 decode" and not second.bad and second.frames == 2


def test_training_on_bad_videos_only_is_refused(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    for path in root.rglob("*.avi"):
        path.write_bytes(b"")
    scan([str(p) for p in root.rglob("*.avi")], root, root / "m.jsonl")
    with pytest.raises(
        UserError, match=r"every training video is bad; .*m.jsonl.bad.txt has the reasons"
    ):
        build_records(
            DataConfig(name="ucf101", root=str(root), manifest=str(root / "m.jsonl")), "train"
        )


def test_files_outside_the_root_are_listed_by_absolute_path(tmp_path):
    path = counting_video(tmp_path / "elsewhere" / "v.avi", 10)
    (tmp_path / "root").mkdir()
    (row,) = scan([str(path)], tmp_path / "root", tmp_path / "m.jsonl")
    assert row["path"] == str(path)
    (record,) = apply_manifest([Record("v", str(path), 0)], tmp_path / "m.jsonl", tmp_path / "root")
    assert record.frames == 10


def test_arrays_in_memory_need_no_scan(tmp_path):
    with pytest.raises(UserError, match="nothing to scan"):
        scan(["torchvision:CIFAR10:train:0:/data"], tmp_path, tmp_path / "m.jsonl")
    scan([str(counting_video(tmp_path / "v.avi", 5))], tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(UserError, match="have no manifest"):
        apply_manifest(
            [Record("0", "torchvision:CIFAR10:train:0:/data", 0)], tmp_path / "m.jsonl", tmp_path
        )
