"""A frame number is the rank of a frame in the order in which a player shows frames."""

import io
import struct
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import (
    SHARED,
    counting_frames,
    encode,
    needs_ucf101_mini,
    read_numbers,
    with_not_coded,
)
from vidrobust.config import DataConfig
from vidrobust.data import (
    ClipSpec,
    DecodeError,
    Record,
    apply_manifest,
    build_records,
    class_folder,
    clip_reader,
    open_video,
    random_clips,
    read_frames,
    scan,
)
from vidrobust.data.clip_reader import ClipReader
from vidrobust.data.decoding import pyav as decoders
from vidrobust.data.decoding.agreement import disagreement
from vidrobust.data.decoding.images import _in_order, frame_files
from vidrobust.data.decoding.pyav import _shows
from vidrobust.data.decoding.read_frames import BACKENDS, open_record
from vidrobust.data.prepare.reencode import Encoding, reencode
from vidrobust.data.scan import notes, probe
from vidrobust.utils.errors import UserError
from vidrobust.views import AugmentSpec

ODD = SHARED / "odd_files"
needs_odd_files = pytest.mark.skipif(not ODD.is_dir(), reason="needs ../shared/data/odd_files")


def _check_every_read(path, count, first=0, manifest=None):
    """Read every frame alone, all in one batch, and after seeks, with and without a manifest."""
    record = Record(path.name, str(path), 0)
    scanned = [record]
    if manifest is not None:
        scan([str(path)], path.parent, manifest)
        scanned += apply_manifest([record], manifest, path.parent)
    for each in scanned:
        for indices in (
            *([n] for n in range(count)),
            [40, 42, 44],
            list(range(count)),
            [12, 13, 77],
        ):
            with open_record(each) as video:
                assert video.num_frames == count
                shown = read_numbers(np.stack(list(video.frames(np.array(indices)))))
            assert shown == [first + n for n in indices], (path.name, each.seekable, indices)


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv"])
def test_pictures_that_are_not_coded_do_not_count_as_frames(tmp_path, suffix):
    path = with_not_coded(tmp_path / f"v{suffix}", counting_frames(90), every=7)
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert packets == 102
    _check_every_read(path, 90, manifest=tmp_path / "m.jsonl")
    assert probe(str(path))["seekable"] is False and probe(str(path))["reason"] == ""


@pytest.mark.parametrize(
    ("codec", "packet", "frames"),
    [
        ("h264", b"\x00\x00\x00\x01", 1),
        ("mpeg4", b"\x00\x00\x01\xb6\x51\xcf", 0),
        ("mpeg4", b"\x00\x00\x01\xb6" + bytes(60), 1),
        ("mpeg4", b"\x00\x00\x01\xb6" + bytes(60) + b"\x00\x00\x01\xb6" + bytes(40), 2),
        ("mpeg4", b"\x00\x00\x01\xb6" + bytes(8), None),
        ("mpeg4", b"no picture at all", None),
        ("vp8", bytes([0x10]), 1),
        ("vp8", bytes([0x01]), 0),
        ("vp9", bytes([0b10000110, 0]), 1),  # profile 0: frame type 1, show_frame 1
        ("vp9", bytes([0b10000100, 0]), 0),
        ("vp9", bytes([0b10001000, 0]), 1),  # show_existing_frame
        ("vp9", bytes([0b10110011, 0]), 1),  # profile 3 has a reserved bit before them
        ("vp9", bytes([0b10110010, 0]), 0),
        ("vp9", bytes([0b10000100, 0b11000001]), 1),  # a superframe
    ],
)
def test_the_number_of_frames_in_a_packet_is_read_from_its_bytes(codec, packet, frames):
    assert _shows(codec, packet) == frames


def test_hidden_frames_of_vp8_do_not_count_as_frames(tmp_path):
    """An encoder's reference frames are decoded, but never shown."""
    numbers = np.arange(102)
    hidden = numbers % 8 == 7
    shown = numbers - np.cumsum(hidden)
    whole = encode(
        tmp_path / "w.webm",
        counting_frames(102)[shown],
        "libvpx",
        options={"cpu-used": "8", "g": "20"},
    )
    path = tmp_path / "v.webm"
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            data[0] &= 0xEF if hidden[number] and not packet.is_keyframe else 0xFF  # show_frame
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copy
            out.mux(changed)
    with open_video(path) as video:
        count = video.num_frames
        kept = read_numbers(np.stack(list(video.frames(np.arange(count)))))
    assert count < 102 and kept == sorted(kept) and set(kept) == set(range(90))
    assert probe(str(path))["frames"] == count and not probe(str(path))["seekable"]
    for number in range(count):
        assert read_numbers(read_frames(path, np.array([number]))) == [kept[number]]


