"""Differences between arms over seeds and test videos."""

import math

import numpy as np
import pytest
from scipy import stats

from vidrobust.study.outcomes import _fraction, _mean
from vidrobust.study.paired_test import (
    DRAWS,
    differences_by_draw,
    holm,
    paired_test_of,
    power,
    seeds_needed,
)


def runs(rng, seeds, videos, level=0.5, of_seed=0.0):
    """Numbers (videos, 1) of runs that are right with a probability that varies by seed."""
    levels = level + of_seed * rng.standard_normal(seeds)
    return [(rng.random((videos, 1)) < each).astype(float) for each in levels]


def test_a_measure_of_videos_that_are_drawn_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    numbers = rng.random((7, 2))
    weights = rng.multinomial(7, np.full(7, 1 / 7), 20)
    for row in weights:
        drawn = np.repeat(numbers, row, 0)
        assert _mean(row[None], numbers)[0] == pytest.approx(drawn[:, 0].mean())
        expected = drawn[:, 0].mean() / drawn[:, 1].mean()
        assert _fraction(row[None], numbers)[0] == pytest.approx(expected)
    assert _fraction(np.ones((1, 2)), np.zeros((2, 2)))[0] == 0


def test_without_videos_it_is_students_paired_test():
    rng = np.random.default_rng(1)
    values = rng.normal(0.3, 1.0, 8)
    test = paired_test_of(values, np.tile(values, (50, 1)), 100)
    expected = stats.ttest_1samp(values, 0)
    low, high = expected.confidence_interval()
    assert test.mean == pytest.approx(values.mean())
    assert test.half == pytest.approx((high - low) / 2, rel=1e-6)
    assert test.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert test.effect == pytest.approx(values.mean() / values.std(ddof=1))


def test_the_spread_over_videos_is_part_of_the_interval():
    """Two seeds that agree exactly are no certainty: they share the test videos."""
    rng = np.random.default_rng(2)
    arm, other = runs(rng, 1, 400)[0], runs(rng, 1, 400)[0]
    values, by_draw = differences_by_draw([arm, arm], [other, other], _mean)
    test = paired_test_of(values, by_draw, 400)
    standard_error = (arm - other).std() / math.sqrt(400)
    assert values[0] == values[1] and test.effect is None
    # chance is not known where all seeds agree: what varies is all put down to the videos
    assert test.half == pytest.approx(1.96 * standard_error, rel=0.1)
    assert test.seeds_needed is None or test.p < 0.05


@pytest.mark.parametrize("of_video", [0.0, 0.3])
def test_no_difference_is_found_in_one_of_twenty_studies_at_most(of_video):
    """Also where an arm is better on some videos and worse on others, which chance may favour."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(300):
        favours = of_video * rng.choice([-1, 1], (120, 1))

        def of_seed(sign, favours=favours):
            level = 0.5 + sign * favours + 0.03 * rng.standard_normal()
            return (rng.random((120, 1)) < level).astype(float)

        arm, other = ([of_seed(sign) for _ in range(4)] for sign in (1, -1))
        values, by_draw = differences_by_draw(arm, other, _mean)
        found.append(paired_test_of(values, by_draw, 120).p < 0.05)
    assert np.mean(found) <= 0.075


def test_a_true_difference_is_found():
    rng = np.random.default_rng(4)
    arm, other = runs(rng, 5, 1000, 0.6, 0.01), runs(rng, 5, 1000, 0.5, 0.01)
    values, by_draw = differences_by_draw(arm, other, _mean)
    test = paired_test_of(values, by_draw, 1000)
    assert test.p < 0.01 and 0.06 < test.mean - test.half < 0.1 < test.mean + test.half < 0.16
    assert by_draw.shape == (DRAWS, 5)


def test_power_is_that_of_simulated_studies():
    """Without videos: the noncentral t; with them, few seeds more do not help."""
    rng = np.random.default_rng(5)
    samples = rng.normal(0.5, 1.0, (4000, 20))
    found = stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05
    assert power(0.5, 1.0, 0.0, 20, 9) == pytest.approx(found.mean(), abs=0.03)
    needed = seeds_needed(0.5, 1.0, 0.0, 9)
    assert power(0.5, 1.0, 0.0, needed, 9) >= 0.8 > power(0.5, 1.0, 0.0, needed - 1, 9)
    assert needed == 34  # tables of Cohen 1988
    assert seeds_needed(0.5, 1.0, 0.4, 9) is None
    assert seeds_needed(0.0, 1.0, 0.0, 9) is None
    assert seeds_needed(0.5, 0.0, 0.0, 9) == 2


def test_one_seed_has_a_difference_and_no_interval():
    test = paired_test_of(np.array([0.25]), np.full((DRAWS, 1), 0.25), 10)
    assert (test.mean, test.half, test.p, test.seeds_needed) == (0.25, None, None, None)


def test_holms_correction():
    """The example of Holm's procedure: the smallest of m p-values counts m times."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9])[1] is None
    assert holm([]) == []
