"""Write fractions and times as people read them."""

from collections.abc import Sequence


def percent(
    fraction: float | None, digits: int = 1, *, unit: str = " %", missing: str = "-"
) -> str:
    """Return a fraction in per cent, such as `45.3 %`.

    Args:
        fraction: None for one that was not measured.
        digits: after the point.
        unit: written after the number.
        missing: written in place of None.
    """
    return missing if fraction is None else f"{100 * fraction:.{digits}f}{unit}"


def between(interval: Sequence[float]) -> str:
    """Return the ends of an interval in per cent, such as `40.1 to 50.2`.

    Args:
        interval: two fractions.
    """
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def with_interval(
    fraction: float | None,
    interval: Sequence[float] | None,
    *,
    unit: str = " %",
    missing: str = "-",
) -> str:
    """Return a fraction and its interval, such as `45.3 % (40.1 to 50.2)`.

    Args:
        fraction: None for one that was not measured.
        interval: its ends; None or empty where it is not known, as in files of earlier revisions.
        unit: written after the number.
        missing: written in place of None.
    """
    number = percent(fraction, unit=unit, missing=missing)
    return number if fraction is None or not interval else f"{number} ({between(interval)})"


def duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, such as `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def rough_time(seconds: float) -> str:
    """Return a time in two units at most, such as `3 h 40 min`; `1 s` is the shortest."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
