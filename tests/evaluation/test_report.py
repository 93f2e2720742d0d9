import numpy as np
import pytest

from vidrobust.evaluation.report import _shown
from vidrobust.evaluation.summary import learned_nothing


@pytest.mark.parametrize(
    ("frames", "changed", "expected"),
    [
        (4, [0, 1, 2, 3], [0, 1, 2, 3]),
        (24, range(24), [0, 3, 7, 10, 13, 16, 20, 23]),
        (24, [], [0, 3, 7, 10, 13, 16, 20, 23]),
        (24, [5, 6], [0, 3, 5, 6, 7, 10, 13, 16]),  # the picture is of what was changed
        (24, range(4, 14), [4, 5, 7, 8, 9, 10, 12, 13]),
    ],
)
def test_a_picture_shows_the_frames_that_were_changed(frames, changed, expected):
    difference = np.full((3, frames, 2, 2), 1e-8)
    difference[1, list(changed), 0, 1] = -0.01
    assert _shown(difference).tolist() == expected


@pytest.mark.parametrize(("trained", "random", "told"), [(0.4, 0.3, False), (0.3, 0.3, True), (0.2, 0.3, True)])
def test_a_model_that_learned_nothing_is_told(trained, random, told):
    lines = learned_nothing({"trained_probe": {"acc": trained}, "random_probe": {"acc": random}})
    assert bool(lines) == told and all(f"({100 * trained:.1f} %) is not above" in line for line in lines)
