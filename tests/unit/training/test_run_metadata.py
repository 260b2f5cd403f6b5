"""Data that a run writes for its report: setup.json, confusion counts, padding, and the report page itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtl_dist.config.load import parse
from mtl_dist.report.page import page_of_run
from mtl_dist.report.records import read_run
from mtl_dist.schedule.partition import partition_batch
from tests.utils.in_process import run_here, setup_here, summary_of
from tests.utils.kills import Killed, kill_before_step
from tests.utils.report_pages import parsed
from tests.utils.tiny import TOPICS, tiny_recipe_file

TASKS = ("topic", "mood")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was killed in its second phase and resumed with two micro-steps."""
    folder = tiny_recipe_file(tmp_path_factory.mktemp("setup record")).parent
    recipe = parse(["--config", str(folder / "recipe.yaml"), "checkpoint.every_steps=2"]).recipe
    with pytest.MonkeyPatch.context() as patch:
        kill_before_step(7)(patch)
        with pytest.raises(Killed):
            run_here(recipe)
    run_here(recipe, accumulation=2)
    return folder / "run"


def setup_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "setup.json").read_text(encoding="utf-8"))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_setup_has_tasks_units_and_planned_phases(folder: Path) -> None:
    setup = setup_of(folder)
    model = setup_here(parse(["--config", str(folder / "recipe.yaml")]).recipe).engine.model
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    units = {unit: sum(sizes[name] for name in names) for unit, names in model.unit_parameters().items()}
    assert setup["units"] == units
    rows = {"train": 48, "validation": 12, "test": 12}
    assert not any(count for task in setup["tasks"].values() for count in task.pop("missing").values())
    assert setup["tasks"] == {
        "topic": {"labels": sorted(TOPICS), "rows": rows, "pool": "topic"},
        "mood": {"labels": ["0", "1", "2"], "rows": rows, "pool": "mood"},
    }
    assert setup["pools"] == {task: {"tasks": [task], "rows": 48} for task in TASKS}
    assert setup["evaluation_split"] == "validation"
    assert [(one["name"], one["start"], one["stop"]) for one in setup["phases"]] == [
        ("heads", 0, 4),
        ("upper", 4, 8),
        ("all", 8, 12),
    ]
    assert setup["phases"][0]["units"] == ["heads.topic", "heads.mood"]
    assert [one["parameters"] for one in setup["phases"]] == [
        one["trainable_parameters"] for one in summary_of(folder)["phases"]
    ]
    assert all(one["draws"] == {"topic": 24, "mood": 24} for one in setup["phases"] + summary_of(folder)["phases"])
    assert setup["digests"] == summary_of(folder)["digests"]
    for phase in setup["phases"]:
        logged = [line for line in lines_of(folder) if line["phase"] == phase["name"] and "train/loss" in line]
        for unit, (highest, last) in phase["rates"].items():
            rates = [line[f"optim/lr/{unit}"] for line in logged]
            assert (highest, last) == (max(rates), rates[-1])


def test_each_start_is_recorded(folder: Path) -> None:
    first, second = setup_of(folder)["starts"]
    assert (first["step"], first["micro_steps"]) == (0, 1)
    assert (second["step"], second["micro_steps"]) == (6, 2)
    assert second["versions"] == summary_of(folder)["versions"]
    assert (second["world_size"], second["engine"], second["device"]) == (1, "single", "cpu")


def test_a_new_run_does_not_keep_the_starts_of_the_previous_one(folder: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(folder / "recipe.yaml"), f"output_dir={tmp_path / 'anew'}"]
    for _ in range(2):
        run_here(parse(arguments).recipe)
    assert [start["step"] for start in setup_of(tmp_path / "anew")["starts"]] == [0]
    assert (tmp_path / "anew" / "previous" / "1" / "setup.json").exists()
    assert (tmp_path / "anew" / "previous" / "1" / "report.html").exists()


def test_confusion_counts_match_the_metrics(folder: Path) -> None:
    each = [(line, split) for line in lines_of(folder) for split in ("eval", "test")]
    measured = [(line, split) for line, split in each if f"{split}/mood/loss" in line]
    assert len(measured) == 4
    for line, split in measured:
        for task in TASKS:
            cells = line[f"{split}/{task}/confusion"]
            assert sum(count for *_, count in cells) == 12
            right = sum(count for label, prediction, count in cells if label == prediction)
            assert line[f"{split}/{task}/accuracy"] == right / 12
            assert all(count > 0 for *_, count in cells)


def test_padding_and_tokens_match_the_batches(folder: Path) -> None:
    setup = setup_here(parse(["--config", str(folder / "recipe.yaml")]).recipe)
    lines = [line for line in lines_of(folder) if "train/loss" in line]
    assert len(lines) == 12
    for line in lines:
        lengths = setup.sampler.batch(line["step"] - 1).lengths
        micro_steps = 1 if line["step"] <= 6 else 2
        parts = [part for of_ranks in partition_batch(lengths, 1, micro_steps, None) for part in of_ranks]
        computed = sum(np.max(lengths[part]) * len(part) for part in parts)
        assert line["plan/tokens"] == lengths.sum()
        assert line["perf/padding"] == pytest.approx(computed / lengths.sum(), rel=1e-12)


def test_a_finished_run_has_a_report_page(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text == page_of_run(read_run(folder))
    figures = parsed(text).by_id("results").text
    assert all(f"{summary_of(folder)[f'test/{task}/accuracy']:.4f}" in figures for task in TASKS)


def test_a_report_that_cannot_be_written_is_a_warning(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / ".report.html.partial" / "in the way").mkdir(parents=True)
    run_here(parse(["--config", str(folder / "recipe.yaml"), f"output_dir={run}"]).recipe)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "its report is not" in line)
    assert line.startswith(f"warning: the run is finished, its report is not: cannot write {run / 'report.html'}: ")
    assert summary_of(run)["steps"] == 12
    assert not (run / "report.html").exists()
