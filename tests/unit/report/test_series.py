"""Smoothing, thinning and ticks, compared with plain references."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_dist.report.series import Series, short, smoothed, thinned, ticks, window_for

FLOATS = st.floats(-1e6, 1e6) | st.just(math.nan)
VALUES = st.lists(FLOATS, min_size=1, max_size=200)


def series_of(values: list[float]) -> Series:
    return Series.of([(7 * index, value) for index, value in enumerate(values)])


@given(VALUES, st.integers(0, 20).map(lambda half: 2 * half + 1))
def test_smoothing_is_a_mean_over_neighbours(values: list[float], window: int) -> None:
    found = smoothed(series_of(values), window)
    for index, value in enumerate(found.values):
        reach = min(window // 2, index, len(values) - 1 - index)
        near = [one for one in values[index - reach : index + reach + 1] if math.isfinite(one)]
        assert value == pytest.approx(math.fsum(near) / len(near) if near else math.nan, abs=1e-6, nan_ok=True)
    assert found.steps == series_of(values).steps


@given(VALUES, st.integers(4, 50))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float], most: int) -> None:
    series = series_of(values)
    found = thinned(series, most)
    # Two points for the extremes of each range, one for the last step.
    assert len(found) <= most + 3
    assert list(found.steps) == sorted(set(found.steps))
    assert {pair for pair in found if math.isfinite(pair[1])} <= set(series)
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        kept = [value for value in found.values if math.isfinite(value)]
        assert (min(kept), max(kept)) == (min(finite), max(finite))
    assert found.steps[-1] == series.steps[-1]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_round_evenly_spaced_and_inside(low: float, width: float, most: int) -> None:
    high = low + width
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in found)
    if len(found) > 1:
        apart = found[1] - found[0]
        assert all(b - a == pytest.approx(apart) for a, b in pairwise(found))
        mantissa = float(f"{apart:.3e}".split("e")[0])
        assert mantissa in (1, 2, 5)


def test_ticks_are_written_short() -> None:
    assert [short(value) for value in (0, 0.25, 1, 1500, 12000, 2.5e6)] == ["0", "0.25", "1", "1500", "12k", "2.5M"]
    assert [short(value) for value in (0.0005, 0.001, 0.0015, 2e-5)] == ["5e-4", "1e-3", "1.5e-3", "2e-5"]


def test_only_long_series_are_smoothed() -> None:
    assert [window_for(series_of([0.0] * count)) for count in (1, 29, 30, 239, 240, 4000)] == [1, 1, 5, 5, 7, 101]
