"""Fractions and times as people read them."""

import pytest

from vidrobust.utils.readable import between, duration, percent, rough_time, with_interval


def test_fractions_have_one_digit_and_a_unit():
    assert percent(0.4534) == "45.3 %"
    assert percent(0.4534, 0) == "45 %"
    assert percent(1.0, unit="") == "100.0"
    assert percent(None) == "-"
    assert percent(None, missing="") == ""
    # none is right is a result, and not a missing one
    assert percent(0.0) == "0.0 %"


def test_intervals_follow_their_number():
    assert between([0.401, 0.502]) == "40.1 to 50.2"
    assert with_interval(0.0, (0.0, 0.037)) == "0.0 % (0.0 to 3.7)"
    assert with_interval(0.45, [0.4, 0.5], unit="") == "45.0 (40.0 to 50.0)"


@pytest.mark.parametrize("interval", [None, [], ()])
def test_a_number_without_an_interval_stands_alone(interval):
    assert with_interval(0.45, interval) == "45.0 %"
    assert with_interval(None, interval, missing="") == ""


def test_a_missing_number_has_no_interval():
    assert with_interval(None, [0.0, 1.0]) == "-"


def test_durations():
    assert [duration(each) for each in (0, 59.6, 3723)] == ["0:00:00", "0:01:00", "1:02:03"]


def test_rough_times_have_two_units_at_most():
    times = [0, 12, 59.4, 59.7, 61, 3599, 3600, 90 * 60, 50 * 3600, 72 * 3600]
    words = [
        *("1 s", "12 s", "59 s", "1 min", "1 min"),
        *("1 h", "1 h", "1 h 30 min", "2 d 2 h", "3 d"),
    ]
    assert [rough_time(each) for each in times] == words