def test_leading_pictures_after_a_cut_do_not_count_as_frames(tmp_path):
    """After `ffmpeg -ss 2 -c copy`, pictures shown before the first key frame need others."""
    options = {
        "x265-params": "keyint=20:min-keyint=20:scenecut=0:open-gop=1:bframes=3:log-level=none"
    }
    whole = encode(tmp_path / "whole.mkv", counting_frames(120), "libx265", options=options)
    cut = tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        keys = 0
        for packet in source.demux(video=0):
            keys += packet.is_keyframe
            if keys >= 3 and packet.size:
                packet.stream = copy
                out.mux(packet)
    assert read_numbers(read_frames(cut, np.array([0]))) == [40]
    _check_every_read(cut, 80, first=40, manifest=tmp_path / "m.jsonl")


def _remux(source, target, changed):
    """Copy the packets of a file; changed(number, packet) returns the packets to write instead."""
    with av.open(str(source)) as whole, av.open(str(target), "w") as out:
        copy = out.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(p for p in whole.demux(video=0) if p.size):
            for each in changed(number, packet):
                each.stream = copy
                out.mux(each)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pictures_before_the_first_key_frame_do_not_count_as_frames(tmp_path, suffix):
    """If the first packet was lost, nothing can be decoded up to the next key frame."""
    whole = encode(
        tmp_path / f"whole{suffix}",
        counting_frames(100),
        "libx264",
        options={"g": "20", "bf": "0", "sc_threshold": "0"},
    )
    lost = _remux(whole, tmp_path / f"v{suffix}", lambda number, packet: [packet][number == 0 :])
    _check_every_read(lost, 80, first=20, manifest=tmp_path / "m.jsonl")


def test_an_avi_of_variable_rate_is_not_called_truncated(tmp_path):
    """Where a frame is repeated, the file has an entry of zero bytes, which its header counts."""
    times = [0, 40, 200, 240, 600, 640, *range(680, 4200, 40)]
    path = encode(tmp_path / "v.avi", counting_frames(len(times)), "mpeg4", times=times)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames > 1.1 * len(times)
    assert probe(str(path))["reason"] == ""
    _check_every_read(path, len(times), manifest=tmp_path / "m.jsonl")


def test_a_packet_of_zero_bytes_is_not_the_end(tmp_path):
    """Theora has such packets where nothing moves: a repeated frame, which players drop."""

    def with_empty(number, packet):
        if number % 10 != 9:
            return [packet]
        empty = av.Packet(b"")
        empty.pts, empty.dts, empty.time_base = packet.pts, packet.dts, packet.time_base
        return [empty]

    whole = encode(tmp_path / "w.mkv", counting_frames(100), "mjpeg", pix_fmt="yuvj420p")
    path = _remux(whole, tmp_path / "v.mkv", with_empty)
    row = probe(str(path))
    assert (row["frames"], row["reason"]) == (90, "")
    with open_video(path) as video:
        shown = read_numbers(np.stack(list(video.frames(np.arange(video.num_frames)))))
    assert shown == [number for number in range(100) if number % 10 != 9]


def test_frames_have_the_size_of_the_first_that_decodes(tmp_path):
    """The size in the container's header may be wrong."""
    whole = encode(tmp_path / "w.mp4", counting_frames(40), "libx264")
    path = tmp_path / "v.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        height, width = stream.height, stream.width
        crop = av.bitstream.BitStreamFilterContext("h264_metadata=crop_right=8", stream, copy)
        for packet in source.demux(stream):
            for each in crop.filter(packet if packet.size else None):
                each.stream = copy
                out.mux(each)
    with av.open(str(path)) as container:
        decoded = next(container.decode(video=0))
    with open_video(path) as video:
        (frame,) = video.frames(np.array([0]))
        assert frame.shape[:2] == (decoded.height, decoded.width) and video.resized == 0
    assert probe(str(path))["width"] == decoded.width <= width and decoded.height == height


