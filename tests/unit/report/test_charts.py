"""Drawings, read back from their SVG and compared with the numbers that they show."""

import math
import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_dist.report.charts import Axis, Band, Line, Mark, Steps, chart, from_zero
from mtl_dist.report.confusion import DEEP, MANY_LABELS, WORST, confusion_matrix
from mtl_dist.report.markup import Html, data, duration, joined, tag
from mtl_dist.report.records import read_run
from mtl_dist.report.sections import steps_of
from mtl_dist.report.series import Series, short, smoothed, thinned, ticks, window_for
from mtl_dist.report.unit_map import COLUMNS, cells, column_ends, rows_of, unit_map
from tests.utils.report_folders import lines_of_run, setup_of_run, write_run
from tests.utils.report_pages import Node, parsed

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
    # A point for each extreme of a stretch, one for the last step.
    assert len(found) <= most + 3
    assert list(found.steps) == sorted(set(found.steps))
    assert {pair for pair in found if math.isfinite(pair[1])} <= set(series)
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        kept = [value for value in found.values if math.isfinite(value)]
        assert (min(kept), max(kept)) == (min(finite), max(finite))
    assert found.steps[-1] == series.steps[-1]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_round_evenly_apart_and_inside(low: float, width: float, most: int) -> None:
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


def points(path: str) -> list[list[tuple[float, float]]]:
    """The pieces of a path of straight lines."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", piece)] for piece in path.split("M")[1:]
    ]


def lines_in(root: Node, cls: str) -> list[str]:
    return [node.attributes["d"] for node in root.all("path") if node.attributes.get("class", "").split()[:1] == [cls]]


def test_a_line_goes_through_its_values_and_breaks_where_there_is_none() -> None:
    series = Series.of([(0, 1.0), (5, 3.0), (10, math.nan), (15, 2.0), (20, 0.0)])
    root = parsed(chart("T", [Line("a", series)], Steps(20), Axis(0.0, 4.0)))
    (path,) = (path for path in lines_in(root.first("figure").first("div"), "line"))
    assert points(path) == [[(0, 750), (250, 250)], [(750, 500), (1000, 1000)]]


def test_phases_and_what_was_lost_lie_behind_the_lines() -> None:
    steps = Steps(
        20, (Band("a", 0, 5), Band("b", 5, 20)), (Mark("lost it", 10, 15, "lost"), Mark("on", 4, 4, "restart"))
    )
    root = parsed(chart("T", [Line("x", Series.of([(0, 1.0)]))], steps, Axis(0, 1), cls="wide"))
    bands = [node.attributes for node in root.all("rect")]
    assert [(float(band["x"]), float(band["width"])) for band in bands] == [(0, 250), (250, 750)]
    marks = {node.first("title").text: node.attributes["d"] for node in root.all("path") if node.all("title")}
    assert marks == {"lost it": "M500.00 0H750.00V1000H500.00Z", "on": "M200.00 0H200.00V1000H200.00Z"}
    names = [(node.text, node.attributes["style"]) for node in root.by_class("names")[0].all("span")]
    assert names == [("a", "left:0.000%;width:25.000%"), ("b", "left:25.000%;width:75.000%")]
    keys = [node.text for node in root.by_class("key")]
    assert keys == ["x", "started again", "lost: went back to earlier weights"]


def test_labels_stand_at_their_values() -> None:
    root = parsed(chart("T", [Line("x", Series.of([(0, 1.0)]))], Steps(40), Axis(0.0, 2.0)))
    labels = {node.text: node.attributes["style"] for node in root.by_class("labels")[0].all("span")}
    assert labels["0"] == "bottom:0.000%"
    assert labels["1"] == "bottom:50.000%"
    below = {node.text: node.attributes["style"] for node in root.by_class("steps")[0].all("span")}
    assert below["10"] == "left:25.000%"


def test_a_spike_of_what_is_smoothed_does_not_press_the_rest_down() -> None:
    raw = series_of([1.0] * 99 + [1000.0])
    assert from_zero([Line("", raw, style="faint")]).high < 2
    assert from_zero([Line("", raw)]).high > 1000


def reference_cells(unit: str) -> dict[int, float]:
    """Steps at which a unit had a rate, with it, from the lines themselves."""
    key = f"optim/lr/{unit}"
    return {line["step"]: line[key] for line in lines_of_run() if key in line}


def test_the_map_has_every_step_at_which_a_unit_trained(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    root = parsed(unit_map(run, steps_of(run)))
    titles: dict[str, set[int]] = {}
    for node in root.all("rect"):
        found = re.fullmatch(r"(\S+): steps (\d+) to (\d+), rate \S+", node.first("title").text)
        assert found is not None
        name, first, last = found[1], int(found[2]), int(found[3])
        titles.setdefault(name, set()).update(range(first, last + 1))
        assert float(node.attributes["x"]) == pytest.approx(1000 * (first - 1) / 8)
        assert float(node.attributes["width"]) == pytest.approx(1000 * (last - first + 1) / 8)
    assert titles == {unit: set(reference_cells(unit)) for unit in setup_of_run()["units"]}
    assert [name for name, _ in rows_of(run)] == ["heads.topic", "heads.mood", "blocks.1", "blocks.0", "embeddings"]


def test_many_heads_share_a_row_with_those_that_train_in_the_same_phases(tmp_path: Path) -> None:
    setup = setup_of_run()
    heads = [f"heads.t{number}" for number in range(8)]
    setup["units"] = {"embeddings": 1, **dict.fromkeys(heads, 1)}
    setup["phases"][0]["units"], setup["phases"][1]["units"] = heads[:7], heads
    rows = rows_of(read_run(write_run(tmp_path / "run", setup=setup)))
    assert rows == [("7 heads", tuple(heads[:7])), ("heads.t7", ("heads.t7",)), ("embeddings", ("embeddings",))]


def test_a_long_run_has_columns_that_end_with_its_phases(tmp_path: Path) -> None:
    lines = [{"step": step, "phase": "heads" if step <= 4321 else "all", "train/loss": 1.0} for step in range(1, 9001)]
    run = read_run(write_run(tmp_path / "run", lines=lines, setup=None, summary=None))
    ends = column_ends(run.column("train/loss"), run.spans)
    assert len(ends) <= COLUMNS + 2
    assert {4321, 9000} <= set(ends)
    rates = Series.of([(step, 1.0 if step < 6000 else 0.25) for step in range(4322, 9001)])
    (high, low) = cells(rates, ends, 1.0)
    assert (high[0], low[1]) == (4321, 9000)
    assert high[1] == low[0]
    assert (high[2], low[2]) == (20, 10)


def test_a_small_matrix_is_a_table_of_counts() -> None:
    root = parsed(confusion_matrix([[0, 0, 3], [0, 2, 1], [2, 0, 4]], ["a", "b", "c"]))
    rows = [[cell.text for cell in row.all("td")] for row in root.first("tbody").all("tr")]
    assert rows == [["3", "0", "1", "75.0%"], ["0", "0", "0", "\N{EN DASH}"], ["4", "0", "0", "0.0%"]]
    first = root.first("tbody").first("td").attributes
    assert (first["style"], first["title"]) == ("--share:0.750", "a taken for a: 3 of 4 (75.0%)")


def luminance(colour: Sequence[float]) -> float:
    """WCAG's, of red, green and blue from 0 to 255."""
    shares = [value / 255 for value in colour]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [0, 1])
