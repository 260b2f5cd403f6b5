"""Confusion matrices, read back from their markup."""

import re
from collections.abc import Sequence

import pytest

from mtl_dist.report.confusion import DEEP, MANY_LABELS, MOST_SQUARES, WORST, confusion_matrix
from mtl_dist.report.templating import asset
from tests.utils.report_pages import parsed


def test_a_small_matrix_is_a_table_of_counts() -> None:
    root = parsed(confusion_matrix([[0, 0, 3], [0, 2, 1], [2, 0, 4]], ["a", "b", "c"]))
    rows = [[cell.text for cell in row.all("td")] for row in root.first("tbody").all("tr")]
    assert rows == [["3", "0", "1", "75.0%"], ["0", "0", "0", "\N{EN DASH}"], ["4", "0", "0", "0.0%"]]
    first = root.first("tbody").first("td").attributes
    assert (first["style"], first["title"]) == ("--share:0.750", "a taken for a: 3 of 4 (75.0%)")


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance as WCAG defines it, of red, green and blue from 0 to 255."""
    shares = [value / 255 for value in colour]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1])
def test_the_counts_of_a_matrix_are_readable_on_every_shade(theme: int) -> None:
    """The contrast is at least the 4.5 to 1 of WCAG level AA."""
    style = asset("page.css")
    found = re.findall(r"--(\w+): light-dark\(#(\w+), #(\w+)\)", style)
    colours = {name: bytes.fromhex(pair[theme]) for name, *pair in found}
    for share in (index / 100 for index in range(101)):
        shade = [share * a + (1 - share) * b for a, b in zip(colours["cell"], colours["sheet"], strict=True)]
        text = colours["deep" if share > DEEP else "count" if share else "soft"]
        low, high = sorted((luminance(shade), luminance(text)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, share


def test_classes_without_names_have_their_number() -> None:
    root = parsed(confusion_matrix([[0, 3, 1]], ["only"]))
    assert [row.first("th").text for row in root.first("tbody").all("tr")] == ["only", "1", "2", "3"]


def test_a_large_matrix_is_drawn_and_its_most_confused_pairs_are_listed() -> None:
    names = [f"c{index}" for index in range(MANY_LABELS + 6)]
    counts = [[index, (index + 1) % len(names), index + 1] for index in range(len(names))]
    root = parsed(confusion_matrix(counts, names))
    squares = {(node.attributes["x"], node.attributes["y"]) for node in root.all("rect")}
    assert squares == {(str(prediction), str(label)) for label, prediction, _ in counts}
    rows = [[row.first("th").text, *(cell.text for cell in row.all("td"))] for row in root.first("tbody").all("tr")]
    assert len(rows) == WORST
    assert rows[0] == ["c19", "c0", "20", "100.0%"]


def test_a_matrix_of_very_many_counts_is_a_table_of_its_most_confused_pairs() -> None:
    names = [f"class {index}" for index in range(2000)]
    counts = [[index, (7 * index + 1) % 2000, 1 + index % 9] for index in range(2000)]
    markup = confusion_matrix(counts, names)
    assert len(markup) < 5000
    root = parsed(markup)
    assert root.all("rect") == []
    assert len(root.first("tbody").all("tr")) == WORST
    assert "2,000 classes; metrics.jsonl has all counts" in markup
    drawn = parsed(confusion_matrix(counts[:MOST_SQUARES], names))
    assert len(drawn.all("rect")) == MOST_SQUARES
