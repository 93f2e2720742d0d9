import gc

import av
import numpy as np
import pytest

from tests.helpers import (
    SHARED,
    counting_frames,
    counting_video,
    encode,
    has_backend,
    needs_ucf101_mini,
    read_numbers,
    trim,
)
from vidrobust.data import DecodeError, open_video, read_frames
from vidrobust.data.decoding import agreement
from vidrobust.data.decoding.pyav import PyAV
from vidrobust.data.scan import probe

_HAS_TORCHCODEC = has_backend("torchcodec")


_torchcodec = pytest.param(
    "torchcodec", marks=pytest.mark.skipif(not _HAS_TORCHCODEC, reason="needs torchcodec")
)


BACKENDS = ["decord", "pyav", "auto", _torchcodec]


_EVERY_25 = {
    "g": "25",
    "bf": "3",
    "b_strategy": "1",
    "x264-params": "keyint=25:scenecut=0:open-gop=1",
}


_FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"


_IRREGULAR = np.cumsum(1 + np.random.default_rng(0).integers(10, 90, 90)).tolist()


_KINDS = {  # name: (codec, suffix, what else)
    "mpeg4": ("mpeg4", ".avi", {}),
    "mpeg4 with B-frames in AVI": ("mpeg4", ".avi", {"options": {"bf": "2"}}),
    "mpeg4 in mp4, short groups": ("mpeg4", ".mp4", {"options": {"g": "7"}}),
    "h264 with B-frames": ("libx264", ".mp4", {}),
    "h264 in mp4, short groups": ("libx264", ".mp4", {"options": {"g": "20", "bf": "0"}}),
    "h264, open groups": ("libx264", ".mp4", {"options": _EVERY_25}),
    "h264 in mkv": ("libx264", ".mkv", {"options": {"g": "20"}}),
    "hevc, open groups": (
        "libx265",
        ".mp4",
        {"options": {"x265-params": "keyint=20:open-gop=1:log-level=none"}},
    ),
    "vp9": ("libvpx-vp9", ".webm", {"options": {"cpu-used": "8", "deadline": "realtime"}}),
    "variable frame rate": ("libx264", ".mp4", {"times": _IRREGULAR}),
    "10 bits": ("libx264", ".mp4", {"pix_fmt": "yuv420p10le"}),
    "mjpeg": ("mjpeg", ".avi", {"pix_fmt": "yuvj420p"}),
    "h264 without B-frames in AVI": ("libx264", ".avi", {"options": {"bf": "0", "g": "20"}}),
    "h264 of rolling intra refresh": (
        "libx264",
        ".mp4",
        {"options": {"x264-params": "keyint=30:intra-refresh=1"}},
    ),
    "MPEG-1 in a program stream": ("mpeg1video", ".mpg", {"options": {"g": "12"}}),
    "h264 in a fragmented mp4": (
        "libx264",
        ".mp4",
        {"options": {"g": "20"}, "container": {"movflags": _FRAGMENTS}},
    ),
    "mpeg4 in mkv": ("mpeg4", ".mkv", {"options": {"g": "9"}}),
    "h264 in a transport stream": ("libx264", ".ts", {"options": {"g": "20"}}),
}


_TRIMMED = [
    "h264 with B-frames",
    "h264 in mp4, short groups",
    "mpeg4 in mp4, short groups",
    "hevc, open groups",
]


