import subprocess
import sys

import av
import numpy as np
import pytest

from tests.corruptions.clips import error, smooth_clip
from tests.helpers import REPO, counting_frames, read_numbers
from vidrobust.corruptions import MissingEncoder, codec, corrupt, h264


@pytest.mark.parametrize("shape", [(8, 32, 48, 3), (1, 33, 31, 3), (3, 16, 17, 3)])
def test_round_trip_keeps_shape_and_order_and_gets_worse_with_the_rate_factor(shape):
    rng = np.random.default_rng(0)
    t, h, w, _ = shape
    base = (
        np.add.outer(np.arange(h) * 3, np.arange(w) * 2)[None, :, :, None]
        + 25 * np.arange(t)[:, None, None, None]
    )
    frames = ((base + rng.integers(0, 12, shape)) % 200 + 20).astype(np.uint8)
    fine, coarse = h264(frames, 10), h264(frames, 45)
    assert fine.shape == coarse.shape == shape and fine.dtype == np.uint8
    error = [np.abs(back.astype(int) - frames).mean() for back in (fine, coarse)]
    assert error[0] < 12 and error[0] < error[1]
    if t > 1:  # each frame is closest to its own original
        gray = [c.astype(float).mean((1, 2, 3)) for c in (frames, fine)]
        assert all(np.abs(gray[0] - gray[1][i]).argmin() == i for i in range(t))
    for _ in range(5):
        assert np.array_equal(fine, h264(frames, 10)), "the same bits every time"


def test_small_noise_does_not_survive_compression():
    frames = np.full((4, 32, 32, 3), 120, np.uint8)
    noise = np.random.default_rng(0).integers(0, 2, frames.shape).astype(np.uint8)
    change = h264(frames + noise, 30).astype(int) - h264(frames, 30)
    assert abs(np.corrcoef(change.ravel(), noise.ravel())[0, 1]) < 0.5
    kept = h264(frames + noise, 0).astype(int) - h264(frames, 0)
    assert (
        np.corrcoef(kept.ravel(), noise.ravel())[0, 1] > 0.2
    )  # some of it survives the finest rate


def test_colours_survive_the_finest_rate():
    bars = np.array(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [90, 160, 30]], np.uint8
    )
    frames = np.tile(bars.repeat(8, axis=0)[None, None], (2, 16, 1, 1))
    assert np.abs(h264(frames, 0).astype(int) - frames).max() <= 4


CODECS = [
    "h264_crf",
    "h264_abr",
    "h265_crf",
    "h265_abr",
    "mpeg1",
    "mpeg2",
    "bit_error",
    "packet_loss",
]


@pytest.mark.parametrize(
    ("encoder", "options", "quantiser", "largest_error"),
    [
        ("libx264", {"crf": "0"}, 0, 1.5),
        ("libx265", {"crf": "0"}, 0, 1.5),
        ("mpeg1video", {}, 1, 2.5),
        ("mpeg2video", {}, 1, 2.5),
    ],
)
@pytest.mark.parametrize("size", [(8, 64, 96), (1, 33, 47), (5, 101, 77), (3, 5, 7)], ids=str)
def test_top_quality_restores_the_clip(encoder, options, quantiser, largest_error, size):
    gray = (
        smooth_clip(*size).mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    )  # gray, because chroma has half the resolution
    back = codec._decode(codec._encode(gray, encoder, 25, options, quantiser=quantiser))
    assert back.shape == gray.shape and error(gray, back) < largest_error


@pytest.mark.parametrize("name", CODECS)
def test_codecs_keep_the_order_of_frames(name):
    clip = counting_frames(20, 64)
    assert read_numbers(corrupt(clip, name, 1, np.random.default_rng(0)))[:8] == list(range(8))


