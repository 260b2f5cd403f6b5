"""Confusion matrices: counts in a table where there are few classes, a drawing and the worst pairs where many."""

from collections.abc import Sequence

from mtl_dist.report.markup import DASH, Html, table, tag

MANY_LABELS = 14
"""Classes beyond which counts no longer fit into a table."""
DEEP = 0.73
"""Share of a row from which a cell's shade wants the other colour of text: where black and white are as readable."""
WORST = 12
"""Pairs of classes named under a drawing."""


def confusion_matrix(cells: Sequence[Sequence[int]], labels: Sequence[str]) -> Html:
    """What was taken for what. `cells` are [label, prediction, count] where the count is not 0.

    Shades are shares of a row, which is all examples of one true class.
    """
    size = max([len(labels), *(1 + max(label, prediction) for label, prediction, _ in cells)])
    names = [*labels, *(str(index) for index in range(len(labels), size))]
    counts = {(label, prediction): count for label, prediction, count in cells}
    totals = [0] * size
    for (label, _), count in counts.items():
        totals[label] += count
    if size <= MANY_LABELS:
        return _as_table(counts, totals, names)
    return tag("div", _as_drawing(counts, totals, names), _worst(counts, totals, names), cls="many")


def _as_table(counts: dict[tuple[int, int], int], totals: Sequence[int], names: Sequence[str]) -> Html:
    few = len(names) <= 4
    narrow = None if few else "tall"
    head = tag(
        "tr",
        tag("th", "true ↓  predicted →", cls="corner"),
        [tag("th", tag("span", name, title=name), scope="col", cls=narrow) for name in names],
        tag("th", tag("span", "recall"), scope="col", cls="recall"),
    )
    rows = []
    for label, name in enumerate(names):
        cells = [_cell(counts.get((label, other), 0), totals[label], name, names[other]) for other in range(len(names))]
        recall = f"{counts.get((label, label), 0) / totals[label]:.1%}" if totals[label] else DASH
        heading = tag("th", tag("span", name, title=name), scope="row")
        rows.append(tag("tr", heading, cells, tag("td", recall, cls="recall")))
    matrix = tag("table", tag("thead", head), tag("tbody", rows), cls="confusion few" if few else "confusion")
    return tag("div", matrix, cls="scroll", tabindex="0")


def _cell(count: int, total: int, label: str, prediction: str) -> Html:
    share = count / total if total else 0.0
    title = f"{label} taken for {prediction}: {count} of {total} ({share:.1%})"
    classes = ("deep " if share > DEEP else "") + ("none" if not count else "some")
    return tag("td", f"{count:,}", title=title, cls=classes, style=f"--share:{share:.3f}")


def _as_drawing(counts: dict[tuple[int, int], int], totals: Sequence[int], names: Sequence[str]) -> Html:
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
    drawing = tag("svg", squares, viewBox=f"0 0 {size} {size}", role="img", aria_label=title)
    return tag("div", drawing, tag("p", "true classes downwards, predicted ones to the right", cls="note"))


def _worst(counts: dict[tuple[int, int], int], totals: Sequence[int], names: Sequence[str]) -> Html:
    wrong = sorted(
        ((count, label, prediction) for (label, prediction), count in counts.items() if label != prediction),
        key=lambda one: (-one[0], one[1:]),
    )
    rows = [
        (names[label], names[prediction], f"{count:,}", f"{count / totals[label]:.1%}")
        for count, label, prediction in wrong[:WORST]
    ]
    return table(("true class", "taken for", "count", "of the class"), rows, cls="figures", label="most confused pairs")