@needs_ucf101_mini
def test_the_count_without_a_manifest_is_the_number_that_decodes():
    """In 31 real files a packet holds two pictures, and in one the last of them is never shown."""
    folder = SHARED / "ucf101_mini/videos"
    last = folder / "WallPushups/v_WallPushups_g10_c02.avi"
    for path in [*sorted(folder.rglob("*.avi"))[::3], last]:
        with open_video(path) as video:
            counted = video.num_frames
        with av.open(str(path)) as container:
            assert counted == sum(1 for _ in container.decode(video=0)), path


@needs_odd_files
@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("nvop.avi", 90, 0),
        ("nvop.mp4", 90, 0),
        ("cut_hevc.mkv", 80, 40),
        ("decord_neg.mkv", 90, 0),
        ("cover_first.mp4", 90, 0),
        ("two_streams.mp4", 90, 0),
        ("two_streams.mkv", 90, 0),
    ],
)
def test_odd_files_show_the_frames_of_a_player(tmp_path, name, count, first):
    _check_every_read(ODD / name, count, first, tmp_path / "m.jsonl")


@needs_odd_files
@pytest.mark.parametrize("backend", ["decord"])
@pytest.mark.parametrize(
    "name", ["nvop.avi", "nvop.mp4", "cut_hevc.mkv", "decord_neg.mkv", "mir_h.mp4", "mir_v.mp4"]
)
def test_a_decoder_that_shows_other_frames_is_refused(backend, name):
    with pytest.raises(DecodeError, match="decord .*; use PyAV"):
        read_frames(ODD / name, np.array([3]), backend=backend)


