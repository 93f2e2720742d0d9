import numpy as np
import pytest

from tests.helpers import tool
from vidrobust.benchmarks import corruptions as speed
from vidrobust.benchmarks.corruptions import drawn_clip, measure_rates


def test_rates_cover_all_severities_of_ours_and_of_the_published_formulas(monkeypatch):
    calls = []

    def published(frame, severity, random):
        calls.append((frame.shape, severity))
        return frame

    monkeypatch.setattr(speed, "published", lambda: ({"contrast": published}, ""))
    contrast, fog = measure_rates(drawn_clip(3, 16, 20), ["contrast", "fog"], rounds=2)
    assert len(contrast.ours) == len(contrast.published) == len(fog.ours) == 2 and not fog.published
    assert calls[2:] == 3 * [((16, 20, 3), s) for s in range(1, 6) for _ in range(3)], (
        "after a round to warm up"
    )
    measure_rates(drawn_clip(3, 16, 20), ["contrast"], rounds=1, slow_s=0)
    assert calls[-20:] == 2 * [((16, 20, 3), s) for s in range(1, 6) for _ in range(2)], (
        "a slow formula gets two frames"
    )
    assert contrast.ratio > 0 and fog.ratio is None and contrast.size == 16


def test_the_tool_prints_a_row_per_corruption_and_size(tmp_path):
    done = tool(
        "benchmark",
        "corruptions",
        "--rounds",
        "1",
        "--sizes",
        "32,48",
        "data.frames=2",
        "eval.corruption.names=[contrast,h264_crf]",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = [
        line.split(" | ")[:2]
        for line in done.stdout.splitlines()
        if line.startswith(("| contrast", "| h264"))
    ]
    assert [(name.strip("| "), size) for name, size in rows] == [
        ("contrast", "32"),
        ("h264_crf", "32"),
        ("contrast", "48"),
        ("h264_crf", "48"),
    ]


@pytest.mark.parametrize("severity", range(1, 6))
def test_ours_and_the_published_formulas_agree(severity):
    """Deterministic corruptions agree up to rounding, random ones in how much they change.

    Three are left out: frost, whose photographs are replaced on both sides; elastic_transform,
    whose maps are random; glass_blur, whose published loop also shifts the image.
    """
    module = "vidrobust.benchmarks.reference.imagenet_c"
    published = pytest.importorskip(module, reason="needs OpenCV and scikit-image").PUBLISHED
    clip = drawn_clip(1, 224, 224)
    # largest difference of a pixel value
    most = {
        "brightness": 1.01,
        "contrast": 1.01,
        "jpeg_compression": 0,
        "pixelate": 0,
    }
    # relative difference of the mean change
    change = {
        "gaussian_noise": 0.02,
        "shot_noise": 0.02,
        "impulse_noise": 0.05,
        "defocus_blur": 0.02,
        "motion_blur": 0.04,
        "zoom_blur": 0.03,
        "snow": 0.1,
        "fog": 0.2,
    }
    for name in most.keys() | change.keys():
        ours = [
            speed.corrupt(clip, name, severity, np.random.default_rng(k))[0].astype(float)
            for k in range(3)
        ]
        theirs = [
            published[name](clip[0], severity, np.random.RandomState(k)).astype(float)
            for k in range(3)
        ]
        if name in most:
            assert np.abs(ours[0] - theirs[0]).max() <= most[name], name
        else:
            sizes = [
                np.mean([np.abs(x - clip[0]).mean() for x in frames]) for frames in (ours, theirs)
            ]
            assert sizes[0] / sizes[1] == pytest.approx(1, abs=change[name]), (name, sizes)


# severities 1 to 5: mean change of a pixel value, and mean value weighted by the row, so that a
# flip is noticed; without impulse_noise, for which scikit-image uses its own random generator
FINGERPRINTS = {
    "gaussian_noise": (
        (16.09, 127.89),
        (24.0, 127.94),
        (35.31, 128.0),
        (48.75, 128.1),
        (64.65, 128.24),
    ),
    "shot_noise": (
        (18.07, 127.59),
        (27.7, 127.36),
        (39.14, 126.82),
        (57.5, 121.91),
        (71.28, 116.92),
    ),
    "defocus_blur": (
        (4.09, 127.83),
        (5.18, 127.83),
        (8.28, 127.85),
        (11.87, 129.52),
        (16.0, 129.25),
    ),
    "glass_blur": ((8.13, 127.02), (6.99, 127.19), (15.81, 126.46), (13.2, 126.56), (15.17, 126.6)),
    "motion_blur": (
        (10.27, 128.21),
        (16.28, 128.47),
        (22.73, 128.78),
        (27.71, 129.05),
        (30.35, 129.14),
    ),
    "zoom_blur": (
        (9.96, 128.17),
        (12.63, 128.3),
        (14.82, 128.38),
        (16.95, 128.41),
        (19.04, 128.38),
    ),
    "snow": ((45.04, 172.98), (72.29, 200.28), (76.58, 204.66), (92.63, 220.66), (102.48, 230.0)),
    "frost": ((50.63, 178.53), (51.1, 178.82), (51.18, 178.8), (44.86, 172.41), (44.91, 172.4)),
    "fog": ((31.0, 111.04), (34.18, 109.31), (36.86, 109.27), (36.36, 111.89), (38.45, 112.13)),
    "brightness": (
        (19.74, 147.52),
        (38.84, 166.56),
        (53.81, 181.25),
        (63.86, 190.62),
        (69.09, 195.17),
    ),
    "contrast": (
        (21.94, 127.01),
        (25.6, 126.88),
        (29.25, 126.74),
        (32.91, 126.61),
        (34.74, 126.54),
    ),
    "elastic_transform": (
        (45.07, 126.43),
        (48.91, 121.87),
        (11.95, 128.82),
        (13.07, 129.04),
        (16.45, 129.51),
    ),
    "pixelate": ((4.16, 128.22), (4.74, 128.31), (5.94, 128.0), (7.58, 127.92), (8.52, 128.06)),
    "jpeg_compression": (
        (6.31, 127.56),
        (7.24, 127.42),
        (8.16, 127.99),
        (10.99, 128.36),
        (13.71, 127.39),
    ),
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_published_formulas_do_not_change(name):
    """Our corruptions are compared with them; three of them are not compared anywhere else."""
    module = pytest.importorskip(
        "vidrobust.benchmarks.reference.imagenet_c", reason="needs OpenCV and scikit-image"
    )
    clip = drawn_clip(1, 96, 96)[0]
    for severity, (change, weighted) in enumerate(FINGERPRINTS[name], 1):
        frame = module.PUBLISHED[name](clip, severity, np.random.RandomState(0)).astype(float)
        assert np.abs(frame - clip).mean() == pytest.approx(change, rel=0.003, abs=0.03), severity
        by_row = (frame * np.arange(96)[:, None, None]).mean() / 47.5
        assert by_row == pytest.approx(weighted, abs=0.03), severity
