import json
import os
import re
import signal
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers import (
    SHARED,
    children_see_this_process,
    counting_frames,
    counting_video,
    cut,
    encode,
    read_numbers,
)
from vidrobust.data import (
    ClipDataset,
    ClipSpec,
    DecodeError,
    Record,
    apply_manifest,
    random_clips,
    read_frames,
    read_manifest,
    records_sha,
    scan,
    uniform_clips,
)
from vidrobust.data.scan import probe
from vidrobust.utils.errors import UserError
from vidrobust.views import AugmentSpec

COUNT = 40


def _h264(path, **options):
    return encode(path, counting_frames(COUNT), "libx264", **options)


def _noisy(path, codec, **container):
    """Return numbered frames under noise, so that most bytes of the file are frames, not header."""
    noise = np.random.default_rng(0).integers(-40, 41, (COUNT, 64, 64, 3))
    frames = np.clip(counting_frames(COUNT).astype(int) + noise, 0, 255).astype(np.uint8)
    with av.open(str(path), "w", options=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width = stream.height = 64
        stream.codec_context.gop_size, stream.codec_context.qmax = 10, 4
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


def _no_frames(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        out.start_encoding()
    return path


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """Return files that are wrong, each in its own way."""
    top = tmp_path_factory.mktemp("faults")
    rng = np.random.default_rng(0)  # of fresh ones FFmpeg takes 1 in 150 for sound, or for an image
    cut(_noisy(top / "cut.avi", "mpeg4"), 0.6)
    cut(
        _noisy(top / "cut_over_reporting.mp4", "libx264", movflags="faststart"), 0.5
    )  # it opens: its header is first
    cut(_h264(top / "cut_without_header.mp4"), 0.6)
    (top / "empty.avi").touch()
    (top / "empty.mp4").touch()
    (top / "random.avi").write_bytes(rng.bytes(20_000))
    (top / "random.mp4").write_bytes(rng.bytes(20_000))
    (top / "text.avi").write_text("not found")
    _no_frames(top / "zero_duration.avi")
    _no_frames(top / "zero_duration.mp4")
    with av.open(str(top / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    (top / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + rng.bytes(100))
    (top / "no_images").mkdir()
    return top


@pytest.fixture(scope="module")
def scanned(faults, tmp_path_factory):
    manifest = tmp_path_factory.mktemp("manifest") / "m.jsonl"
    rows = scan(map(str, faults.iterdir()), faults, manifest, timeout_s=20)
    return {row["path"]: row for row in rows}, manifest


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.avi", "the file is empty"),
        ("empty.mp4", "the file is empty"),
        ("random.avi", "not a video file, or cut short"),
        ("random.mp4", "not a video file, or cut short"),
        ("text.avi", "not a video file, or cut short"),
        ("cut_without_header.mp4", ""),
        ("zero_duration.avi", ""),
        ("zero_duration.mp4", ""),
        ("sound.mp4", "holds no video stream"),
        ("broken.png", "not an image, or cut short"),
        ("no_images", "the folder holds no image"),
    ],
)
def test_a_file_without_frames_is_bad_with_a_reason(scanned, name, reason):
    row = scanned[0][name]
    assert row["frames"] == 0 and row["reason"] and reason in row["reason"], row


@pytest.mark.parametrize("name", ["cut.avi", "cut_over_reporting.mp4"])
def test_the_remaining_frames_of_a_truncated_file_are_counted_and_read(faults, scanned, name):
    """The number that the container declares is never trusted."""
    row = scanned[0][name]
    assert 0 < row["frames"] < COUNT and re.search(
        "declares 40 frames|decodes up to", row["reason"]
    ), row
    whole = np.arange(row["frames"])
    frames = read_frames(faults / name, whole, frames=row["frames"], backend=row["backend"])
    assert read_numbers(frames[:-1]) == whole[:-1].tolist()  # the last may be half there
    with pytest.raises(DecodeError):
        read_frames(
            faults / name, np.array([COUNT - 1]), frames=row["frames"], backend=row["backend"]
        )


def test_the_list_of_bad_files_names_each_with_its_reason(scanned):
    rows, manifest = scanned
    listed = [line.split("\t") for line in Path(f"{manifest}.bad.txt").read_text().splitlines()]
    assert listed == [
        [row["path"], f"{row['frames']} frames", row["reason"]]
        for _, row in sorted(rows.items())
        if row["reason"]
    ]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_property_flipped_bits_never_make_a_reader_hang_or_lie(tmp_path, codec):
    """Whichever bits are flipped, the frames that a manifest promises can be read, in one size."""
    suffix = ".avi" if codec == "mpeg4" else ".mp4"
    seed = int(np.random.default_rng().integers(2**31))
    rng = np.random.default_rng(seed)
    whole = encode(tmp_path / f"whole{suffix}", counting_frames(COUNT), codec).read_bytes()
    for trial in range(12):
        content = np.frombuffer(whole, np.uint8).copy()
        positions = rng.integers(0, len(content), int(rng.integers(1, 60)))
        content[positions] ^= (1 << rng.integers(0, 8, len(positions))).astype(np.uint8)
        (tmp_path / f"{trial:02d}{suffix}").write_bytes(content.tobytes())
    paths = [str(path) for path in sorted(tmp_path.glob(f"[0-9]*{suffix}"))]
    rows = scan(paths, tmp_path, tmp_path / "m.jsonl", timeout_s=10)
    for path, row in zip(paths, rows, strict=True):
        assert row["path"] == Path(path).name
        if row["frames"]:
            data = ClipDataset(
                [Record(row["path"], path, 0, frames=row["frames"], backend=row["backend"])],
                ClipSpec(4, 2, 3),
                random_clips,
                AugmentSpec(size=16),
                timeout_s=10,
            )
            for epoch in range(3):
                assert isinstance(data[epoch, 0], dict), (seed, row, data[epoch, 0])
        else:
            assert row["reason"], row


def test_a_probe_that_hangs_or_crashes_ends_as_a_bad_file(tmp_path, monkeypatch):
    def probes(path, **options):
        if "hang" in Path(path).name:
            time.sleep(60)
        if "crash" in Path(path).name:
            os.kill(os.getpid(), signal.SIGSEGV)
        return probe(path)

    monkeypatch.setitem(scan.__globals__, "probe", probes)  # the package's `scan` is the function
    children_see_this_process(monkeypatch)
    for name in ("a", "hang", "b", "crash"):
        counting_video(tmp_path / f"{name}.avi", 12)
    rows = scan(map(str, tmp_path.glob("*.avi")), tmp_path, tmp_path / "m.jsonl", timeout_s=0.5)
    assert [(row["path"], row["frames"], row["reason"]) for row in rows] == [
        ("a.avi", 12, ""),
        ("b.avi", 12, ""),
        ("crash.avi", 0, "the decoder crashed (SIGSEGV)"),
        ("hang.avi", 0, "no answer within 0.5 s"),
    ]


def test_the_row_of_a_good_file_describes_it(tmp_path):
    wide = np.repeat(counting_frames(15), 2, axis=2)
    _h264(tmp_path / "h.mkv")
    encode(tmp_path / "turned.mp4", wide, "mpeg4", quarter_turns=1)
    encode(tmp_path / "vfr.mp4", counting_frames(6), "libx264", times=[0, 40, 200, 240, 900, 940])
    Image.new("RGB", (30, 20)).save(tmp_path / "i.png")
    rows = {
        r["path"]: r
        for r in scan([str(p) for p in tmp_path.iterdir()], tmp_path, tmp_path / "m.jsonl")
    }
    expected = {
        "frames": 40,
        "fps": 25.0,
        "width": 64,
        "height": 64,
        "rotation": 0,
        "backend": "pyav",
        "reason": "",
    }
    assert expected.items() <= rows["h.mkv"].items()
    turned = rows["turned.mp4"]
    assert (turned["frames"], turned["width"], turned["height"]) == (15, 128, 64) and abs(
        turned["rotation"]
    ) == 90
    assert rows["vfr.mp4"]["frames"] == 6
    image = rows["i.png"]
    assert (image["frames"], image["width"], image["height"], image["fps"]) == (1, 30, 20, 0.0)


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "v.avi"
    whole = counting_video(tmp_path / "whole" / "v.avi", 30).read_bytes()
    path.write_bytes(whole[:2000])

    def finished_meanwhile(name, **options):
        row = probe(name)
        path.write_bytes(whole)
        return row

    with monkeypatch.context() as patch:
        patch.setitem(scan.__globals__, "probe", finished_meanwhile)
        children_see_this_process(patch)
        (row,) = scan([str(path)], tmp_path, tmp_path / "m.jsonl")
    assert row["frames"] == 0
    with pytest.raises(UserError, match="has changed since"):
        apply_manifest([Record("v", str(path), 0)], tmp_path / "m.jsonl", tmp_path)
    (row,) = scan([str(path)], tmp_path, tmp_path / "m.jsonl")
    assert row["frames"] == 30 and row["reason"] == ""


def test_missing_files_and_strange_names_have_rows_like_others(tmp_path):
    names = [
        "tab\there.avi",
        "new\nline.avi",
        os.fsdecode(b"not\xffutf8.avi"),
        'quo"te.avi',
        "ünï.avi",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dangling.avi").symlink_to(tmp_path / "nothing")
    paths = [str(tmp_path / name) for name in (*names, "dangling.avi", "gone.avi")]
    rows = {row["path"]: row for row in scan(paths, tmp_path, tmp_path / "m.jsonl")}
    assert (
        len(rows) == 7
        and "no such file" in rows["gone.avi"]["reason"]
        and rows["gone.avi"]["bytes"] == -1
    )
    assert len((tmp_path / "m.jsonl.bad.txt").read_bytes().splitlines()) == 7
    counting_video(tmp_path / "gone.avi", 9)
    again = {row["path"]: row for row in scan(paths, tmp_path, tmp_path / "m.jsonl")}
    assert again["gone.avi"]["frames"] == 9
    assert apply_manifest(
        [Record(n, str(tmp_path / n), 0) for n in names], tmp_path / "m.jsonl", tmp_path
    )[2].bad
    assert len(records_sha([Record(names[2], "/v", 0)])) == 16


def test_files_that_were_too_slow_are_tried_again(tmp_path, monkeypatch):
    path = str(counting_video(tmp_path / "v.avi", 10))
    with monkeypatch.context() as patch:
        patch.setitem(scan.__globals__, "probe", lambda path, **options: time.sleep(30))
        children_see_this_process(patch)
        (row,) = scan([path], tmp_path, tmp_path / "m.jsonl", timeout_s=0.2)
    assert row["reason"] == "no answer within 0.2 s"
    assert scan([path], tmp_path, tmp_path / "m.jsonl")[0]["frames"] == 10


def test_a_damaged_manifest_is_made_anew(tmp_path, caplog):
    path = str(counting_video(tmp_path / "v.avi", 10))
    (tmp_path / "m.jsonl").touch()
    assert (
        scan([path], tmp_path, tmp_path / "m.jsonl")[0]["frames"] == 10
        and "every file is read" in caplog.text
    )


@pytest.mark.parametrize("name", ["v.avi", "train.csv", "."])
def test_only_a_manifest_is_overwritten(tmp_path, name):
    path = counting_video(tmp_path / "v.avi", 10)
    (tmp_path / "train.csv").write_text("v.avi 0\n")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match="not overwritten|is a folder"):
        scan([str(path)], tmp_path, tmp_path / name)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_manifest_that_cannot_be_written_is_reported_before_the_first_probe(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(scan.__globals__, "in_children", lambda *arguments: pytest.fail("probed"))
    with pytest.raises(OSError):
        scan(
            [str(counting_video(tmp_path / "v.avi", 10))], tmp_path, tmp_path / "v.avi" / "m.jsonl"
        )


def test_the_next_scan_notices_a_replaced_frame(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for n in range(3):
        Image.new("RGB", (30, 20)).save(folder / f"{n}.png")
    assert scan([str(folder)], tmp_path, tmp_path / "m.jsonl")[0]["frames"] == 3
    (folder / "1.png").write_bytes(b"")
    (row,) = scan([str(folder)], tmp_path, tmp_path / "m.jsonl")
    assert row["frames"] == 1 and row["reason"] == "1.png: the file is empty"


def _counted_probes(monkeypatch, tmp_path):
    log = tmp_path / "probed.txt"

    def probes(path, **options):
        with open(log, "a") as file:
            file.write(Path(path).name + "\n")
        return probe(path)

    monkeypatch.setitem(scan.__globals__, "probe", probes)  # the package's `scan` is the function
    children_see_this_process(monkeypatch)
    return lambda: sorted(log.read_text().split()) if log.exists() else []


def test_a_second_scan_reads_only_what_is_new_or_changed(tmp_path, monkeypatch):
    probed = _counted_probes(monkeypatch, tmp_path)
    videos, manifest = tmp_path / "v", tmp_path / "m.jsonl"
    paths = [str(counting_video(videos / f"{n}.avi", 10)) for n in range(4)]
    scan(paths, videos, manifest)
    assert probed() == ["0.avi", "1.avi", "2.avi", "3.avi"]
    first = manifest.read_bytes()
    scan(paths, videos, manifest)
    assert len(probed()) == 4 and manifest.read_bytes() == first
    counting_video(videos / "1.avi", 11)
    (videos / "0.avi").unlink()
    rows = scan([*paths[1:], str(counting_video(videos / "4.avi", 12))], videos, manifest)
    assert probed() == ["0.avi", "1.avi", "1.avi", "2.avi", "3.avi", "4.avi"]
    assert [(row["path"], row["frames"]) for row in rows] == [
        ("1.avi", 11),
        ("2.avi", 10),
        ("3.avi", 10),
        ("4.avi", 12),
    ]


def test_an_interrupted_scan_continues_where_it_was(tmp_path, monkeypatch):
    probed = _counted_probes(monkeypatch, tmp_path)
    paths = [str(counting_video(tmp_path / "v" / f"{n}.avi", 10)) for n in range(6)]
    first_probed = []

    def interrupted(*arguments):
        for result in in_children(*arguments):
            first_probed.append(result)
            if len(first_probed) == 3:
                raise KeyboardInterrupt
            yield result

    in_children = scan.__globals__["in_children"]
    monkeypatch.setitem(scan.__globals__, "in_children", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan(paths, tmp_path, tmp_path / "m.jsonl", workers=1)
    assert len(read_manifest(tmp_path / "m.jsonl")[0]) == 2
    monkeypatch.setitem(scan.__globals__, "in_children", in_children)
    assert len(scan(paths, tmp_path, tmp_path / "m.jsonl", workers=1)) == 6 and len(probed()) <= 8


@pytest.mark.skipif(not (SHARED / "testclips").is_dir(), reason="needs ../shared/data/testclips")
def test_odd_clips_decode_or_fail_with_a_reason(tmp_path):
    top = SHARED / "testclips"
    rows = {
        r["path"]: r
        for r in scan([str(p) for p in top.iterdir()], top, tmp_path / "m.jsonl", timeout_s=60)
    }
    assert len(rows) == 8
    for name, row in rows.items():
        assert row["frames"] or row["reason"], row
        if row["frames"]:
            indices = uniform_clips(row["frames"], ClipSpec(8, 2, 2)).ravel()
            frames = read_frames(top / name, indices, frames=row["frames"], backend=row["backend"])
            turned = row["rotation"] % 180 == 90
            height, width = (
                (row["width"], row["height"]) if turned else (row["height"], row["width"])
            )
            assert frames.shape == (16, height, width, 3), (name, row)
    assert rows["decord_corrupted.mp4"]["reason"]
    assert abs(rows["decord_video_90.mov"]["rotation"]) == 90
    assert json.dumps(rows)
