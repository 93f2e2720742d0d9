import numpy as np
import pytest

from tests.helpers import SHARED, counting_video, needs_ucf101_mini, read_numbers
from vidrobust.data import DecodeError, open_video, read_frames

BACKENDS = ["decord", "pyav", "auto"]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])  # x264's default has B-frames
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_frames_asked_for_are_the_frames_read(tmp_path, codec, backend):
    path = counting_video(tmp_path / ("v.mp4" if codec == "libx264" else "v.avi"), 90, codec=codec)
    rng = np.random.default_rng()
    for _ in range(8):
        wanted = rng.integers(0, 90, 12)  # any order, repeats
        assert read_numbers(read_frames(path, wanted, backend=backend)) == wanted.tolist()
    wanted = [89, 0, 89, 45]
    assert read_numbers(read_frames(path, np.array(wanted), backend=backend, short_side=40)) == wanted


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_side_keeps_the_aspect(tmp_path, backend):
    from vidrobust.data.synthetic import write_video

    write_video(tmp_path / "wide.avi", np.zeros((3, 56, 112, 3), np.uint8))
    frames = read_frames(tmp_path / "wide.avi", np.array([0, 2]), short_side=28, backend=backend)
    assert frames.shape == (2, 28, 56, 3) and frames.dtype == np.uint8


def test_an_open_video_says_what_it_is(tmp_path):
    with open_video(counting_video(tmp_path / "v.avi", 30)) as video:
        assert (video.num_frames, video.fps, video.backend) == (30, 25.0, "pyav")


@needs_ucf101_mini
def test_decoders_agree_on_real_video():
    for path in sorted((SHARED / "ucf101_mini/videos").rglob("*.avi"))[::30]:
        wanted = np.arange(3, 60, 4)
        a, b = (read_frames(path, wanted, backend=name) for name in ("decord", "pyav"))
        assert np.array_equal(a, b)
        a, b = (read_frames(path, wanted, backend=name, short_side=128) for name in ("decord", "pyav"))
        assert np.abs(a.astype(int) - b).mean() < 1


def _broken(tmp_path, kind):
    path = tmp_path / f"{kind}.avi"
    if kind == "missing":
        return path
    whole = counting_video(tmp_path / "whole.avi", 60).read_bytes()
    content = {"empty": b"", "text": b"not a video\n" * 50, "truncated": whole[: len(whole) * 4 // 5],
               "random": np.random.default_rng(0).bytes(5000)}[kind]  # fmt: skip
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("missing", "no such file"), ("empty", "is empty"), ("text", "not a video"), ("random", "not a video"),
     ("truncated", "cut short: its header declares 60 frames")],
)  # fmt: skip
def test_a_broken_file_is_a_decode_error_of_one_line_that_names_it(tmp_path, kind, reason, backend):
    path = _broken(tmp_path, kind)
    with pytest.raises(DecodeError, match=reason) as caught:
        read_frames(path, np.array([0]), backend=backend)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_mp4_without_its_index(tmp_path):
    path = counting_video(tmp_path / "v.mp4", 60, codec="libx264")
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DecodeError, match="cut short"):
        read_frames(path, np.array([0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [[30], [-1], []])
def test_frames_outside_the_video_are_refused(tmp_path, backend, wanted):
    with pytest.raises(DecodeError, match="within its 30 frames"):
        read_frames(counting_video(tmp_path / "v.avi", 30), np.array(wanted, dtype=int), backend=backend)


def test_widths_that_decord_cannot_read_are_told(tmp_path):
    for width in (16, 48):
        path = counting_video(tmp_path / f"{width}.avi", 10, size=width)
        assert read_frames(path, np.array([3])).shape == (1, width, width, 3)
        with pytest.raises(DecodeError, match=f"decord cannot read frames {width} pixels wide; use PyAV"):
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
