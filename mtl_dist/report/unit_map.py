"""Map of the units that trained at each step, one row per unit from the heads down to the embeddings.

A unit is the smallest part of the model that can be frozen: the embeddings, a block or a head.
"""

import bisect
import math
from collections.abc import Sequence

from markupsafe import Markup

from mtl_dist.report.charts import SIZE, Steps, frame
from mtl_dist.report.markup import tag
from mtl_dist.report.records import RATES, RunRecord, Span
from mtl_dist.report.series import Series

ROW = 10
"""Height of a row in SVG units."""
COLUMNS = 240
"""Number of ranges of steps that are drawn at most, not counting those that end with a phase."""
SHADES = 20
MANY_HEADS = 6
"""Number of heads up to which each has its own row; beyond it, those that train in the same phases share one."""


def unit_map(run: RunRecord, steps: Steps) -> Markup:
    """Returns the map: a cell is darker the higher the learning rate, and empty where the unit is frozen."""
    rows = rows_of(run)
    rates = {key.removeprefix(RATES): one for key, one in run.lines.columns.items() if key.startswith(RATES)}
    highest = max((rate for one in rates.values() for rate in one.values if math.isfinite(rate)), default=0.0)
    ends = column_ends(run.column("train/loss"), run.spans)
    shapes: list[Markup] = []
    for index, (name, units) in enumerate(rows):
        shapes.append(tag("path", d=f"M0 {ROW * index}H{SIZE}", cls="grid"))
        for start, stop, shade, rate in cells(rates.get(units[0], Series()), ends, highest):
            title = f"{name}: steps {start + 1} to {stop}, rate {rate:.3g}"
            size = {
                "x": f"{SIZE * steps.axis.share(start):.2f}",
                "y": ROW * index + 1,
                "width": f"{SIZE * (steps.axis.share(stop) - steps.axis.share(start)):.2f}",
                "height": ROW - 2,
            }
            opacity = f"{0.2 + 0.8 * shade / SHADES:.2f}"
            shapes.append(tag("rect", tag("title", title), **size, fill_opacity=opacity, cls="trains"))
    for band in steps.bands[1:]:
        shapes.append(tag("path", d=f"M{SIZE * steps.axis.share(band.start):.2f} 0v{ROW * len(rows)}", cls="boundary"))
    box = f"0 0 {SIZE} {ROW * max(1, len(rows))}"
    drawing = tag("svg", shapes, viewBox=box, preserveAspectRatio="none", role="img", aria_label="what trained when")
    names = [
        tag("span", name, title=name, style=f"bottom:{100 * (len(rows) - index - 0.5) / len(rows):.3f}%")
        for index, (name, _) in enumerate(rows)
    ]
    plot = tag("div", drawing, cls="plot", style=f"height:{max(120, 17 * len(rows))}px")
    return tag("figure", frame(plot, names, steps), cls="chart map")


def rows_of(run: RunRecord) -> list[tuple[str, tuple[str, ...]]]:
    """Returns the names of the rows from the top, each with the units it represents."""
    known = run.setup.get("units") or {unit: 0 for span in run.spans for unit in span.units}
    heads = [unit for unit in known if unit.startswith("heads.")]
    blocks = sorted((unit for unit in known if unit.startswith("blocks.")), key=lambda unit: -int(unit[7:]))
    others = [unit for unit in known if unit not in heads and unit not in blocks]
    rows: list[tuple[str, tuple[str, ...]]] = [(unit, (unit,)) for unit in heads]
    if len(heads) > MANY_HEADS:
        alike: dict[tuple[bool, ...], list[str]] = {}
        for unit in heads:
            alike.setdefault(tuple(unit in span.units for span in run.spans), []).append(unit)
        rows = [(units[0] if len(units) == 1 else f"{len(units)} heads", tuple(units)) for units in alike.values()]
    rows += [(unit, (unit,)) for unit in [*blocks, *others]]
    return rows


def column_ends(losses: Series, spans: Sequence[Span]) -> list[int]:
    """Returns the logged steps at which a column ends: about COLUMNS of them, and the last of each phase."""
    logged = list(losses.steps)
    every = max(1, math.ceil(len(logged) / COLUMNS))
    return sorted({*logged[every - 1 :: every], *logged[-1:], *({span.stop for span in spans} & set(logged))})


def cells(rates: Series, ends: Sequence[int], highest: float) -> list[tuple[int, int, int, float]]:
    """Returns ranges of one shade as steps done before, steps done after, shade, and learning rate at the end."""
    merged: list[tuple[int, int, int, float]] = []
    start = 0
    for end in ends:
        at = bisect.bisect_left(rates.steps, end)
        if at < len(rates) and rates.steps[at] == end:
            rate = rates.values[at]
            shade = round(SHADES * math.sqrt(max(0.0, rate) / highest)) if highest else 0
            if merged and merged[-1][1] == start and merged[-1][2] == shade:
                merged[-1] = merged[-1][0], end, shade, rate
            else:
                merged.append((start, end, shade, rate))
        start = end
    return merged
