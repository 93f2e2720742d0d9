import pytest

from vidrobust.evaluation import wilson


def test_the_wilson_interval_has_the_published_values():
    low, high = wilson(8, 10)  # 0.49 to 0.94 in textbooks
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))


def test_the_wilson_interval_stays_in_0_1_and_narrows_with_more_data():
    assert wilson(0, 20)[0] == 0 and wilson(20, 20)[1] == pytest.approx(1)
    assert wilson(0, 0) == (0, 1)
    widths = [wilson(n // 2, n)[1] - wilson(n // 2, n)[0] for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)