def test_a_decoder_is_compared_with_the_frames_of_pyav(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.mp4", counting_frames(60), "mpeg4", options={"g": "12"})

    class Late(BACKENDS["pyav"]):
        """One frame late after a seek, as decoders are."""

        def frames(self, indices):
            moved = np.minimum(indices + (indices[0] > 0), self.num_frames - 1)
            for number in moved:
                yield next(iter(super().frames(np.array([number]))))

    assert disagreement("pyav", BACKENDS["pyav"], str(path)) == ""
    assert disagreement("late", Late, str(path)).startswith("reads another frame than number ")
    monkeypatch.setitem(BACKENDS, "decord", Late)
    with pytest.raises(DecodeError, match="decord reads another frame than number .*; use PyAV"):
        read_frames(path, np.array([30]), backend="decord")


def test_a_scan_remembers_which_decoder_was_tried(tmp_path):
    path = encode(tmp_path / "v.mp4", counting_frames(60), "mpeg4", options={"g": "12"})
    row = scan([str(path)], tmp_path, tmp_path / "m.jsonl")[0]
    assert row["verified"] == [] and "compared" not in row
    row = scan([str(path)], tmp_path, tmp_path / "m.jsonl", backend="decord")[0]
    assert row["verified"] == ["decord"]
    (record,) = apply_manifest([Record("v", str(path), 0)], tmp_path / "m.jsonl", tmp_path)
    assert record.verified == ("decord",) and record.seekable


def _two_streams(path, first, second, default):
    """Write two videos into one file; default: the number of the one that a player shows."""
    with av.open(str(path), "w") as out:
        streams = []
        for number, frames in enumerate((first, second)):
            stream = out.add_stream("libx264", rate=25)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.disposition = int(number == default)
            streams.append(stream)
        for stream, frames in zip(streams, (first, second), strict=True):
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_stream_that_a_player_shows_is_read(tmp_path, suffix):
    small = counting_frames(10, 32, first=500)
    path = _two_streams(tmp_path / f"v{suffix}", small, counting_frames(90), default=1)
    _check_every_read(path, 90, manifest=tmp_path / "m.jsonl")
    assert probe(str(path))["streams"] == 2


@needs_odd_files
def test_an_attached_picture_is_not_read_as_a_video():
    with pytest.raises(DecodeError, match="only an attached picture, which is no video"):
        read_frames(ODD / "audio_cover.mp4", np.array([0]))
    assert "only an attached picture" in probe(str(ODD / "audio_cover.mp4"))["reason"]


def _oriented(path, matrix):
    """Write an MP4 whose display matrix is (a, b, c, d), in units of 1."""
    frames = np.zeros((3, 64, 96, 3), np.uint8)
    frames[:, :16, :, 0] = 255  # a red top
    frames[:, :, :24, 2] = 255  # a blue left
    frames[:, :16, :24] = (255, 255, 0)  # and a yellow corner
    encode(path, frames, "libx264", options={"crf": "1"}, pix_fmt="yuv444p")
    content = path.read_bytes()
    one = 0x10000
    still = struct.pack(">9I", one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    a, b, c, d = (round(value * one) % 2**32 for value in matrix)
    position = content.index(still, content.index(b"tkhd"))
    new_matrix = struct.pack(">9I", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(content[:position] + new_matrix + content[position + len(still) :])
    return path, frames


_MATRICES = {
    "as it is": ((1, 0, 0, 1), lambda x: x),
    "zeros": ((0, 0, 0, 0), lambda x: x),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda x: x[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    "a quarter clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "a quarter back": ((0, -1, 1, 0), lambda x: np.rot90(x)),
    "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
    "transposed the other way": ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("kind", _MATRICES)
def test_a_display_matrix_turns_and_mirrors(tmp_path, kind):
    matrix, shown = _MATRICES[kind]
    path, frames = _oriented(tmp_path / "v.mp4", matrix)
    upright = read_frames(path, np.array([1]))
    assert np.abs(upright[0].astype(int) - shown(frames[1])).mean() < 4
    row = probe(str(path))
    assert (row["frames"], row["reason"]) == (3, "")
    assert row["mirrored"] == (np.linalg.det(np.reshape(matrix, (2, 2))) < 0)


@pytest.mark.parametrize("kind", _MATRICES)
def test_every_frame_is_contiguous(tmp_path, kind):
    """torch accepts no negative strides, so rotated frames would fail where they are used."""
    path, _ = _oriented(tmp_path / "v.mp4", _MATRICES[kind][0])
    with open_video(path) as video:
        for frame in video.frames(np.arange(3)):
            assert frame.flags.c_contiguous
            torch.from_numpy(frame)


@needs_odd_files
def test_mirrored_files_are_shown_as_in_a_player():
    for name, corner in (("mir_h.mp4", (0, -1)), ("mir_v.mp4", (-1, 0)), ("zero.mp4", (0, 0))):
        frame = read_frames(ODD / name, np.array([5]))[0]
        red, green, blue = frame[corner].astype(int)
        assert red > 150 and green > 150 and blue < 100, name


def _images(folder, names, size=(8, 8)):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (number, 0, 0)).save(folder / name)
    return folder


def test_one_series_of_images_is_chosen_or_the_option_is_required(tmp_path):
    folder = _images(tmp_path / "v", [f"img_{n:05d}.png" for n in range(6)])
    _images(
        folder,
        [f"flow_x_{n:05d}.png" for n in range(5)] + [f"flow_y_{n:05d}.png" for n in range(5)],
    )
    with pytest.raises(
        DecodeError,
        match=(
            r"3 series of images: flow_x_\*.png \(5\), flow_y_\*.png \(5\), img_\*.png \(6\); set"
        ),
    ):
        frame_files(folder)
    assert [file.name for file in frame_files(folder, count=6)] == [
        f"img_{n:05d}.png" for n in range(6)
    ]
    assert len(frame_files(folder, "flow_y_")) == len(frame_files(folder, "flow_y_*.png")) == 5
    with pytest.raises(DecodeError, match="series of images"):
        frame_files(folder, "flow_")  # two of them begin so
    with pytest.raises(DecodeError, match=r"no series data.series=rgb_, but: flow_x_"):
        frame_files(folder, "rgb_")
    with pytest.raises(DecodeError, match="series"):
        frame_files(folder, count=5)  # two of them have as many
    with open_video(folder, frames=6) as video:
        assert len(list(video.frames(np.arange(6)))) == 6


def test_masks_next_to_frames_are_another_series(tmp_path):
    folder = _images(tmp_path / "v", [f"{n:05d}.png" for n in range(5)])
    _images(folder, [f"{n:05d}.jpg" for n in range(5)])
    with pytest.raises(DecodeError, match="2 series of images"):
        frame_files(folder)
    assert {file.suffix for file in frame_files(folder, "*.jpg")} == {".jpg"}


def test_images_of_names_without_numbers_are_one_series(tmp_path):
    folder = _images(tmp_path / "v", ["b.png", "a.png", "c.png"])
    assert [file.name for file in frame_files(folder)] == ["a.png", "b.png", "c.png"]
    folder = _images(tmp_path / "w", ["f2.png", "f10.png", "f1.png"])
    assert [file.name for file in frame_files(folder)] == ["f1.png", "f2.png", "f10.png"]


def test_the_option_chooses_a_series(tmp_path):
    for split in ("train", "test"):
        folder = _images(tmp_path / split / "a" / "clip", [f"img_{n}.png" for n in range(4)])
        _images(folder, [f"flow_x_{n}.png" for n in range(3)])
    cfg = DataConfig(name="frame_folder", root=str(tmp_path), series="img_")
    (record,), _ = build_records(cfg, "train")
    with open_record(record) as video:
        assert video.num_frames == 4
    row = scan([record.path], tmp_path, tmp_path / "m.jsonl", series="img_")[0]
    assert (row["frames"], row["reason"]) == (4, "")
    assert "series" in scan([record.path], tmp_path, tmp_path / "n.jsonl")[0]["reason"]


def test_a_class_folder_refuses_the_frames_of_clips(tmp_path):
    for clip in ("v1", "v2"):
        _images(tmp_path / "a" / clip, [f"{n}.png" for n in range(5)])
    with pytest.raises(
        UserError, match="the frames of clips, and each image would be a video; set data.name"
    ):
        class_folder(tmp_path, "train", 1)
    _images(tmp_path / "tiny" / "b" / "images", [f"{n}.png" for n in range(5)])
    assert len(class_folder(tmp_path / "tiny", "train", 1)[0]) == 5


def test_a_scan_reports_files_that_are_read_in_an_unusual_way(tmp_path):
    plain = encode(tmp_path / "a.mp4", counting_frames(40), "mpeg4")
    odd = with_not_coded(tmp_path / "b.mp4", counting_frames(40), every=7)
    rows = scan([str(plain), str(odd)], tmp_path, tmp_path / "m.jsonl")
    (line,) = notes(rows)
    assert (
        line.startswith("1 of 2 videos have times that do not say which frame is which")
        and "b.mp4" in line
    )
    assert "are refused with data.backend=decord" in notes(rows, "decord")[1]


def test_one_image_each_of_two_series_is_refused(tmp_path):
    folder = _images(tmp_path / "v", ["rgb_1.png", "depth_1.png"])
    with pytest.raises(DecodeError, match="2 series of images"):
        frame_files(folder)


def test_a_scan_reports_missing_numbers(tmp_path):
    folder = _images(tmp_path / "v", [f"f_{n}.png" for n in (1, 2, 5, 6, 10)])
    assert probe(str(folder))["reason"] == "numbers are missing after f_2.png and 1 more"
    every_second = _images(tmp_path / "w", [f"f_{n}.png" for n in (1, 3, 5)])
    assert probe(str(every_second))["reason"] == ""


def test_names_with_equal_numbers_have_a_fixed_order(tmp_path):
    folder = _images(tmp_path / "v", ["f_1.png", "f_01.png", "f_2.png"])
    for files in ([*folder.iterdir()], [*folder.iterdir()][::-1]):
        names = [file.name for file in sorted(files, key=_in_order)]
        assert names == ["f_01.png", "f_1.png", "f_2.png"]


def test_the_first_picture_of_an_animation_is_read_and_reported(tmp_path):
    frames = [Image.fromarray(frame) for frame in counting_frames(4)]
    frames[0].save(tmp_path / "v.webp", save_all=True, append_images=frames[1:], lossless=True)
    row = probe(str(tmp_path / "v.webp"))
    assert (row["frames"], row["reason"]) == (1, "the first of 4 pictures is read")


@needs_odd_files
def test_the_documented_folder_of_mmaction2_is_its_rgb_frames():
    with open_video(ODD / "tsn_rawframes/v0", frames=6) as video:
        assert video.num_frames == 6 and {file.name[:4] for file in video.files} == {"img_"}


def test_frames_of_several_sizes_are_resized_and_counted(tmp_path):
    folder = _images(tmp_path / "v", ["1.png", "2.png"], (20, 10))
    _images(folder, ["3.png", "4.png"], (30, 30))
    with open_video(folder) as video:
        frames = list(video.frames(np.arange(4)))
        assert {frame.shape for frame in frames} == {(10, 20, 3)} and video.resized == 2
    row = probe(str(folder))
    assert (
        row["frames"] == 4 and row["reason"] == "2 of 4 frames have another size, and are resized"
    )


@needs_odd_files
@pytest.mark.parametrize("name", ["slowmo_cfr_120000_1001.mp4", "slowmo_cfr_239.97.mp4"])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "mjpeg"])
def test_slow_motion_is_resized_with_all_its_frames(tmp_path, name, codec):
    source = tmp_path / "in" / name
    source.parent.mkdir()
    source.write_bytes((ODD / name).read_bytes())
    records = [Record(name, str(source), 0)]
    assert reencode(records, source.parent, tmp_path / "out", Encoding(32, codec=codec)) == []
    before, after = probe(str(source)), probe(str(tmp_path / "out" / name))
    assert after["frames"] == before["frames"] == 30
    assert after["fps"] == pytest.approx(before["fps"], rel=1e-3)


@pytest.mark.parametrize(
    "fps", [Fraction(120000, 1001), Fraction(240000, 1001), Fraction(95, 1), Fraction(700, 9)]
)
def test_unusual_frame_rates_can_be_written(tmp_path, fps):
    path = tmp_path / "in" / "v.mkv"
    path.parent.mkdir()
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        for image in counting_frames(12):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
                )
            )
        out.mux(stream.encode())
    assert (
        reencode([Record("v.mkv", str(path), 0)], path.parent, tmp_path / "out", Encoding(64)) == []
    )
    assert read_numbers(read_frames(tmp_path / "out/v.mkv", np.arange(12))) == list(range(12))


