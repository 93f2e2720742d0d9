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


def test_ours_and_the_published_formulas_agree():
    """Where nothing is drawn, to a rounding; where something is, in how much they change."""
    published = pytest.importorskip("vidrobust.corruptions.published", reason="needs OpenCV and scikit-image").PUBLISHED
    clip = drawn_clip(1, 224, 224)
    rng, random = np.random.default_rng, np.random.RandomState
    for name, function in published.items():
        for severity in (1, 3, 5):
            ours = speed.corrupt(clip, name, severity, rng(0))[0].astype(float)
            theirs = function(clip[0], severity, random(0)).astype(float)
            if name in ("brightness", "contrast"):
                assert np.abs(ours - theirs).max() <= 1.01, name
            elif name in ("jpeg_compression", "pixelate", "defocus_blur", "zoom_blur"):
                assert np.abs(ours - theirs).mean() < 3, (name, severity)
            elif name not in ("frost", "glass_blur", "elastic_transform"):
                change = [np.abs(x - clip[0]).mean() for x in (ours, theirs)]
                assert 0.6 < change[0] / change[1] < 1.6, (name, severity, change)
