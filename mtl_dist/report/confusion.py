"""Confusion matrices: a table of counts for few classes; the most confused pairs for many, and a drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mtl_dist.report.formatting import DASH, percent
from mtl_dist.report.markup import tag
from mtl_dist.report.templating import render

MANY_LABELS = 14
"""Number of classes up to which the counts fit into a table."""
DEEP = 0.73
"""Share of a row from which the text on a cell changes its colour: where black and white are equally readable."""
MOST_SQUARES = 1500
"""Number of counts that are not 0 up to which they are drawn: each takes about 150 bytes of the page."""
WORST = 12
"""Number of pairs of classes listed under a drawing."""

Counts = Mapping[tuple[int, int], int]
"""Count by label and prediction where it is not 0."""


@dataclass(frozen=True)
class Cell:
    """A count in the table."""

    count: int
    share: float
    """Share of the examples of its true class."""
    title: str


@dataclass(frozen=True)
class Row:
    """The examples of one true class."""

    label: str
    cells: list[Cell]
    recall: str


@dataclass(frozen=True)
class ConfusedPair:
    """A true class and another that was predicted for it."""

    label: str
    prediction: str
    count: int
    share: float
    """Share of the examples of the true class."""


def confusion_matrix(cells: Sequence[Sequence[int]], labels: Sequence[str]) -> Markup:
    """Returns the confusion matrix of [label, prediction, count] triples; pairs that are not given have 0.

    A class without a name in `labels` is shown by its number. Shades are shares of a row, which has all examples of
    one true class.
    """
    size = max([len(labels), *(1 + max(label, prediction) for label, prediction, _ in cells)])
    names = [*labels, *(str(index) for index in range(len(labels), size))]
    counts = {(label, prediction): count for label, prediction, count in cells}
    totals = [0] * size
    for (label, _), count in counts.items():
        totals[label] += count
    if size > MANY_LABELS:
        worst = _worst_pairs(counts, totals, names)
        drawing = _drawing(counts, totals, names) if len(counts) <= MOST_SQUARES else None
        return render("confusion_drawing.html", drawing=drawing, worst=worst, size=size)
    rows = [_row(counts, totals, names, label) for label in range(size)]
    return render("confusion_table.html", labels=names, rows=rows, few=size <= 4, deep=DEEP)


def _row(counts: Counts, totals: Sequence[int], names: Sequence[str], label: int) -> Row:
    total = totals[label]
    cells = []
    for prediction, name in enumerate(names):
        count = counts.get((label, prediction), 0)
        share = count / total if total else 0.0
        cells.append(Cell(count, share, f"{names[label]} taken for {name}: {count} of {total} ({share:.1%})"))
    recall = percent(cells[label].share, 1) if total else DASH
    return Row(names[label], cells, recall)


def _drawing(counts: Counts, totals: Sequence[int], names: Sequence[str]) -> Markup:
    size = len(names)
    squares = [
        tag(
            "rect",
            tag("title", f"{names[label]} taken for {names[prediction]}: {count} of {totals[label]}"),
            x=prediction,
            y=label,
            width=1,
            height=1,
            fill_opacity=f"{0.12 + 0.88 * count / totals[label]:.2f}",
        )
        for (label, prediction), count in sorted(counts.items())
    ]
    title = f"confusion matrix of {size} classes, true ones downwards, predicted ones to the right"
    return tag("svg", squares, viewBox=f"0 0 {size} {size}", role="img", aria_label=title)


def _worst_pairs(counts: Counts, totals: Sequence[int], names: Sequence[str]) -> list[ConfusedPair]:
    wrong = sorted(
        ((count, label, prediction) for (label, prediction), count in counts.items() if label != prediction),
        key=lambda one: (-one[0], one[1:]),
    )
    return [
        ConfusedPair(names[label], names[prediction], count, count / totals[label])
        for count, label, prediction in wrong[:WORST]
    ]
