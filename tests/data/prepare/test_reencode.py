import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import (
    children_begin_with,
    counting_frames,
    counting_video,
    encode,
    read_numbers,
    tiny_ucf101,
)
from vidrobust.config import DataConfig
from vidrobust.data import (
    Encoding,
    Record,
    all_records,
    build_records,
    open_video,
    read_frames,
    reencode,
    scan,
)
from vidrobust.data.prepare.reencode import _partial
from vidrobust.data.scan import probe
from vidrobust.utils.errors import UserError


def _records(*paths):
    return [Record(path.name, str(path), 0) for path in paths]


def _state(folder):
    return {
        path.relative_to(folder): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _frames(path):
    count = probe(str(path))["frames"]
    return read_frames(path, np.arange(count))


def _key_frames(path):
    with open_video(path) as video:
        return video.timeline[1]


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("mpeg4", ".avi"), ("libx264", ".mp4"), ("mjpeg", ".mkv"), ("mpeg4", ".mov")],
)
def test_the_result_is_small_and_shows_the_same_frames(tmp_path, codec, suffix):
    wide = np.repeat(counting_frames(30, size=128), 2, axis=2)
    (tmp_path / "a").mkdir()
    source = encode(tmp_path / "a" / f"v{suffix}", wide, "mpeg4")
    assert (
        reencode(_records(source), tmp_path / "a", tmp_path / "b", Encoding(32, 6, codec, 3)) == []
    )
    result = tmp_path / "b" / source.name
    result_frames = _frames(result)
    assert result_frames.shape == (30, 32, 64, 3) and read_numbers(result_frames) == list(range(30))
    assert probe(str(result))["fps"] == 25.0
    assert _key_frames(result) == list(range(0, 30, 1 if codec == "mjpeg" else 6))


def test_frames_are_never_enlarged_and_sizes_are_even(tmp_path):
    top = tmp_path / "a"
    top.mkdir()
    source = encode(
        top / "v.mkv", counting_frames(5, 64)[:, :62, :36], "libx264", pix_fmt="yuv444p"
    )
    reencode(_records(source), top, tmp_path / "b", Encoding(short_side=128))
    assert _frames(tmp_path / "b/v.mkv").shape == (5, 62, 36, 3)
    reencode(_records(source), top, tmp_path / "c", Encoding(short_side=20))
    assert _frames(tmp_path / "c/v.mkv").shape == (5, 34, 20, 3)


