"""Numbers as the report writes them."""

import math

DASH = "\N{EN DASH}"
"""Separates the ends of a range, and stands for a missing value."""


def number(value: float | None, digits: int = 4) -> str:
    """Returns a value with `digits` decimals, or a dash where it is missing or not finite."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """Returns an integer with separators for thousands, or a dash where it is missing."""
    return DASH if value is None else f"{value:,}"


def percent(value: float, digits: int = 0) -> str:
    """Returns a share between 0 and 1 as a percentage."""
    return f"{value:.{digits}%}"


def duration(seconds: float) -> str:
    """Returns a time in seconds as seconds, minutes and seconds, or hours and minutes."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def is_finite(value: float | None) -> bool:
    """Whether a value is there and neither NaN nor infinite."""
    return value is not None and math.isfinite(value)
