"""Charts as HTML with an SVG inside: the drawing stretches to any width, while its text keeps its size.

An SVG of 1000 x 1000 units is stretched over the plot; lines keep their width (`vector-effect`). Ticks and names are
HTML around it, positioned in percent, so that a chart is readable on a telephone and on paper, and needs no script.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from mtl_dist.report.markup import joined, json_script, tag
from mtl_dist.report.series import Series, short, thinned, ticks, widened

SIZE = 1000
"""Width and height of a plot in SVG units."""
MARKS = {"restart": "resumed", "lost": "lost: went back to earlier weights"}
"""Legend entries by kind of mark."""
COLOURS = 8
"""Number of colours for lines; further lines use the same colours dashed."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    """Name in the legend and the read-out; empty for a line that is in neither."""
    series: Series
    colour: int = 0
    style: str = "line"
    """`line`; `faint` for the raw values of a smoothed line; `points` for a line with a point at each value."""
    dashed: bool = False
    """Whether the line is dashed even in its first colour, so that a line under it shows between the dashes."""

    @property
    def classes(self) -> str:
        """CSS classes of the line."""
        dashed = " dashed" if self.dashed or self.colour >= COLOURS else ""
        return f"{self.style} s{self.colour % COLOURS}{dashed}"


@dataclass(frozen=True)
class Band:
    """A named range of steps, shaded in the background."""

    name: str
    start: float
    stop: float


@dataclass(frozen=True)
class Mark:
    """An event at a step, or over a range of steps that were rolled back."""

    title: str
    start: float
    stop: float
    kind: str
    """A key of MARKS."""


@dataclass(frozen=True)
class Axis:
    """Range of a chart's values, and the function that formats them."""

    low: float
    high: float
    label: Callable[[float], str] = short

    def share(self, value: float) -> float:
        """Returns the position of `value` between `low` (0) and `high` (1)."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Steps:
    """Horizontal axis and background that all charts of a run share."""

    total: int
    bands: tuple[Band, ...] = ()
    marks: tuple[Mark, ...] = ()

    @property
    def axis(self) -> Axis:
        return Axis(0, max(1, self.total))

    @property
    def ticks(self) -> list[float]:
        """Steps with a label; fewer where the labels are longer."""
        return [step for step in ticks(0, self.axis.high, 8 if self.total < 1000 else 6) if step == int(step)]


def from_zero(lines: Sequence[Line]) -> Axis:
    """Returns an axis from 0 to the lines' maximum.

    The highest 2 % of the values of a faint line are left out, so that a spike does not flatten the smoothed line.
    """
    tops = [1e-12]
    for line in lines:
        finite = sorted(value for value in line.series.values if math.isfinite(value))
        if finite:
            tops.append(finite[int(0.98 * (len(finite) - 1))] if line.style == "faint" else finite[-1])
    return Axis(0.0, 1.06 * max(tops))


def around(lines: Sequence[Line]) -> Axis:
    """Returns an axis from the smallest to the largest value, with a margin."""
    finite = [value for line in lines for value in line.series.values if math.isfinite(value)]
    return Axis(*widened(min(finite), max(finite))) if finite else Axis(0.0, 1.0)


def chart(title: str, lines: Sequence[Line], steps: Steps, axis: Axis, cls: str = "", points: int = 600) -> Markup:
    """Returns a chart of lines over steps, with its legend; about `points` points of a line are drawn at most."""
    drawn = [replace(line, series=thinned(line.series, points)) for line in lines]
    shapes = [*_background(steps), *_grid(axis, steps), *[_path(line, steps.axis, axis) for line in drawn]]
    named = [line for line in drawn if line.name]
    read_out = [
        {
            "n": line.name,
            "c": line.classes,
            "x": list(line.series.steps),
            "y": [round_to(value) for value in line.series.values],
        }
        for line in named
    ]
    empty = not any(len(line.series) for line in lines)
    plot = tag(
        "div",
        tag("svg", shapes, viewBox=f"0 0 {SIZE} {SIZE}", preserveAspectRatio="none", role="img", aria_label=title),
        tag("p", "no values yet", cls="empty") if empty else None,
        cls="plot",
    )
    return tag(
        "figure",
        tag("figcaption", tag("b", title), legend(named, steps.marks if "wide" in cls else ())),
        frame(plot, value_labels(axis), steps),
        None if empty else json_script({"total": steps.axis.high, "lines": read_out}),
        cls=f"chart {cls}".strip(),
    )


def frame(plot: Markup, labels: Sequence[Markup], steps: Steps) -> Markup:
    """Returns a plot with the names of its phases above, its labels on the left and its steps below."""
    width = steps.axis
    names = [
        tag("span", band.name, title=band.name, style=_at(left=width.share(band.start), width=_width(band, width)))
        for band in steps.bands
    ]
    below = [tag("span", short(step), style=_at(left=width.share(step))) for step in steps.ticks]
    return tag(
        "div",
        tag("div", names, cls="names"),
        tag("div", labels, cls="labels"),
        plot,
        tag("div", "step", cls="unit"),
        tag("div", below, cls="steps"),
        cls="frame",
    )


def value_labels(axis: Axis) -> list[Markup]:
    """Returns the labels of the vertical axis."""
    return [tag("span", axis.label(value), style=_at(bottom=axis.share(value))) for value in ticks(axis.low, axis.high)]


def legend(lines: Sequence[Line], marks: Sequence[Mark] = ()) -> Markup | None:
    """Returns the names of lines and of the kinds of marks, each beside a sample; None where there are none."""
    entries = [key(line.name, line.classes) for line in lines]
    entries += [key(MARKS[kind], f"mark {kind}") for kind in MARKS if any(mark.kind == kind for mark in marks)]
    return tag("span", entries, cls="legend") if entries else None


def key(name: str, classes: str) -> Markup:
    """Returns one entry of a legend."""
    sample = tag("svg", tag("path", d="M1 5H21", cls=classes), viewBox="0 0 22 10", aria_hidden="true")
    return tag("span", sample, name, cls="key")


def round_to(value: float) -> float | None:
    """Rounds to five significant digits; None, as JSON has no NaN, for a value that is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _background(steps: Steps) -> list[Markup]:
    width = steps.axis
    shapes = []
    for index, band in enumerate(steps.bands):
        left = SIZE * width.share(band.start)
        size = {"x": f"{left:.2f}", "y": 0, "width": f"{SIZE * _width(band, width):.2f}", "height": SIZE}
        shapes.append(tag("rect", **size, cls=f"band b{index % 2}"))
        if index:
            shapes.append(tag("path", d=f"M{left:.2f} 0V{SIZE}", cls="boundary"))
    for mark in steps.marks:
        left, right = (SIZE * width.share(at) for at in (mark.start, mark.stop))
        outline = f"M{left:.2f} 0H{right:.2f}V{SIZE}H{left:.2f}Z"
        shapes.append(tag("path", tag("title", mark.title), d=outline, cls=f"mark {mark.kind}"))
    return shapes