_REFUSED = {  # what these decoders read wrong, as trying them showed
    ("torchcodec", "h264 of rolling intra refresh"),  # nothing in the file shows it: it is tried
    ("decord", "h264 of rolling intra refresh"),
    ("torchcodec", "mpeg4 with B-frames in AVI"),
    ("torchcodec", "MPEG-1 in a program stream"),
    ("torchcodec", "h264 in a transport stream"),
    ("decord", "mpeg4 with B-frames in AVI"),
    ("decord", "h264 without B-frames in AVI"),
    ("decord", "MPEG-1 in a program stream"),
    ("decord", "h264 in a transport stream"),
    ("decord", "hevc, open groups"),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Return a video of 90 numbered frames of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    return {
        name: encode(folder / f"{i}{suffix}", counting_frames(90), codec, **more)
        for i, (name, (codec, suffix, more)) in enumerate(_KINDS.items())
    }


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_requested_frames_are_read(videos, kind, backend):
    path, rng = videos[kind], np.random.default_rng()
    if (backend, kind) in _REFUSED:
        with pytest.raises(DecodeError, match="use PyAV"):
            read_frames(path, np.array([0]), backend=backend)
        return
    for _ in range(6):
        indices = rng.integers(0, 90, 12)  # any order, repeats
        assert read_numbers(read_frames(path, indices, backend=backend)) == indices.tolist()
    for indices in ([89, 0, 89, 45], [89], [24, 25, 26], list(range(90))):
        assert (
            read_numbers(read_frames(path, np.array(indices), backend=backend, short_side=40))
            == indices
        )


def test_frames_of_several_sizes_are_read_at_one_size(tmp_path):
    """Recordings may hold two broadcasts one after the other; the size of the first is used."""
    small = encode(tmp_path / "a.ts", counting_frames(20, 64), "libx264")
    large = encode(tmp_path / "b.ts", counting_frames(20, 128, first=20), "libx264")
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    for indices in ([30], [2, 30]):
        frames = read_frames(tmp_path / "both.ts", np.array(indices))
        assert frames.shape[1:] == (64, 64, 3) and read_numbers(frames) == indices
    assert (
        probe(str(tmp_path / "both.ts"))["reason"]
        == "20 of 40 frames have another size, and are resized"
    )


@pytest.mark.parametrize("kind", ["mpeg4", "h264 with B-frames"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_read_gives_the_same_pixels_every_time(videos, kind, backend):
    """In decord issue 195, one of a hundred reads of an AVI differed."""
    indices = np.array([38, 3, 38, 38, 80])
    first = read_frames(videos[kind], indices, backend=backend)
    assert all(
        np.array_equal(read_frames(videos[kind], indices, backend=backend), first)
        for _ in range(60)
    )


def test_false_key_frames_are_not_trusted(tmp_path):
    """An index may call every frame a key frame, as in remuxed H.263.

    A seek would then end at a frame that needs others.
    """
    path = encode(tmp_path / "v.avi", counting_frames(90), "mpeg4", options={"g": "30"})
    content = bytearray(path.read_bytes())
    index = content.index(b"idx1") + 8
    for entry in range(90):
        position = index + 16 * entry
        assert content[position : position + 4] == b"00dc"
        content[position + 4] |= 0x10
    path.write_bytes(content)
    for indices in ([50], [20, 77]):
        assert read_numbers(read_frames(path, np.array(indices))) == indices


@pytest.mark.parametrize("kind", ["h264 with B-frames", "h264 in mp4, short groups"])
def test_the_times_of_a_trimmed_video_are_those_of_shown_frames(videos, kind, tmp_path):
    path = trim(videos[kind], tmp_path / "t.mp4", 13)
    with open_video(path) as video:
        stamps, keys = video.timeline
        assert (
            len(stamps) == video.num_frames
            and stamps[0] >= 0
            and all(key < len(stamps) for key in keys)
        )


@pytest.mark.parametrize("kind", _TRIMMED)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [13, 31])
def test_a_trimmed_video_begins_where_a_player_begins(videos, kind, backend, count, tmp_path):
    path = trim(videos[kind], tmp_path / "t.mp4", count)
    with av.open(str(path)) as container:
        shown = read_numbers(
            np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        )
    assert 90 - count - 1 <= len(shown) <= 90 - count and shown[-1] >= 88
    row = probe(str(path))
    assert row["frames"] == len(shown) and row["reason"] == ""
    for frames in (0, len(shown)):
        for indices in ([0], [5], [40], [len(shown) - 1], [0, 9, 30, 50]):
            try:
                numbers = read_numbers(
                    read_frames(path, np.array(indices), backend=backend, frames=frames)
                )
            except DecodeError as error:
                assert backend in ("decord", "torchcodec") and "trimmed by an edit list" in str(
                    error
                )
            else:
                assert numbers == [shown[n] for n in indices]


@pytest.mark.parametrize("kind", _KINDS)
def test_the_number_of_frames_is_the_number_that_decodes(videos, kind):
    with open_video(videos[kind]) as video:
        assert video.num_frames == 90


def test_frames_are_found_by_seeks_where_these_help_and_otherwise_counted(videos, monkeypatch):
    counted = []
    original = PyAV._counted
    monkeypatch.setattr(
        PyAV, "_counted", lambda self, indices: counted.append(indices) or original(self, indices)
    )
    for kind in (
        "mpeg4 in mp4, short groups",
        "h264, open groups",
        "hevc, open groups",
        "variable frame rate",
    ):
        read_frames(videos[kind], np.array([60, 88]))
    assert counted == []
    read_frames(videos["mpeg4 with B-frames in AVI"], np.array([60, 88]))
    assert counted == [[60, 88]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(50, 33), (35, 64), (34, 46)])
def test_odd_sizes_and_videos_of_one_frame_are_read(tmp_path, backend, size):
    frames = (
        np.random.default_rng(0)
        .integers(0, 256, (1, 1, 1, 3), np.uint8)
        .repeat(size[0], 1)
        .repeat(size[1], 2)
    )
    options = {"qp": "0"}
    path = encode(tmp_path / "v.mp4", frames, "libx264", pix_fmt="yuv444p", options=options)
    frames_read = read_frames(path, np.array([0, 0]), backend=backend)
    assert frames_read.shape == (2, *size, 3)
    assert np.abs(frames_read.astype(int) - frames).max() <= 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_rotated_video_is_read_upright(tmp_path, backend, turns):
    frames = np.zeros((3, 64, 96, 3), np.uint8)
    frames[:, :16, :20] = 255  # the corner at the top left
    path = encode(tmp_path / "v.mp4", frames, "libx264", quarter_turns=turns)
    frames_read = read_frames(path, np.array([0, 2]), backend=backend)
    assert (
        np.abs(frames_read[1].astype(int) - np.rot90(frames[2], -turns)).mean() < 3
    )  # players turn clockwise
    shrunk = read_frames(path, np.array([1]), backend=backend, short_side=24)
    assert shrunk.shape[1:3] == ((36, 24) if turns % 2 else (24, 36))


def test_ten_bit_colours_are_as_accurate_as_eight_bit_ones(tmp_path):
    """Frames of smooth colour differ from their source by rounding alone."""
    y, x = np.mgrid[0:64, 0:64]
    frames = np.stack([2 * x + 60, 2 * y + 60, 190 - x - y], -1)[None].repeat(3, 0).astype(np.uint8)
    for pix_fmt in ("yuv420p", "yuv420p10le"):
        path = encode(
            tmp_path / f"{pix_fmt}.mp4", frames, "libx264", pix_fmt=pix_fmt, options={"crf": "1"}
        )
        assert np.abs(read_frames(path, np.array([1])).astype(int) - frames[:1]).mean() < 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_side_keeps_the_aspect(tmp_path, backend):
    from vidrobust.data.motionshapes import write_video

    write_video(tmp_path / "wide.avi", np.zeros((3, 56, 112, 3), np.uint8))
    frames = read_frames(tmp_path / "wide.avi", np.array([0, 2]), short_side=28, backend=backend)
    assert frames.shape == (2, 28, 56, 3) and frames.dtype == np.uint8


def test_an_open_video_reports_its_frames_and_rate(tmp_path):
    with open_video(counting_video(tmp_path / "v.avi", 30)) as video:
        assert (video.num_frames, video.fps, video.backend) == (30, 25.0, "pyav")


@needs_ucf101_mini
def test_decoders_agree_on_real_video():
    for path in sorted((SHARED / "ucf101_mini/videos").rglob("*.avi"))[::30]:
        indices = np.arange(3, 60, 4)
        a, b = (read_frames(path, indices, backend=name) for name in ("decord", "pyav"))
        assert np.array_equal(a, b)
        a, b = (
            read_frames(path, indices, backend=name, short_side=128) for name in ("decord", "pyav")
        )
        assert np.abs(a.astype(int) - b).mean() < 1


def _broken(tmp_path, kind):
    path = tmp_path / f"{kind}.avi"
    if kind == "missing":
        return path
    whole = counting_video(tmp_path / "whole.avi", 60).read_bytes()
    content = {
        "empty": b"",
        "text": b"not a video\n" * 50,
        "truncated": whole[: len(whole) * 4 // 5],
        "random": np.random.default_rng(0).bytes(5000),
    }[kind]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("empty", "is empty"),
        ("text", "not a video"),
        ("random", "not a video"),
        ("truncated", "cut short: its header declares 60 frames"),
    ],
)
def test_a_broken_file_raises_a_one_line_decode_error_with_its_name(
    tmp_path, kind, reason, backend
):
    path = _broken(tmp_path, kind)
    with pytest.raises(DecodeError, match=reason) as caught:
        read_frames(path, np.array([0]), backend=backend)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", [3, 50])
