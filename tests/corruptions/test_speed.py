import numpy as np
import pytest

from tests.helpers import tool
from vidrobust.corruptions import speed
from vidrobust.corruptions.speed import drawn_clip, measure_rates


def test_rates_are_measured_of_all_severities_beside_the_published(monkeypatch):
    calls = []

    def published(frame, severity, random):
        calls.append((frame.shape, severity))
        return frame

    monkeypatch.setattr(speed, "published", lambda: ({"contrast": published}, ""))
    contrast, fog = measure_rates(drawn_clip(3, 16, 20), ["contrast", "fog"], rounds=2)
    assert len(contrast.ours) == len(contrast.published) == len(fog.ours) == 2 and not fog.published
    assert calls[2:] == 3 * [((16, 20, 3), s) for s in range(1, 6) for _ in range(3)], "a round to warm up"
    measure_rates(drawn_clip(3, 16, 20), ["contrast"], rounds=1, slow_s=0)
    assert calls[-20:] == 2 * [((16, 20, 3), s) for s in range(1, 6) for _ in range(2)], "two frames for a slow one"
    assert contrast.ratio > 0 and fog.ratio is None and contrast.size == 16


def test_the_tool_prints_a_row_a_corruption_and_size(tmp_path):
    done = tool("benchmark", "corruptions", "--rounds", "1", "--sizes", "32,48", "data.frames=2",
                "eval.corruption.names=[contrast,h264_crf]", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ")[:2] for line in done.stdout.splitlines() if line.startswith(("| contrast", "| h264"))]
    assert [(name.strip("| "), size) for name, size in rows] == [
        ("contrast", "32"), ("h264_crf", "32"), ("contrast", "48"), ("h264_crf", "48")
    ]  # fmt: skip


@pytest.mark.parametrize("severity", range(1, 6))
def test_ours_and_the_published_formulas_agree(severity):
    """Where nothing is drawn, to a rounding; where something is, in how much they change.

    Not frost, whose photographs are replaced on both sides, elastic_transform, whose maps are drawn, nor glass_blur,
    whose published loop also moves the picture.
    """
    published = pytest.importorskip("vidrobust.corruptions.published", reason="needs OpenCV and scikit-image").PUBLISHED
    clip = drawn_clip(1, 224, 224)
    most = {"brightness": 1.01, "contrast": 1.01, "jpeg_compression": 0, "pixelate": 0}  # of a value's difference
    change = {"gaussian_noise": 0.02, "shot_noise": 0.02, "impulse_noise": 0.05, "defocus_blur": 0.02,
              "motion_blur": 0.04, "zoom_blur": 0.03, "snow": 0.1, "fog": 0.2}  # fmt: skip
    for name in most.keys() | change.keys():
        ours = [speed.corrupt(clip, name, severity, np.random.default_rng(k))[0].astype(float) for k in range(3)]
        theirs = [published[name](clip[0], severity, np.random.RandomState(k)).astype(float) for k in range(3)]
        if name in most:
            assert np.abs(ours[0] - theirs[0]).max() <= most[name], name
        else:
            sizes = [np.mean([np.abs(x - clip[0]).mean() for x in found]) for found in (ours, theirs)]
            assert sizes[0] / sizes[1] == pytest.approx(1, abs=change[name]), (name, sizes)
