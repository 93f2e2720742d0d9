"""Data sets in tar archives: samples are those of loose files, bit by bit."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import (
    SHARED,
    counting_video,
    has_backend,
    tiny_hmdb51,
    tiny_kinetics,
    tiny_ucf101,
    tool,
)
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import (
    DecodeError,
    all_records,
    build_records,
    doubt_of_twins,
    eval_dataset,
    open_video,
    read_frames,
    records_sha,
    scan,
    tar_index,
    texture_twins,
    train_dataset,
)
from vidrobust.data.places import split_archive
from vidrobust.data.prepare.pack import pack
from vidrobust.data.tar_index import require_index
from vidrobust.utils.errors import UserError


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def _pictures(root: Path, pattern: str) -> Path:
    """Write two images for each of two splits and classes."""
    for number in range(8):
        split, name = ("train", "test")[number // 4], "ab"[number // 2 % 2]
        _picture(root / pattern.format(split=split, name=name, number=number), number)
    return root


def _folders_of_frames(root: Path) -> Path:
    for split in ("train", "test"):
        for number in range(4):
            for frame in range(1, 13):
                place = f"{split}/{'ab'[number // 2]}/clip{number}/img_{frame}.png"
                _picture(root / place, 100 * number + frame)
    return root


def _listed_frames(root: Path) -> Path:
    _folders_of_frames(root)
    for split in ("train", "test"):
        lines = [f"{split}/{'ab'[n // 2]}/clip{n} 12 {n // 2}\n" for n in range(4)]
        (root / f"{split}.txt").write_text("".join(lines))
    return root


def _listed_arrays(root: Path) -> Path:
    for split in ("train", "test"):
        lines = []
        for number in range(4):
            (root / "clips").mkdir(parents=True, exist_ok=True)
            frames = np.random.default_rng(number).integers(0, 256, (9, 20, 24, 3), np.uint8)
            np.save(root / f"clips/{split} {number}.npy", frames)
            lines.append(f"clips/{split} {number}.npy {number // 2}\n")
        (root / f"{split}.csv").write_text("".join(lines))
    return root


DATA_SETS = {
    "ucf101": tiny_ucf101,
    "hmdb51": tiny_hmdb51,
    "kinetics": tiny_kinetics,
    "image_folder": lambda root: _pictures(root, "{split}/{name}/{number}.png"),
    "class_folder": lambda root: _pictures(root, "{name}/{number}.png"),
    "frame_folder": _folders_of_frames,
    "frames": _listed_frames,
    "list": _listed_arrays,
}


def _configured(name: str, root: Path, **options) -> DataConfig:
    if name == "class_folder":
        options |= {"validation": 0.5}
    options = {"timeout_s": 0.0, **options}  # no child processes, which take a second to start
    return DataConfig(name=name, root=str(root), frames=2, stride=2, size=16, **options)


def _archived(cfg: DataConfig, archive: Path) -> DataConfig:
    """Return the options that read an archive, and nothing else."""
    return replace(cfg, root="/no such folder", archive=str(archive))


def _packed(root: Path, archive: Path) -> Path:
    pack(root, archive)
    return archive


def _require_same_samples(loose: DataConfig, archived: DataConfig) -> None:
    for split in ("train", "test"):
        records, classes = build_records(loose, split)
        others, other_classes = build_records(archived, split)
        assert classes == other_classes
        assert records_sha(records) == records_sha(others)
        assert [replace(r, path="") for r in records] == [replace(r, path="") for r in others]
        assert all(".tar/" in record.path for record in others)
        for make in (
            lambda cfg, listed: train_dataset(cfg, AugmentConfig(), listed, 2, seed=3),
            lambda cfg, listed: eval_dataset(cfg, listed, 2),
        ):
            for one, other in zip(
                map(make(loose, records).__getitem__, [(1, i) for i in range(len(records))]),
                map(make(archived, others).__getitem__, [(1, i) for i in range(len(records))]),
                strict=True,
            ):
                assert isinstance(one, dict)
                assert one.keys() == other.keys()
                for key, value in one.items():
                    if isinstance(value, torch.Tensor):
                        assert torch.equal(value, other[key])
                    else:
                        assert value == other[key]


@pytest.mark.parametrize("name", DATA_SETS)
def test_samples_of_an_archive_are_those_of_loose_files(tmp_path, name):
    root = DATA_SETS[name](tmp_path / "data")
    cfg = _configured(name, root, timeout_s=60.0 if name == "ucf101" else 0.0)
    _require_same_samples(cfg, _archived(cfg, _packed(root, tmp_path / "data.tar")))


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
@pytest.mark.parametrize("frames", [1, 4])
def test_other_decoders_read_the_same_frames_from_an_archive(tmp_path, backend, frames):
    if not has_backend(backend):
        pytest.skip(f"{backend} does not load")
    root = tiny_ucf101(tmp_path / "data", train=1, test=1)
    cfg = replace(_configured("ucf101", root, backend=backend), frames=frames)
    _require_same_samples(cfg, _archived(cfg, _packed(root, tmp_path / "data.tar")))


@pytest.mark.skipif(not (SHARED / "odd_files").is_dir(), reason="needs ../shared/data/odd_files")
def test_odd_videos_are_read_from_an_archive_as_loose_files(tmp_path):
    """FFmpeg recognises members by their content, without a suffix."""
    archive = _packed(SHARED / "odd_files", tmp_path / "x.tar")
    require_index(archive)
    videos = [f for f in (SHARED / "odd_files").iterdir() if f.suffix in (".mp4", ".mkv", ".avi")]
    assert len(videos) > 8
    for file in videos:
        results = []
        for place in (file, archive / file.name):
            try:
                with open_video(place) as video:
                    last = video.num_frames - 1
                    results.append([last, *video.frames(np.unique([0, last // 2, last]))])
            except DecodeError as error:
                results.append([str(error).removeprefix(str(place))])
        for one, other in zip(*results, strict=True):
            assert np.array_equal(one, other)


def test_members_seem_to_be_unpacked_in_the_root(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    archive = tmp_path / "videos.tar"
    (tmp_path / "rest").mkdir()
    shutil.move(root / "videos", tmp_path / "rest/videos")
    _packed(tmp_path / "rest", archive)
    records, _ = build_records(DataConfig(root=str(root), archive=str(archive)), "train")
    assert records[0].path == f"{archive}/videos/Alpha/v_Alpha_g01_c01.avi"


def test_several_archives_are_one_data_set(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    whole = _configured("ucf101", root)
    loose = tmp_path / "parts"
    for part in ("videos/Alpha", "videos/Beta", "ucfTrainTestlist"):
        shutil.copytree(root / part, loose / part.replace("/", "-") / part)
    archives = tmp_path / "archives"
    for part in sorted(loose.iterdir()):
        _packed(part, archives / f"{part.name}.tar")
    for text in (archives, archives / "*.tar"):
        _require_same_samples(whole, _archived(whole, text))
    _packed(loose / "videos-Beta", archives / "again.tar")
    with pytest.raises(UserError, match="v_Beta_g01_c01.avi is in .*videos-Beta.tar and in an"):
        build_records(_archived(whole, archives), "train")


def test_frames_of_a_clip_lie_in_one_archive(tmp_path):
    root = _folders_of_frames(tmp_path / "data")
    archives = tmp_path / "archives"
    (tmp_path / "one/train/a/clip0").mkdir(parents=True)
    shutil.move(root / "train/a/clip0/img_3.png", tmp_path / "one/train/a/clip0/img_3.png")
    _packed(root, archives / "a.tar")
    _packed(tmp_path / "one", archives / "b.tar")
    with pytest.raises(UserError, match="the frames of a/clip0 are in .*a.tar and in .*b.tar"):
        build_records(_archived(_configured("frame_folder", root), archives), "train")


def test_a_missing_member_is_reported_as_a_missing_file(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (root / "videos/Beta/v_Beta_g02_c01.avi").unlink()
    cfg = _configured("ucf101", root)
    archived = _archived(cfg, _packed(root, tmp_path / "data.tar"))
    with pytest.raises(UserError) as loose:
        build_records(cfg, "train")
    with pytest.raises(UserError) as packed:
        build_records(archived, "train")
    assert str(packed.value) == str(loose.value).replace(str(root), "/no such folder")


def test_an_archive_of_the_folder_itself_gets_a_hint(tmp_path):
    tiny_ucf101(tmp_path / "top/data")
    archive = _packed(tmp_path / "top", tmp_path / "data.tar")
    with pytest.raises(UserError, match=r"lie in the folder data: .* pack what is in it"):
        build_records(DataConfig(archive=str(archive)), "train")


def test_data_sets_that_are_not_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    archive = _packed(tiny_ucf101(tmp_path / "data"), tmp_path / "data.tar")
    for name in ("cifar10", "torchvision:SVHN", "motionshapes"):
        with pytest.raises(UserError, match=r"data.archive=.*: data.name=.* is not read from"):
            build_records(DataConfig(name=name, archive=str(archive)), "train")
    assert not Path("datasets/motionshapes").exists()


# ------------------------------------------------------------------ the index


def _write(archive: Path, *members: tuple[str, bytes], **options) -> Path:
    with tarfile.open(archive, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _names(archive: Path) -> dict[str, int]:
    return {member.name: member.length for member in require_index(archive)}


HOSTILE = (
    "a/line\nbreak.avi",
    "a/<b>&\x1b[31m.avi",
    "a/caf\u00e9.avi",
    "a/cafe\u0301.avi",
    "a/\udcff\udcfe.avi",
    "a/" + "long" * 60 + ".avi",
    "a/b.tar/c.avi",
    "a/%2F,,:end,9,subfile,:.avi",
)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_with_any_character_are_found(tmp_path, form):
    video = counting_video(tmp_path / "v.avi", 5).read_bytes()
    options = {"format": form, "encoding": "utf-8", "errors": "surrogateescape"}
    archive = _write(tmp_path / "x.tar", *((name, video) for name in HOSTILE), **options)
    index = require_index(archive)
    assert [index.find(name).length for name in HOSTILE] == [len(video)] * len(HOSTILE)
    assert index.find("a/nothing.avi") is None
    expected = read_frames(tmp_path / "v.avi", np.arange(5))
    for name in HOSTILE:
        assert np.array_equal(read_frames(f"{archive}/{name}", np.arange(5)), expected)


def test_an_archive_in_an_odd_place_is_read(tmp_path):
    folder = tmp_path / "a,b:c,,:end\n.tar"
    expected = read_frames(counting_video(tmp_path / "v.avi", 5), np.arange(5))
    folder.mkdir()
    archive = _write(folder / "x.tar", ("v.avi", (tmp_path / "v.avi").read_bytes()))
    require_index(archive)
    assert split_archive(f"{archive}/v.avi") == (str(archive), "v.avi")
    assert np.array_equal(read_frames(f"{archive}/v.avi", np.arange(5)), expected)


def test_names_outside_the_archive_and_devices_are_left_out(tmp_path, caplog):
    archive = _write(tmp_path / "x.tar", ("../up", b"1"), ("a/../../up", b"2"), ("./c/d", b"3"))
    with tarfile.open(archive, "a") as tar:
        device = tarfile.TarInfo("null")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    index = require_index(archive)
    assert _names(archive) == {"c": -1, "c/d": 1}
    assert index.left_out == (3, "../up")


def test_the_last_of_members_of_one_name_counts(tmp_path):
    archive = _write(tmp_path / "x.tar", ("a.npy", b"first"), ("b", b""), ("./a.npy", b"last"))
    assert _names(archive) == {"a.npy": 4, "b": 0}


def test_links_to_members_are_resolved(tmp_path):
    archive = _write(tmp_path / "x.tar", ("a/one", b"123"))
    with tarfile.open(archive, "a") as tar:
        for name, kind, target in (
            ("a/later", tarfile.LNKTYPE, "b/none"),
            ("f", tarfile.DIRTYPE, ""),
            ("a/folder", tarfile.LNKTYPE, "f"),
            ("a/hard", tarfile.LNKTYPE, "a/one"),
            ("b/soft", tarfile.SYMTYPE, "../a/hard"),
            ("b/lost", tarfile.SYMTYPE, "/etc/passwd"),
            ("b/loop", tarfile.SYMTYPE, "loop"),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = target
            tar.addfile(info)
    index = require_index(archive)
    assert index.find("a/hard").offset == index.find("b/soft").offset == index.find("a/one").offset
    assert index.left_out[0] == 4


def test_a_hard_link_has_the_content_that_its_target_had(tmp_path):
    archive = _write(tmp_path / "x.tar", ("a", b"old"))
    link = tarfile.TarInfo("b")
    link.type = tarfile.LNKTYPE
    link.linkname = "a"
    new = tarfile.TarInfo("a")
    new.size = 5
    with tarfile.open(archive, "a") as tar:
        tar.addfile(link)
        tar.addfile(new, io.BytesIO(b"newer"))
    assert _names(archive) == {"a": 5, "b": 3}


@pytest.mark.parametrize("tail", [b"", b"z" * 2000])
@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_sparse_member_replaces_an_earlier_one_and_is_left_out(tmp_path, form, tail):
    archive = tmp_path / "x.tar"
    tar = ["tar", f"--format={form}", "-C", tmp_path]
    (tmp_path / "a").write_bytes(b"old")
    subprocess.run([*tar, "-cf", archive, "a"], check=True)
    with open(tmp_path / "a", "wb") as file:
        file.truncate(1 << 20)
    subprocess.run([*tar, "-Srf", archive, "a"], check=True)
    if tail:
        (tmp_path / "z").write_bytes(tail)
        subprocess.run([*tar, "-rf", archive, "z"], check=True)
    assert _names(archive) == ({"z": 2000} if tail else {})
    assert require_index(archive).left_out == (1, "a")


def test_what_follows_the_end_mark_is_refused(tmp_path):
    whole = _write(tmp_path / "whole.tar", *((name, b"1" * 700) for name in "abc")).read_bytes()
    archive = tmp_path / "x.tar"
    hole = whole[:1536] + bytes(1536) + whole[3072:]
    for content in (hole, whole + whole, whole + bytes(2 << 20)):
        archive.write_bytes(content)
        with pytest.raises(UserError, match="is damaged, or several .* goes on to byte"):
            require_index(archive)


def test_an_archive_that_is_cut_short_is_refused_wherever_it_ends(tmp_path):
    whole = _write(tmp_path / "whole.tar", ("a", b"1" * 1000), ("b/c", b"2" * 1000)).read_bytes()
    archive = tmp_path / "x.tar"
    # in a header, in data, in padding after data, at the end of a member, in the end mark
    for size in (0, 100, 512, 900, 1512, 1530, 1536, 1900, 2048, 3047, 3060, 3072, 3300):
        archive.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"data.archive=.*/x.tar: .*(copy it|pack)"):
            require_index(archive)
    archive.write_bytes(whole[:900])
    with pytest.raises(
        UserError, match="member a reaches to byte 1512, and the file ends at .*900"
    ):
        require_index(archive)
    archive.write_bytes(whole[:1536])
    with pytest.raises(UserError, match="cut short: .* at byte 1536, after member a"):
        require_index(archive)
    damaged = bytearray(whole)
    damaged[1536 + 20] ^= 255
    archive.write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged: .* at byte 1536, after member a"):
        require_index(archive)
    assert not list(tmp_path.glob("*.index"))
    archive.write_bytes(whole[:3584])
    assert _names(archive) == {"a": 1000, "b": -1, "b/c": 1000}


def test_other_files_than_archives_are_refused(tmp_path):
    for mode, kind in (("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")):
        tarfile.open(tmp_path / "x.tar", mode).close()
        with pytest.raises(UserError, match=rf"is compressed \({kind}\).* decompress it first"):
            require_index(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(b"no archive" * 200)
    with pytest.raises(UserError, match="is not a tar archive"):
        require_index(tmp_path / "x.tar")
    for name, message in {
        "none.tar": "no such file",
        "empty": "no .tar file in this folder",
        "x.tar.gz": "is no .tar file; compressed archives must be decompressed",
    }.items():
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "x.tar.gz").touch()
        with pytest.raises(UserError, match=message):
            build_records(DataConfig(archive=str(tmp_path / name)), "train")


def test_a_changed_archive_is_indexed_again(tmp_path):
    archive = _write(tmp_path / "x.tar", ("a", b"1"))
    require_index(archive)
    made = (tmp_path / "x.tar.index").stat().st_mtime_ns
    require_index(archive)
    assert (tmp_path / "x.tar.index").stat().st_mtime_ns == made
    _write(archive, ("b", b"2"))
    os.utime(archive, ns=(1, 1))
    assert _names(archive) == {"b": 1}


def test_a_damaged_index_is_built_again(tmp_path):
    archive = _write(tmp_path / "x.tar", ("a", b"1"), ("b", b"22"))
    require_index(archive)
    file = tmp_path / "x.tar.index"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    swaps = ((b'"members": 2', b'"members": 1'), (b'"members": 2', b'"members": 9'))
    swaps += (
        (b'"left_out"', b'"left_ouu"'),
        (b'"size"', b'"sizf"'),
        (b'"mtime_ns"', b'"mtime_nt"'),
    )
    others = [whole.replace(*swap) for swap in swaps]
    assert whole not in others
    for content in (
        b"",
        whole[:300],
        whole[:-3],
        bytes(flipped),
        whole.replace(b'"size": ', b'"'),
        *others,
    ):
        file.unlink()  # not written over: it is mapped into memory
        file.write_bytes(content)
        tar_index._mapped.cache_clear()  # as in a new process
        assert _names(archive) == {"a": 1, "b": 2}
        assert len(file.read_bytes()) == len(whole)


def test_an_index_that_is_killed_before_its_end_leaves_nothing(tmp_path, monkeypatch):
    archive = _write(tmp_path / "x.tar", ("a", b"1"))
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: os._exit(9))
        pid = os.fork()
        if pid == 0:
            require_index(archive)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert not (tmp_path / "x.tar.index").exists()
    assert _names(archive) == {"a": 1}


def test_the_index_of_a_folder_without_write_access_lies_in_the_cache(tmp_path, monkeypatch):
    archive = _write(tmp_path / "x.tar", ("a", b"1"))
    (tmp_path / "x.tar.index").mkdir()  # root may write anywhere, but not over a folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _names(archive) == {"a": 1}
    assert len(list((tmp_path / "cache/vidrobust").iterdir())) == 1
    (tmp_path / "cache/vidrobust").rename(tmp_path / "old")
    (tmp_path / "cache/vidrobust").write_text("a file")
    os.utime(archive, ns=(1, 1))
    with pytest.raises(
        UserError, match=r"can be written neither into .*x.tar.index .* nor .*cache"
    ):
        require_index(archive)


# ------------------------------------------------------------------ reading


def test_a_read_of_a_changed_archive_fails(tmp_path):
    video = counting_video(tmp_path / "v.avi", 5).read_bytes()
    archive = _write(tmp_path / "x.tar", ("v.avi", video))
    require_index(archive)
    read_frames(f"{archive}/v.avi", np.arange(5))
    with pytest.raises(DecodeError, match="x.tar/w.avi: the archive has no such member"):
        read_frames(f"{archive}/w.avi", np.arange(5))
    archive.write_bytes(archive.read_bytes()[:-512])
    with pytest.raises(DecodeError, match="x.tar/v.avi: the archive .* has changed .* start again"):
        read_frames(f"{archive}/v.avi", np.arange(5))
    archive.unlink()
    with pytest.raises(DecodeError, match="x.tar/v.avi: the archive is gone"):
        read_frames(f"{archive}/v.avi", np.arange(5))


def test_damaged_members_are_reported_as_damaged_files(tmp_path):
    video = counting_video(tmp_path / "v.avi", 40).read_bytes()
    for name, content in (("cut.avi", video[:-4000]), ("empty.avi", b""), ("text.png", b"text")):
        (tmp_path / "loose").mkdir(exist_ok=True)
        (tmp_path / "loose" / name).write_bytes(content)
    archive = _packed(tmp_path / "loose", tmp_path / "x.tar")
    require_index(archive)
    for name in ("cut.avi", "empty.avi", "text.png"):
        reasons = []
        for place in (tmp_path / "loose", archive):
            with pytest.raises(DecodeError) as error:
                read_frames(place / name, np.arange(40))
            reasons.append(str(error.value).removeprefix(str(place)))
        assert reasons[0] == reasons[1]


def test_reads_leave_no_descriptor_open(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    _picture(root / "p.png", 1)
    archive = _packed(root, tmp_path / "x.tar")
    require_index(archive)
    paths = [f"{archive}/p.png", f"{archive}/videos/Alpha/v_Alpha_g01_c01.avi"]
    counts = []
    for _ in range(3):
        for _ in range(20):
            for path in paths:
                with open_video(path) as video:
                    list(video.frames(np.arange(video.num_frames)))
        counts.append(len(os.listdir("/proc/self/fd")))
    assert len(set(counts)) == 1


def test_a_scan_of_loose_files_is_true_of_the_archive(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    cfg = _configured("ucf101", root)
    scan([record.path for record in all_records(cfg)], root, tmp_path / "loose.jsonl")
    archived = _archived(cfg, _packed(root, tmp_path / "x.tar"))
    paths = [record.path for record in all_records(archived)]
    rows = scan(paths, Path(archived.root), tmp_path / "packed.jsonl")
    again = scan(paths, Path(archived.root), tmp_path / "packed.jsonl")
    assert again == rows
    lists = [
        build_records(replace(options, manifest=str(manifest)), "train")[0]
        for options, manifest in (
            (cfg, tmp_path / "loose.jsonl"),
            (archived, tmp_path / "loose.jsonl"),
            (archived, tmp_path / "packed.jsonl"),
        )
    ]
    assert lists[0][0].frames == 20
    assert lists[1] == lists[2]
    assert [replace(r, path="") for r in lists[0]] == [replace(r, path="") for r in lists[1]]


# ------------------------------------------------------------------ packing


def test_the_same_files_give_the_same_archive(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (root / "videos/Empty").mkdir()
    (root / ".hidden").touch()
    (root / "old.tar").touch()
    (root / "link.avi").symlink_to(root / "videos/Alpha/v_Alpha_g01_c01.avi")
    shutil.copytree(root, tmp_path / "copy")
    archives = [tmp_path / "a.tar", root / "b.tar"]
    assert pack(root, archives[0]) == (16, 2)
    with pytest.raises(UserError, match="is a folder"):
        pack(root, _folder(tmp_path / "folder.tar"), overwrite=True)
    pack(tmp_path / "copy", archives[1])
    assert archives[0].read_bytes() == archives[1].read_bytes()
    names = _names(archives[0])
    assert list(names) == sorted(names)
    assert names["videos/Empty"] == -1
    assert names["link.avi"] == names["videos/Alpha/v_Alpha_g01_c01.avi"] > 0
    assert not {".hidden", "old.tar"} & set(names)


def test_an_interrupted_pack_leaves_the_old_archive(tmp_path, monkeypatch):
    root = tiny_ucf101(tmp_path / "data")
    archive = _packed(root, tmp_path / "x.tar")
    before = archive.read_bytes()
    with pytest.raises(UserError, match="x.tar: exists; .* --overwrite"):
        pack(root, archive)
    monkeypatch.setattr(
        tarfile.TarFile, "addfile", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        pack(root, archive, overwrite=True)
    assert archive.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "x.tar"]


def test_the_command_packs_and_other_commands_read_loose_files(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    words = [f"data.root={root}", "--output", tmp_path / "x.tar"]
    done = tool("prepare", "pack", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "15 files of" in done.stderr
    for command, output, message in (
        ("pack", "x.tar", "x.tar: exists"),
        ("pack", "y.tgz", "the name of an archive ends in .tar"),
        ("resize", "small", "resize reads loose files; unpack the archive"),
    ):
        words = [f"data.root={root}", "--output", tmp_path / output]
        if command == "resize":
            words.append(f"data.archive={tmp_path / 'x.tar'}")
        done = tool("prepare", command, *words, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
    words = ["data.root=none", f"data.archive={tmp_path / 'x.tar'}"]
    done = tool("prepare", "scan", *words, cwd=tmp_path)
    assert f"12 files, 0 bad, 0 damaged but used: {tmp_path}/x.tar.manifest.jsonl" in done.stderr
    assert (tmp_path / "x.tar.manifest.jsonl").is_file() and not (tmp_path / "none").exists()
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        part = tmp_path / "parts" / name / "videos" / "Alpha"
        part.mkdir(parents=True)
        (part / f"v_Alpha_g01_c0{'ab'.index(name) + 1}.avi").write_bytes(b"x")
        _packed(tmp_path / "parts" / name, tmp_path / f"two/{name}.tar")
    words = ["data.name=class_folder", "data.root=none", f"data.archive={tmp_path / 'two'}"]
    done = tool("prepare", "scan", *words, cwd=tmp_path)
    assert "2 archives, and no folder data.root=none for a manifest; set --output" in done.stderr
    words = ["scan", f"data.root={root}", "--fractions=0.5,0.5,0"]
    done = tool("prepare", *words, cwd=tmp_path)
    assert "scan does not read --fractions, which is for split" in done.stderr
    done = tool("prepare", "split", f"data.root={root}", "--quality=3", cwd=tmp_path)
    assert "split does not read --quality, which is for resize, corrupt, texture" in done.stderr


def test_texture_twins_of_members_have_the_names_of_loose_files(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    archive = _packed(root, tmp_path / "x.tar")
    shutil.copytree(root / "videos", tmp_path / "twins/videos")
    videos = sorted((root / "videos").rglob("*.avi"))
    sources = {file.relative_to(root).as_posix(): file.stat().st_size for file in videos}
    mark = tmp_path / "twins/prepared.json"
    mark.write_text(json.dumps({"texture": "moving", "sources": sources}))
    cfg = replace(_archived(_configured("ucf101", root), archive), twins=str(tmp_path / "twins"))
    records, _ = build_records(cfg, "train")
    twins = texture_twins(cfg, records, 1)
    assert twins.records[0].path == f"{tmp_path}/twins/videos/{records[0].uid}"
    assert doubt_of_twins(cfg) == ""
    mark.write_text(json.dumps({"texture": "moving", "sources": dict.fromkeys(sources, 1)}))
    assert "files that have other sizes" in doubt_of_twins(cfg)
