import hashlib
import itertools
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.schedule.index_shuffle import ROUNDS, shuffled_indices


def test_each_pass_visits_every_value_once() -> None:
    for size, seed in itertools.product(range(1, 301), [0, 1, 2**63 - 1]):
        passes = shuffled_indices(0, 3 * size, size, seed, "rows").reshape(3, size)
        assert np.array_equal(np.sort(passes), np.tile(np.arange(size), (3, 1)))


def test_every_pass_seed_and_name_has_its_own_order() -> None:
    keys = list(itertools.product(range(12), ["", "rows", "rows of a", "1/rows"]))
    orders = [shuffled_indices(0, 12 * 50, 50, seed, name).reshape(12, 50) for seed, name in keys]
    assert len(np.unique(np.concatenate(orders), axis=0)) == 12 * len(keys)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 200), st.integers(0, 2**63 - 1))
def test_a_range_is_a_slice_of_the_sequence(size: int, start: int, count: int, seed: int) -> None:
    stop = start + count
    assert np.array_equal(
        shuffled_indices(start, stop, size, seed, "rows"), shuffled_indices(0, stop, size, seed, "rows")[start:]
    )


def plain_shuffled_index(place: int, size: int, seed: int, name: str) -> int:
    """The definition for one place, in Python's unbounded integers."""
    number, value = divmod(place, size)
    key = hashlib.shake_128(f"{seed}/{number}/{name}".encode()).digest(8 * ROUNDS)
    keys = struct.unpack(f"<{ROUNDS}Q", key)
    width = math.isqrt(size)
    width += width * width < size
    height = (size + width - 1) // width
    while True:
        left, right = value % width, value // width
        for key_of_left, key_of_right in zip(keys[::2], keys[1::2], strict=True):
            left = (left + plain_mix(right ^ key_of_left)) % width
            right = (right + plain_mix(left ^ key_of_right)) % height
        value = right * width + left
        if value < size:
            return value


def plain_mix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 10**9, 10**9 + 7, 2**60 + 1, 2**62 - 1])
@pytest.mark.parametrize("start", [0, 10**9 - 20, 10**15, 2**62])
def test_large_sizes_and_places_do_not_overflow(size: int, start: int) -> None:
    expected = [plain_shuffled_index(place, size, 42, "rows") for place in range(start, start + 40)]
    assert shuffled_indices(start, start + 40, size, 42, "rows").tolist() == expected


@pytest.mark.parametrize(
    ("start", "size", "seed", "name", "values"),
    [
        (0, 12, 0, "rows of sentiment", [9, 1, 6, 10, 2, 5, 7, 3, 4, 11, 8, 0, 3, 7, 11, 5]),
        (10**12, 10**9, 42, "rows of sentiment", [876908804, 545739286, 178785307, 136197188, 241589030, 307655481]),
        (64, 64, 42, "ranks of the steps", [39, 12, 44, 37, 14, 58, 60, 49]),
    ],
)
def test_the_order_is_the_same_in_every_version(start: int, size: int, seed: int, name: str, values: list[int]) -> None:
    """Stored on purpose: a run that is resumed, or repeated on another machine or version, must draw the same rows."""
    assert shuffled_indices(start, start + len(values), size, seed, name).tolist() == values


def deviations(counts: np.ndarray, degrees_of_freedom: int) -> float:
    """Distance of the chi-square statistic of equally likely cells from its mean, in standard deviations."""
    expected = counts.mean()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return (statistic - degrees_of_freedom) / math.sqrt(2 * degrees_of_freedom)


@pytest.mark.parametrize(("size", "passes"), [(2, 10_000), (3, 10_000), (4, 20_000), (5, 40_000)])
def test_all_orders_of_few_values_are_equally_frequent(size: int, passes: int) -> None:
    orders = shuffled_indices(0, size * passes, size, 7, "rows").reshape(passes, size)
    counts = np.bincount(np.unique(orders, axis=0, return_inverse=True)[1], minlength=math.factorial(size))
    assert abs(deviations(counts, math.factorial(size) - 1)) < 4


def test_every_place_has_every_value_equally_often() -> None:
    size, passes = 30, 4000
    values = shuffled_indices(0, size * passes, size, 7, "rows")
    counts = np.bincount(np.tile(np.arange(size), passes) * size + values, minlength=size * size)
    assert abs(deviations(counts, (size - 1) ** 2)) < 4


@pytest.mark.parametrize("size", [101, 10**9])
def test_neighbouring_places_have_unrelated_values(size: int) -> None:
    """Neighbours never have the same value, so their difference is uniform on 1 to size - 1."""
    values = shuffled_indices(0, 100 * 101, size, 7, "rows").reshape(-1, 101)
    bins = (np.diff(values) % size - 1) * 100 // (size - 1)
    assert abs(deviations(np.bincount(bins.ravel(), minlength=100), 99)) < 4


def test_values_of_a_billion_are_spread_evenly() -> None:
    values = shuffled_indices(5 * 10**8, 5 * 10**8 + 20_000, 10**9, 7, "rows")
    assert len(np.unique(values)) == len(values)
    assert abs(deviations(np.bincount(values * 100 // 10**9, minlength=100), 99)) < 4
