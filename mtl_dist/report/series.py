"""Numbers over steps: smoothed, thinned out for drawing, and the ticks of an axis."""

import bisect
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Series:
    """Values by step, steps ascending; NaN where the run wrote null."""

    steps: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.steps, self.values, strict=True)

    def put(self, step: int, value: float) -> None:
        """Appends, or replaces what stands at the last step."""
        if self.steps and self.steps[-1] == step:
            self.values[-1] = value
        else:
            self.steps.append(step)
            self.values.append(value)

    def forget_after(self, step: int) -> None:
        """Drops what is later than `step`."""
        keep = bisect.bisect_right(self.steps, step)
        del self.steps[keep:], self.values[keep:]

    @property
    def last(self) -> float | None:
        """The last value that is a number."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), None)

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, float]]) -> "Series":
        return cls(array("q", (step for step, _ in pairs)), array("d", (value for _, value in pairs)))


def smoothed(series: Series, window: int) -> Series:
    """The mean over `window` points around each, fewer at the ends; what is not a number is left out."""
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
    """Points to smooth over: a fortieth of them, and five at least; 1 where there are too few to need it."""
    return max(5, len(series) // 40) | 1 if len(series) >= 30 else 1


def thinned(series: Series, most: int) -> Series:
    """At most about `most` points that look the same when drawn: of each stretch the least and the greatest."""
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
    """Round numbers from `low` to `high`, at most `most` of them, 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (factor * power for factor in (1, 2, 5, 10, 20, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [index * step for index in range(first, last + 1)]
    return [low]


def widened(low: float, high: float) -> tuple[float, float]:
    """A little more than from `low` to `high`, so that nothing lies on the frame; never an empty range."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def short(value: float) -> str:
    """A tick's label: 12k for 12,000, 2e-05 for what is very small."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    if 0 < size < 1e-2:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{round(value, 6):g}"