def test_average_bit_rate_is_divided_by_its_table():
    """Allow a wide tolerance: one second of video is too short for an encoder to settle."""
    clip = smooth_clip(50, 112, 112, seed=3)
    usual = codec._encode(clip, "libx264", 25, {"crf": "23"}).bytes
    streams = []
    encode = codec._encode

    def watched(*args, **options):
        streams.append(encode(*args, **options))
        return streams[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_encode", watched)
        for severity in (1, 2, 3):
            corrupt(clip, "h264_abr", severity, np.random.default_rng(0))
    sizes = [stream.bytes for stream in streams[1::2]]
    assert streams[0].bytes == usual and sizes == sorted(sizes, reverse=True)
    for size, divisor in zip(sizes, (2, 4, 8), strict=True):
        assert 0.3 < size * divisor / usual < 2


def test_missing_frame_rate_is_treated_as_25():
    """Images and folders of frames have a frame rate of 0."""
    for clip in (smooth_clip(1, 64, 64), smooth_clip(8, 64, 64)):
        for name in ("h264_abr", "h265_abr", "h264_crf", "bit_error"):
            usual = corrupt(clip, name, 3, np.random.default_rng(0))
            for fps in (0.0, 1e-9):
                assert (corrupt(clip, name, 3, np.random.default_rng(0), fps) == usual).all()


def test_transmission_errors_accumulate_after_an_undamaged_first_frame():
    clip = smooth_clip(40, 96, 96)
    clean = corrupt(clip, "h264_crf", 1, np.random.default_rng(0)).astype(int)
    for name in ("bit_error", "packet_loss"):
        spoiled = [corrupt(clip, name, 5, np.random.default_rng(seed)) for seed in range(4)]
        assert all(error(s[0], clip[0]) < 6 for s in spoiled)
        late = np.mean([np.abs(s[20:] - clean[20:]).mean() for s in spoiled])
        assert late > np.mean([np.abs(s[:3] - clean[:3]).mean() for s in spoiled])


def test_lost_frame_repeats_the_last_decoded_frame():
    clip = counting_frames(12, 64)
    stream = codec._encode(clip, "libx264", 25, {"crf": "10", "tune": "zerolatency"})
    lost = stream.with_packets(
        [(b"" if shown in (3, 4) else content, shown) for content, shown in stream.packets]
    )
    numbers = read_numbers(codec._decode(lost))
    assert numbers[:5] == [0, 1, 2, 2, 2]
    late = stream.with_packets(
        [(b"" if shown == 0 else content, shown) for content, shown in stream.packets]
    )
    assert codec._decode(late).shape == clip.shape
    nothing = stream.with_packets([(b"", shown) for _, shown in stream.packets])
    assert (codec._decode(nothing) == 128).all()
    noise = stream.with_packets([(bytes(range(256)), shown) for _, shown in stream.packets])
    assert codec._decode(noise).shape == clip.shape, "random bytes raise no error"


@pytest.mark.parametrize("name", CODECS)
def test_codecs_are_deterministic_whatever_memory_held_before(name):
    rng = np.random.default_rng(0)
    for size in ((8, 112, 112), (6, 46, 34), (9, 56, 56), (6, 80, 64)):
        clip = smooth_clip(*size)
        first = corrupt(clip, name, 4, np.random.default_rng(1))
        for held in rng.integers(1000, 200_000, 6):
            junk = rng.integers(0, 255, held)
            del junk
            assert np.array_equal(first, corrupt(clip, name, 4, np.random.default_rng(1))), size


@pytest.mark.parametrize("name", CODECS)
def test_missing_encoder_error_names_the_encoder_and_the_remedy(name, monkeypatch):
    def codec_of(name, mode):
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av.codec, "Codec", codec_of)
    with pytest.raises(MissingEncoder, match="has no encoder .*pip install --force-reinstall av"):
        corrupt(smooth_clip(2), name, 1, np.random.default_rng(0))


def test_small_frames_do_not_crash_libx265():
    """libx265 wrote out of bounds for frames of less than 65 pixels.

    The test runs in a child process, so that a crash is a failure.
    """
    code = (
        "import numpy as np; from vidrobust.corruptions import corrupt\nfor i in range(40):\n   "
        " for size in ((5, 45, 33), (1, 48, 48), (2, 1, 1)):\n        corrupt(np.full((*size, 3),"
        " i, np.uint8), 'h265_crf', 1 + i % 5, np.random.default_rng(0))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)