def test_an_encoder_error_is_not_blamed_on_the_source(tmp_path, monkeypatch):
    path = encode(tmp_path / "in.mp4", counting_frames(5), "libx264")
    monkeypatch.setitem(reencode.__globals__, "_rate", lambda fps: Fraction(10**9, 7))
    done, reason = reencode.__globals__["_encode"](
        (str(path), str(tmp_path / "out.mp4"), Encoding(32), "in", "", 0)
    )
    assert not done and reason.startswith("mpeg4 cannot write the copy at 1.42857e+08 frames/s"), (
        reason
    )


def test_a_name_with_a_colon_is_read_as_a_file(tmp_path, monkeypatch):
    encode(tmp_path / "v.mp4", counting_frames(5), "mpeg4").rename(tmp_path / "concat:v.mp4")
    monkeypatch.chdir(tmp_path)
    for backend in ("pyav", "decord"):
        assert read_numbers(read_frames("concat:v.mp4", np.array([3]), backend=backend)) == [3]


def test_frames_of_absurd_sizes_are_refused(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.mp4", counting_frames(2, 128), "libx264")
    monkeypatch.setattr(decoders, "MAX_PIXELS", 127 * 128)
    with pytest.raises(
        DecodeError, match="frames of 128 x 128 pixels, and at most 16256 are read; re-encode it"
    ):
        read_frames(path, np.array([0]))


@pytest.mark.parametrize("bytes_kept", [1, 3 * 40 * 40 * 3, 2**25])
def test_clips_do_not_depend_on_how_many_frames_are_resized_at_once(
    tmp_path, monkeypatch, bytes_kept
):
    """All boxes of an 8K clip at once would take 1.6 GB."""
    path = encode(tmp_path / "v.mp4", counting_frames(40), "mpeg4")
    view = AugmentSpec(size=16, scale=(0.4, 0.9))
    reader = ClipReader(ClipSpec(8, 3, 2, "loop"), random_clips, view)
    whole, few = (np.zeros(int(np.prod(reader.shape)), np.uint8) for _ in range(2))
    reader.read(whole, 0, Record("v", str(path), 0), 0, 0)
    room = np.full(bytes_kept, 77, np.uint8)
    monkeypatch.setattr(clip_reader, "_waiting_room", lambda: room)
    reader.read(few, 0, Record("v", str(path), 0), 0, 0)
    assert np.array_equal(whole, few) and whole.any()


# H.264, annex D.1.27: display orientation. Of each, the byte that holds it, and what it shows.
_ORIENTED = {
    "as stored": (None, lambda x: x),
    "mirrored": (0x40, lambda x: x[:, ::-1]),
    "upside down": (0x20, lambda x: x[::-1]),
    "turned by 180": (0x10, lambda x: x[::-1, ::-1]),
}


def _write_oriented(path, picture, first, later):
    """Write 40 frames of one picture, whose orientation changes at frame 20."""
    with av.open(str(path) + ".mp4", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"g": "20", "bf": "0", "threads": "1"}
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path) + ".mp4") as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            kind = _ORIENTED[first if number < 20 else later][0]
            message = b"" if kind is None else bytes([0, 0, 0, 7, 6, 47, 3, kind, 0, 9, 0x80])
            patched = av.Packet(message + bytes(packet))
            for name in ("pts", "dts", "time_base", "duration", "is_keyframe"):
                setattr(patched, name, getattr(packet, name))
            patched.stream = stream
            container.mux(patched)


