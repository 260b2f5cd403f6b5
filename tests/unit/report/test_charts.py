"""Charts, read back from their SVG and compared with the numbers that they show."""

import math
import re

from mtl_dist.report.charts import Axis, Band, Line, Mark, Steps, chart, from_zero
from mtl_dist.report.series import Series
from tests.utils.report_pages import Node, parsed


def points(path: str) -> list[list[tuple[float, float]]]:
    """Returns the connected pieces of a path of straight lines."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", piece)] for piece in path.split("M")[1:]
    ]


def lines_in(root: Node, cls: str) -> list[str]:
    return [node.attributes["d"] for node in root.all("path") if node.attributes.get("class", "").split()[:1] == [cls]]


def test_a_line_passes_through_its_values_and_is_interrupted_at_nan() -> None:
    series = Series.of([(0, 1.0), (5, 3.0), (10, math.nan), (15, 2.0), (20, 0.0)])
    root = parsed(chart("T", [Line("a", series)], Steps(20), Axis(0.0, 4.0)))
    (path,) = (path for path in lines_in(root.first("figure").first("div"), "line"))
    assert points(path) == [[(0, 750), (250, 250)], [(750, 500), (1000, 1000)]]


def test_phases_and_rolled_back_steps_are_behind_the_lines() -> None:
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
    assert keys == ["x", "resumed", "lost: went back to earlier weights"]


def test_labels_are_at_their_values() -> None:
    root = parsed(chart("T", [Line("x", Series.of([(0, 1.0)]))], Steps(40), Axis(0.0, 2.0)))
    labels = {node.text: node.attributes["style"] for node in root.by_class("labels")[0].all("span")}
    assert labels["0"] == "bottom:0.000%"
    assert labels["1"] == "bottom:50.000%"
    below = {node.text: node.attributes["style"] for node in root.by_class("steps")[0].all("span")}
    assert below["10"] == "left:25.000%"


def test_a_spike_of_a_smoothed_line_does_not_flatten_the_rest() -> None:
    raw = Series.of(list(enumerate([1.0] * 99 + [1000.0])))
    assert from_zero([Line("", raw, style="faint")]).high < 2
    assert from_zero([Line("", raw)]).high > 1000
