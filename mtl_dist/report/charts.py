"""Charts as HTML with an SVG inside: the drawing stretches to any width, while its text keeps its size.

An SVG of 1000 x 1000 units is stretched over the plot; lines keep their width (`vector-effect`). Ticks and names stand
around it as HTML, placed in percent. So a chart is right on a telephone and on paper, and needs no script.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mtl_dist.report.markup import Html, data, joined, tag
from mtl_dist.report.series import Series, short, thinned, ticks, widened

SIZE = 1000
"""Width and height of a plot in the units of its SVG."""
MARKS = {"restart": "started again", "lost": "lost: went back to earlier weights"}
"""Kinds of marks, in words."""
COLOURS = 8
"""Colours for lines; after these, the same ones dashed."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    """For the legend and the read-out; empty for one that has neither."""
    series: Series
    colour: int = 0
    style: str = "line"
    """`line`, `faint` for what another line smooths, or `points` for a line with a point at each value."""
    dashed: bool = False
    """Also where another line lies under it, which then shows between the dashes."""

    @property
    def classes(self) -> str:
        dashed = " dashed" if self.dashed or self.colour >= COLOURS else ""
        return f"{self.style} s{self.colour % COLOURS}{dashed}"


@dataclass(frozen=True)
class Band:
    """A stretch of steps in the background, with its name."""

    name: str
    start: float
    stop: float


@dataclass(frozen=True)
class Mark:
    """Something that happened: at a step, or over a stretch that was lost."""

    title: str
    start: float
    stop: float
    kind: str
    """One of MARKS."""


@dataclass(frozen=True)
class Axis:
    """The range of a chart's values and how they are written."""

    low: float
    high: float
    label: Callable[[float], str] = short

    def share(self, value: float) -> float:
        """Where `value` is between `low`, 0, and `high`, 1."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Steps:
    """What all charts of a run have in common: the horizontal axis and what lies behind the lines."""

    total: int
    bands: tuple[Band, ...] = ()
    marks: tuple[Mark, ...] = ()

    @property
    def axis(self) -> Axis:
        return Axis(0, max(1, self.total))

    @property
    def ticks(self) -> list[float]:
        """Fewer where their labels are longer."""
        return [step for step in ticks(0, self.axis.high, 8 if self.total < 1000 else 6) if step == int(step)]


def from_zero(lines: Sequence[Line]) -> Axis:
    """From 0 to what the lines reach, without the few highest values of those that another line smooths."""
    tops = [1e-12]
    for line in lines:
        finite = sorted(value for value in line.series.values if math.isfinite(value))
        if finite:
            tops.append(finite[int(0.98 * (len(finite) - 1))] if line.style == "faint" else finite[-1])
    return Axis(0.0, 1.06 * max(tops))


def around(lines: Sequence[Line]) -> Axis:
    """From the least to the greatest value, with a little room."""
    finite = [value for line in lines for value in line.series.values if math.isfinite(value)]
    return Axis(*widened(min(finite), max(finite))) if finite else Axis(0.0, 1.0)


def chart(title: str, lines: Sequence[Line], steps: Steps, axis: Axis, cls: str = "", points: int = 600) -> Html:
    """A chart of lines over steps, with its legend; `points` is how many of a line are drawn at most."""
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
        None if empty else data({"total": steps.axis.high, "lines": read_out}),
        cls=f"chart {cls}".strip(),
    )


def frame(plot: Html, labels: Sequence[Html], steps: Steps) -> Html:
    """A plot between the names of its phases above, its labels on the left and its steps below."""
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


def value_labels(axis: Axis) -> list[Html]:
    """The ticks of the vertical axis."""
    return [tag("span", axis.label(value), style=_at(bottom=axis.share(value))) for value in ticks(axis.low, axis.high)]


def legend(lines: Sequence[Line], marks: Sequence[Mark] = ()) -> Html | None:
    """Names of lines, and of the kinds of marks, beside a piece of each."""
    entries = [key(line.name, line.classes) for line in lines]
    entries += [key(MARKS[kind], f"mark {kind}") for kind in MARKS if any(mark.kind == kind for mark in marks)]
    return tag("span", entries, cls="legend") if entries else None


def key(name: str, classes: str) -> Html:
    """One entry of a legend."""
    piece = tag("svg", tag("path", d="M1 5H21", cls=classes), viewBox="0 0 22 10", aria_hidden="true")
    return tag("span", piece, name, cls="key")


def round_to(value: float) -> float | None:
    """Five digits, for JSON, which has no NaN."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _background(steps: Steps) -> list[Html]:
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


def _grid(axis: Axis, steps: Steps) -> list[Html]:
    rows = "".join(f"M0 {_down(axis, value):.2f}H{SIZE}" for value in ticks(axis.low, axis.high))
    columns = "".join(f"M{SIZE * steps.axis.share(step):.2f} {SIZE}v-12" for step in steps.ticks)
    return [tag("path", d=rows, cls="grid"), tag("path", d=columns, cls="grid")]


def _path(line: Line, width: Axis, axis: Axis) -> Html:
    """The line, broken where a value is not a number."""
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
    # Points of no length, which their round ends make dots of one size however the plot is stretched.
    dots = "".join(f"M{place[0]:.1f} {place[1]:.1f}h.01" for place in at if place is not None)
    return joined(path, tag("path", d=dots, cls=f"dots s{line.colour % COLOURS}"))


def _down(axis: Axis, value: float) -> float:
    """SVG counts downwards. What is far outside the frame stays near it, for browsers draw in floats."""
    return min(max(SIZE * (1 - axis.share(value)), -SIZE), 2 * SIZE)


def _width(band: Band, width: Axis) -> float:
    return width.share(band.stop) - width.share(band.start)


def _at(**shares: float) -> str:
    return ";".join(f"{name}:{100 * share:.3f}%" for name, share in shares.items())