def test_a_decoder_that_returns_no_frame_means_a_damaged_file(tmp_path, monkeypatch, wanted):
    monkeypatch.setattr(PyAV, "_from_the_start", lambda self: iter(()))
    with pytest.raises(
        DecodeError, match=f"frame {wanted} of 60 cannot be decoded: the file is damaged"
    ):
        read_frames(counting_video(tmp_path / "v.avi", 60), np.array([wanted]))


def test_a_truncated_mp4_without_its_index_is_refused(tmp_path):
    path = counting_video(tmp_path / "v.mp4", 60, codec="libx264")
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DecodeError, match="cut short"):
        read_frames(path, np.array([0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [[30], [-1], []])
def test_frames_outside_the_video_are_refused(tmp_path, backend, wanted):
    with pytest.raises(DecodeError, match="within its 30 frames"):
        read_frames(
            counting_video(tmp_path / "v.avi", 30), np.array(wanted, dtype=int), backend=backend
        )


def test_widths_that_decord_cannot_read_are_refused(tmp_path):
    for width in (16, 48):
        path = counting_video(tmp_path / f"{width}.avi", 10, size=width)
        assert read_frames(path, np.array([3])).shape == (1, width, width, 3)
        with pytest.raises(DecodeError, match="decord cannot read frames so narrow; use PyAV"):
            read_frames(path, np.array([3]), backend="decord")


@pytest.mark.skipif(not (SHARED / "testclips").is_dir(), reason="needs ../shared/data/testclips")
def test_odd_files_decode_or_fail_with_a_reason():
    decoded = 0
    for path in sorted((SHARED / "testclips").iterdir()):
        try:
            decoded += read_frames(path, np.array([0, 2]), short_side=32).shape[0] == 2
        except DecodeError as error:
            assert str(path) in str(error)
    assert decoded >= 7


@pytest.mark.parametrize("look", ["scan", "read", "compare"])
def test_frames_are_freed_as_soon_as_they_are_read(tmp_path, look):
    """PyAV ties a frame to its side data in a reference cycle.

    A scan of a 4K video kept 100 frames, 1.2 GB.
    """
    path = str(counting_video(tmp_path / "v.mp4", 60))
    gc.collect()
    gc.disable()
    try:
        if look == "scan":
            assert probe(path)["frames"] == 60
        elif look == "read":
            assert len(read_frames(path, np.arange(60))) == 60
        else:
            assert len(agreement._thumbnails(path)) == 60
        kept = sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())
    finally:
        gc.enable()
    assert kept <= 3


def test_frames_outside_a_video_are_named_in_the_message(tmp_path):
    path = counting_video(tmp_path / "v.avi", 9)
    for indices, range_text in (([3, 12, 5], "3 to 12"), ([-1, 2], "-1 to 2"), ([], "none")):
        with pytest.raises(DecodeError, match=f"asked for, {range_text}, are not all within its 9"):
            read_frames(path, np.array(indices))
