"""The map of units, read back from its SVG and compared with the lines of metrics.jsonl."""

import re
from pathlib import Path

import pytest

from mtl_dist.report.records import read_run
from mtl_dist.report.sections.curves import steps_of
from mtl_dist.report.series import Series
from mtl_dist.report.unit_map import COLUMNS, cells, column_ends, rows_of, unit_map
from tests.utils.report_folders import lines_of_run, setup_of_run, write_run
from tests.utils.report_pages import parsed


def reference_cells(unit: str) -> dict[int, float]:
    """Returns the learning rate of a unit by step, read from the lines themselves."""
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