def _grid(axis: Axis, steps: Steps) -> list[Markup]:
    rows = "".join(f"M0 {_down(axis, value):.2f}H{SIZE}" for value in ticks(axis.low, axis.high))
    columns = "".join(f"M{SIZE * steps.axis.share(step):.2f} {SIZE}v-12" for step in steps.ticks)
    return [tag("path", d=rows, cls="grid"), tag("path", d=columns, cls="grid")]


def _path(line: Line, width: Axis, axis: Axis) -> Markup:
    """Returns the line's path, interrupted where a value is not finite."""
    at = [
        (SIZE * width.share(step), _down(axis, value)) if math.isfinite(value) else None for step, value in line.series
    ]
    words, pen = [], "M"
    for place in at:
        if place is None:
            pen = "M"
            continue
        words.append(f"{pen}{place[0]:.1f} {place[1]:.1f}")
        pen = "L"
    path = tag("path", d="".join(words), cls=line.classes.replace("points", "line"))
    if line.style != "points":
        return path
    # Segments of almost no length: their round caps are dots of one size however the plot is stretched.
    dots = "".join(f"M{place[0]:.1f} {place[1]:.1f}h.01" for place in at if place is not None)
    return joined(path, tag("path", d=dots, cls=f"dots s{line.colour % COLOURS}"))


def _down(axis: Axis, value: float) -> float:
    """Returns the vertical SVG coordinate of a value, clamped near the frame because browsers compute in floats."""
    return min(max(SIZE * (1 - axis.share(value)), -SIZE), 2 * SIZE)


def _width(band: Band, width: Axis) -> float:
    return width.share(band.stop) - width.share(band.start)


def _at(**shares: float) -> str:
    return ";".join(f"{name}:{100 * share:.3f}%" for name, share in shares.items())