@pytest.mark.parametrize(
    "first, later",
    [("as stored", "upside down"), ("mirrored", "turned by 180"), ("turned by 180", "mirrored")],
)
def test_an_orientation_may_change_within_a_file(tmp_path, first, later):
    """FFmpeg's angle is the same before and after, so the angle alone does not decide."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32], picture[32:, :32] = (250, 240, 30), (30, 60, 220)
    path = tmp_path / "v.mp4"
    _write_oriented(path, picture, first, later)
    for indices in ([3, 30], [30], [39], [0]):
        for number, frame in zip(indices, read_frames(path, np.array(indices)), strict=True):
            expected = _ORIENTED[first if number < 20 else later][1](picture)
            assert np.abs(frame.astype(int) - expected).mean() < 5, (indices, number)
    assert probe(str(path))["reason"].startswith("20 of 40 frames have another size")


def test_motion_jpeg_with_exif_is_read_as_it_is_shown(tmp_path):
    """PyAV 18 has no name for such side data; the file must still be read."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :32] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG", exif=exif, quality=95)
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
        for number in range(12):
            packet = av.Packet(jpeg.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            container.mux(packet)
    with av.open(str(path)) as container:
        turned = next(container.decode(video=0)).rotation
    expected = {0: picture, -90: np.rot90(picture, -1)}[turned]  # FFmpeg 8 turns by EXIF
    frame = read_frames(path, np.array([5]))[0]
    assert frame.shape == expected.shape and np.abs(frame.astype(int) - expected).mean() < 5


@pytest.mark.parametrize(
    ("times", "declared", "repeated"),
    [
        ([0, 1, 2, 5, 6], 7, 2),  # two repeats between; the last frame ends the file
        ([0, 1, 2, 5, 6], 9, 4),  # and two at its end, where frames are repeated anyway
        ([0, 1, 2, 5, 6], 40, 2),  # a file that was cut short has no such end
        ([0, 1, 2], 9, 0),
    ],
)
def test_repeated_frames_of_an_avi_do_not_count(monkeypatch, times, declared, repeated):
    index = [SimpleNamespace(timestamp=time, size=1) for time in times]
    container = SimpleNamespace(format=SimpleNamespace(name="avi"))
    monkeypatch.setattr(decoders, "declared_frames", lambda *_: declared)
    video = SimpleNamespace(container=container, index=index, _packets=[])
    assert decoders.PyAV.repeated.fget(video) == repeated


def test_seeks_give_up_if_nothing_decodes(tmp_path, monkeypatch):
    """Counting then reports what is wrong."""
    path = encode(tmp_path / "v.mp4", counting_frames(40), "mpeg4")
    video = decoders.PyAV(str(path))
    monkeypatch.setattr(decoders.PyAV, "_from_the_start", lambda *_: iter(()))
    assert list(video._after_seeks([3])) == []
    video.close()


def test_a_reader_without_fade_weakens_no_augmentation(tmp_path):
    path = encode(tmp_path / "v.mp4", counting_frames(40), "mpeg4")
    view = AugmentSpec(size=16, scale=(0.2, 0.4))
    reader = ClipReader(ClipSpec(8, 3, 2, "loop"), random_clips, view)
    memories = []
    for each in (reader, replace(reader, fade=0), replace(reader, fade=10)):
        memories.append(np.zeros(int(np.prod(reader.shape)), np.uint8))
        each.read(memories[-1], 0, Record("v", str(path), 0), 9, 0)
    assert np.array_equal(memories[0], memories[1]) and not np.array_equal(memories[0], memories[2])