def test_the_counts_of_a_matrix_are_readable_on_every_shade(theme: int) -> None:
    """By the 4.5 to 1 of WCAG's level AA."""
    style = files("mtl_dist.report").joinpath("page.css").read_text("utf-8")
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


def test_a_large_matrix_is_drawn_and_its_worst_pairs_are_named() -> None:
    names = [f"c{index}" for index in range(MANY_LABELS + 6)]
    counts = [[index, (index + 1) % len(names), index + 1] for index in range(len(names))]
    root = parsed(confusion_matrix(counts, names))
    squares = {(node.attributes["x"], node.attributes["y"]) for node in root.all("rect")}
    assert squares == {(str(prediction), str(label)) for label, prediction, _ in counts}
    rows = [[row.first("th").text, *(cell.text for cell in row.all("td"))] for row in root.first("tbody").all("tr")]
    assert len(rows) == WORST
    assert rows[0] == ["c19", "c0", "20", "100.0%"]


def test_text_is_escaped_and_markup_is_not() -> None:
    assert joined("<b>", tag("i", "&", title='"'), None, ["<"]) == '&lt;b&gt;<i title="&quot;">&amp;</i>&lt;'
    assert tag("p", "\ud800") == "<p>?</p>"
    assert isinstance(joined("a", Html("<b>")), Html)


def test_json_in_the_page_cannot_end_its_element() -> None:
    written = data({"n": "</script><script>x</script>&amp;", "y": [None, 1.5]})
    assert written.count("<") == 2
    assert "&" not in written


def test_durations_are_written_for_readers() -> None:
    assert [duration(one) for one in (1.26, 59.99, 61, 3599.6, 7325)] == [
        "1.3 s",
        "60.0 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 02 min",
    ]