def test_rotated_videos_are_written_upright(tmp_path):
    top = tmp_path / "a"
    top.mkdir()
    wide = np.repeat(counting_frames(8, size=64), 2, axis=2)
    source = encode(top / "v.mp4", wide, "mpeg4", quarter_turns=1)
    assert reencode(_records(source), top, tmp_path / "b", Encoding(32)) == []
    row = probe(str(tmp_path / "b/v.mp4"))
    assert (row["height"], row["width"], row["rotation"]) == (64, 32, 0)
    before, after = _frames(source), _frames(tmp_path / "b/v.mp4")
    small = before.reshape(8, 64, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(small - after).mean() < 8


def test_unusual_sources_become_files_that_can_be_read_by_number(tmp_path):
    """After re-encoding, every decoder and every seek finds the same frames.

    The sources are an AVI with B-frames and a video of varying frame rate.
    """
    top = tmp_path / "a"
    top.mkdir()
    frames = counting_frames(40)
    sources = [
        encode(top / "b.avi", frames, "libx264", options={"g": "12", "bf": "2"}),
        encode(
            top / "vfr.mp4", frames, "libx264", times=[40 * n + 15 * (n % 3) for n in range(40)]
        ),
    ]
    assert reencode(_records(*sources), top, tmp_path / "b", Encoding(64)) == []
    for source in sources:
        for backend in ("pyav", "decord"):
            indices = np.array([3, 17, 18, 39])
            assert (
                read_numbers(read_frames(tmp_path / "b" / source.name, indices, backend=backend))
                == indices.tolist()
            )


def test_the_source_is_unchanged_and_lists_are_copied(tmp_path):
    root = tiny_ucf101(tmp_path / "a")
    before = _state(root)
    records, _ = build_records(DataConfig(name="ucf101", root=str(root)), "train")
    assert reencode(records, root, tmp_path / "b", Encoding(32)) == []
    assert _state(root) == before
    small, classes = build_records(DataConfig(name="ucf101", root=str(tmp_path / "b")), "train")
    assert [r.uid for r in small] == [r.uid for r in records] and classes == ["Alpha", "Beta"]
    assert _frames(small[3].path).shape == (20, 32, 32, 3)


def test_a_second_call_makes_only_missing_copies(tmp_path):
    root = tiny_ucf101(tmp_path / "a")
    records, _ = build_records(DataConfig(name="ucf101", root=str(root)), "train")
    reencode(records, root, tmp_path / "b", Encoding(32))
    copies = sorted((tmp_path / "b").rglob("*.avi"))
    whole = _state(tmp_path / "b")
    copies[0].unlink()
    _partial(copies[0]).write_bytes(b"of a call that was killed")
    assert reencode(records, root, tmp_path / "b", Encoding(32)) == []
    after = _state(tmp_path / "b")
    videos = [path for path in whole if path.suffix == ".avi" and ".partial" not in path.name]
    assert {p: after[p][0] for p in videos} == {
        p: whole[p][0] for p in videos
    }  # the same bytes again
    assert sum(after[p] != whole[p] for p in videos) == 1


@pytest.mark.parametrize("where", ["a/small", ".", "a"])
def test_source_and_result_must_not_contain_each_other(tmp_path, where):
    path = counting_video(tmp_path / "a/v.avi", 5)
    with pytest.raises(UserError, match="lie in each other"):
        reencode(_records(path), tmp_path / "a", tmp_path / where, Encoding())


def test_a_folder_of_another_encoding_or_of_other_files_is_refused(tmp_path):
    path = counting_video(tmp_path / "a/v.avi", 5)
    reencode(_records(path), tmp_path / "a", tmp_path / "b", Encoding(32))
    with pytest.raises(UserError, match="holds files of another encoding .short_side=32, not 48"):
        reencode(_records(path), tmp_path / "a", tmp_path / "b", Encoding(48))
    assert json.loads((tmp_path / "b/prepared.json").read_text())["short_side"] == 32
    (tmp_path / "c").mkdir()
    (tmp_path / "c/x").touch()
    with pytest.raises(UserError, match="holds other files"):
        reencode(_records(path), tmp_path / "a", tmp_path / "c", Encoding(32))


def _short(path, **options):
    row = probe(path)
    return row | {"frames": row["frames"] - 1} if ".partial" in path else row


def test_files_that_do_not_decode_or_encode_are_reported_and_empty(tmp_path, monkeypatch):
    good, bad = counting_video(tmp_path / "a/good.avi", 9), tmp_path / "a/bad.avi"
    bad.write_bytes(b"no video")
    records = _records(good, bad, tmp_path / "a/gone.avi")
    failed = reencode(records, tmp_path / "a", tmp_path / "b", Encoding(32))
    reasons = {Path(path).name: reason for path, reason in failed}
    assert reasons.keys() == {"bad.avi", "gone.avi"} and "not a video file" in reasons["bad.avi"]
    assert {p.name: p.stat().st_size > 0 for p in (tmp_path / "b").rglob("*")} == {
        "good.avi": True,
        "bad.avi": False,
        "gone.avi": False,
        "prepared.json": True,
    }
    counting_video(bad, 7)  # mended
    failed = reencode(records, tmp_path / "a", tmp_path / "b", Encoding(32))
    assert [Path(path).name for path, _ in failed] == ["gone.avi"] and len(
        _frames(tmp_path / "b/bad.avi")
    ) == 7
    children_begin_with(
        monkeypatch,
        "from vidrobust.data import reencode; from tests.data.prepare.test_reencode import _short\n"
        "reencode.__globals__['probe'] = _short",  # the package's `reencode` is the function
    )
    ((_, reason),) = reencode(_records(good), tmp_path / "a", tmp_path / "c", Encoding(32))
    assert reason == "8 frames of the result decode, the source has 9"
    assert (tmp_path / "c/good.avi").stat().st_size == 0


def test_a_bad_video_is_bad_in_the_result_and_its_list_still_fits(tmp_path):
    root = tiny_ucf101(tmp_path / "a")
    (root / "videos/Alpha/v_Alpha_g02_c01.avi").write_bytes(b"x")
    records = all_records(DataConfig(name="ucf101", root=str(root)))
    assert len(reencode(records, root, tmp_path / "b", Encoding(32))) == 1
    cfg = DataConfig(name="ucf101", root=str(tmp_path / "b"), manifest=str(tmp_path / "m.jsonl"))
    scan([record.path for record in all_records(cfg)], tmp_path / "b", tmp_path / "m.jsonl")
    assert len(build_records(cfg, "train")[0]) == 7


def test_damage_in_the_source_is_reported(tmp_path, caplog):
    frames = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
    (tmp_path / "a").mkdir()
    path = encode(tmp_path / "a/v.avi", frames, "mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reencode(_records(path), tmp_path / "a", tmp_path / "b", Encoding(32)) == []
    assert "used as far as it decodes" in caplog.text
    assert re.search("declares 40 frames|decodes up to frame .* of 40", caplog.text)  # FFmpeg 7, 8


def test_links_are_written_under_the_name_that_lists_use(tmp_path):
    pool, root = tmp_path / "pool", tmp_path / "a"
    pool.mkdir()
    counting_video(pool / "p.avi", 9)
    (tmp_path / "lists").mkdir()
    (root / "x").mkdir(parents=True)
    for n in range(6):  # several names of one file, made at a time
        (root / f"x/{n}.avi").symlink_to(pool / "p.avi")
    (tmp_path / "lists/names.txt").write_text("x/0.avi 0\n")
    (root / "l").symlink_to(tmp_path / "lists")
    records = [Record(f"x/{n}.avi", str(root / f"x/{n}.avi"), 0) for n in range(6)]
    assert reencode(records, root, tmp_path / "b", Encoding(32), workers=4) == []
    for n in range(6):
        path = tmp_path / f"b/x/{n}.avi"
        assert not path.is_symlink() and _frames(path).shape == (9, 32, 32, 3)
    assert (tmp_path / "b/l/names.txt").read_text() == "x/0.avi 0\n" and len(
        _frames(pool / "p.avi")
    ) == 9


@pytest.mark.parametrize("uid", ["{top}/a/v.avi", "../x/v.avi"])
def test_names_that_a_copy_cannot_have_are_refused_before_anything_is_written(tmp_path, uid):
    counting_video(tmp_path / "a/v.avi", 5)
    counting_video(tmp_path / "x/v.avi", 5)
    uid = uid.format(top=tmp_path)
    with pytest.raises(UserError, match="list files relative to"):
        reencode(
            [Record(uid, str(tmp_path / "a" / uid), 0)],
            tmp_path / "a",
            tmp_path / "b",
            Encoding(32),
        )
    assert not (tmp_path / "b").exists()


def test_a_copy_that_cannot_be_made_does_not_stop_others(tmp_path):
    paths = [counting_video(tmp_path / f"a/{n}/v.avi", 5) for n in range(3)]
    long = counting_video(tmp_path / "a" / f"{'n' * 250}.avi", 5)
    (tmp_path / "b").mkdir()
    records = [Record(str(p.relative_to(tmp_path / "a")), str(p), 0) for p in (*paths, long)]
    reencode(records[:1], tmp_path / "a", tmp_path / "b", Encoding(32))
    (tmp_path / "b/1").write_text("in the way of a folder")
    ((path, reason),) = reencode(records, tmp_path / "a", tmp_path / "b", Encoding(32))
    assert path == str(paths[1]) and reason
    assert len(_frames(tmp_path / "b" / long.name)) == len(_frames(tmp_path / "b/2/v.avi")) == 5


def test_a_source_that_has_changed_is_made_again(tmp_path):
    path = counting_video(tmp_path / "a/v.avi", 5)
    reencode(_records(path), tmp_path / "a", tmp_path / "b", Encoding(32))
    counting_video(path, 8)
    reencode(_records(path), tmp_path / "a", tmp_path / "b", Encoding(32))
    assert len(_frames(tmp_path / "b/v.avi")) == 8


def test_an_encoder_that_hangs_is_killed(tmp_path, monkeypatch):
    path = counting_video(tmp_path / "a/v.avi", 5)
    children_begin_with(
        monkeypatch,
        "import time; from vidrobust.data import reencode\nreencode.__globals__['_encode_video'] ="
        " lambda source, target, *_: target.touch() or time.sleep(60)",
    )
    ((_, reason),) = reencode(
        _records(path), tmp_path / "a", tmp_path / "b", Encoding(), timeout_s=0.4
    )
    assert reason == "no answer within 0.4 s"
    assert {p.name for p in (tmp_path / "b").rglob("*")} == {"prepared.json", "v.avi"}


def test_images_and_folders_of_frames(tmp_path):
    top = tmp_path / "a"
    (top / "clip").mkdir(parents=True)
    for n in range(3):
        Image.new("RGB", (60, 40), (80 * n, 0, 0)).save(top / "clip" / f"{n}.jpg")
    Image.new("RGB", (60, 40), (0, 200, 0)).save(top / "i.png")
    records = [Record("clip", str(top / "clip"), 0), Record("i.png", str(top / "i.png"), 0)]
    assert reencode(records, top, tmp_path / "b", Encoding(20)) == []
    frames = read_frames(tmp_path / "b/clip", np.arange(3))
    assert frames.shape == (3, 20, 30, 3) and np.abs(frames[:, 5, 5, 0] - [0, 80, 160]).max() <= 2
    assert read_frames(tmp_path / "b/i.png", np.array([0]))[0, 3, 3].tolist() == [0, 200, 0]
    assert Image.open(tmp_path / "b/i.png").format == "PNG"


def test_lists_in_json_are_copied_but_not_the_marks_of_this_package(tmp_path):
    source = tmp_path / "source"
    path = source / "20bn-something-something-v2/7.webm"
    path.parent.mkdir(parents=True)
    encode(path, counting_frames(5), "libvpx-vp9")
    for name in ("labels.json", "prepared.json", "motionshapes.json"):
        (source / name).write_text('{"a": "0"}')
    uid = "20bn-something-something-v2/7.webm"
    output = tmp_path / "copy"
    assert not reencode([Record(uid, str(path), 0)], source, output, Encoding(), workers=1)
    assert (output / "labels.json").read_text() == '{"a": "0"}'
    assert (output / uid).stat().st_size > 0
    assert "codec" in json.loads((output / "prepared.json").read_text())
    assert not (output / "motionshapes.json").exists()
