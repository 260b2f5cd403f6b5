"""Values over steps: smoothing, thinning for drawing, and the ticks of an axis."""

import bisect
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Series:
    """Values by ascending step; NaN where the run wrote null."""

    steps: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.steps, self.values, strict=True)

    def put(self, step: int, value: float) -> None:
        """Appends a value, or replaces that of the last step."""
        if self.steps and self.steps[-1] == step:
            self.values[-1] = value
        else:
            self.steps.append(step)
            self.values.append(value)

    def forget_after(self, step: int) -> None:
        """Drops the values after `step`."""
        keep = bisect.bisect_right(self.steps, step)
        del self.steps[keep:], self.values[keep:]

    @property
    def last(self) -> float | None:
        """The last finite value; None without one."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), None)

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, float]]) -> "Series":
        """Returns a series of (step, value) pairs."""
        return cls(array("q", (step for step, _ in pairs)), array("d", (value for _, value in pairs)))


def smoothed(series: Series, window: int) -> Series:
    """Returns the moving average over `window` points around each, fewer at the ends, without non-finite values."""
    sums, counts = [0.0], [0]
    for value in series.values:
        finite = math.isfinite(value)
        sums.append(sums[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    means = array("d")
    for index in range(len(series)):
        reach = min(window // 2, index, len(series) - 1 - index)
        start, stop = index - reach, index + reach + 1
        count = counts[stop] - counts[start]
        means.append((sums[stop] - sums[start]) / count if count else math.nan)
    return Series(series.steps, means)


def window_for(series: Series) -> int:
    """Returns the window to smooth over: a fortieth of the points, at least five; 1 below 30 points."""
    return max(5, len(series) // 40) | 1 if len(series) >= 30 else 1


def thinned(series: Series, most: int) -> Series:
    """Returns about `most` points at most that look the same when drawn: the extremes of each range."""
    if len(series) <= most:
        return series
    stretch = math.ceil(2 * len(series) / most)
    kept: list[tuple[int, float]] = []
    pairs = list(series)
    for start in range(0, len(pairs), stretch):
        part = [pair for pair in pairs[start : start + stretch] if math.isfinite(pair[1])]
        if part:
            ends = {min(part, key=lambda pair: pair[1]), max(part, key=lambda pair: pair[1])}
            kept += sorted(ends)
        else:
            kept.append(pairs[start])
    if kept[-1][0] != pairs[-1][0]:
        kept.append(pairs[-1])
    return Series.of(kept)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns at most `most` round numbers from `low` to `high`, spaced by 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (factor * power for factor in (1, 2, 5, 10, 20, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [index * step for index in range(first, last + 1)]
    return [low]


def widened(low: float, high: float) -> tuple[float, float]:
    """Returns the range with a margin, so that no point is on the frame; never an empty range."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def short(value: float) -> str:
    """Returns a tick's label, such as 12k for 12,000 and 2e-5 for 0.00002."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    if 0 < size < 1e-2:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{round(value, 6):g}"
