"""The page that compares runs."""

import json
from pathlib import Path

from mtl_dist.report.differences import flattened, merged_keys, run_names
from mtl_dist.report.page import page_of_runs
from mtl_dist.report.records import read_run
from tests.utils.report_folders import lines_of_run, recipe_of_run, two_runs, write_run
from tests.utils.report_pages import cells, parsed


def test_compared_runs_show_what_differs_and_which_is_better(tmp_path: Path) -> None:
    root = parsed(page_of_runs([read_run(folder) for folder in two_runs(tmp_path)]))
    assert cells(root.by_id("recipe")) == [["model.freeze", "[]", '["embeddings"]'], ["optimizer.lr", "0.001", "0.01"]]
    assert root.by_id("environment").all("table") == []
    figures = {(row[0], row[1]): row[2:] for row in cells(root.by_id("figures"))}
    assert figures["mood", "accuracy"] == ["0.7500", "0.8750+0.1250"]
    assert figures["topic", "accuracy"] == ["0.7500", "0.7500+0.0000"]
    assert figures["mean", "accuracy"] == ["0.7500", "0.8125+0.0625"]
    assert figures["mood", "loss"] == ["0.2500", "0.1250-0.1250"]
    bold = [cell.text for node in root.by_id("figures").all("td") for cell in node.all("b")]
    assert bold == ["0.8750", "0.1250", "0.8125", "0.1875"]
    assert [node.text for node in root.by_class("better")] == ["+0.1250", "-0.1250", "+0.0625", "-0.0625"]
    lines = json.loads(root.by_id("training").first("script").text)["lines"]
    assert [line["n"] for line in lines] == ["a/run", "b/run"]
    assert lines[0]["c"] != lines[1]["c"]


def test_runs_with_other_tasks_and_lengths_can_be_compared(tmp_path: Path) -> None:
    short = [line for line in lines_of_run() if line["step"] <= 3]
    recipe = recipe_of_run()
    recipe["tasks"] = {"mood": recipe["tasks"]["mood"], "irony": {"path": "json"}}
    folders = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", recipe=recipe, lines=short, summary=None, setup=None),
    ]
    root = parsed(page_of_runs([read_run(folder) for folder in folders]))
    assert [node.text for node in root.by_id("tasks").all("h3")] == ["topic", "mood", "irony"]
    assert cells(root.by_id("figures"))[0][2:] == ["0.7500", "\N{EN DASH}"]
    assert [row[1] for row in cells(root.by_id("runs"))] == ["finished", "unfinished"]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in two_runs(tmp_path)]
    assert run_names(runs) == ["a/run", "b/run"]
    assert run_names(runs[:1]) == ["run"]
    assert run_names([runs[0], runs[0]]) == ["run (1)", "run (2)"]


def test_keys_are_dotted_and_keep_their_order() -> None:
    assert flattened({"a": {"b": 1, "c": []}, "p": [{"n": "x"}], "l": [1, "y"], "t": "no"}) == {
        "a.b": "1",
        "a.c": "[]",
        "p[0].n": "x",
        "l": '[1, "y"]',
        "t": "no",
    }
    assert merged_keys([{"a": "", "d": ""}, {"a": "", "b": "", "d": "", "e": ""}]) == ["a", "b", "d", "e"]


def test_what_an_earlier_version_wrote_in_another_form_is_no_difference(tmp_path: Path) -> None:
    recipes = [recipe_of_run(), recipe_of_run()]
    recipes[0]["tasks"]["mood"] |= {"labels": ["bad", "good"], "data_files": {"train": "a", "test": "b"}}
    recipes[1]["tasks"]["mood"] |= {
        "labels": {"bad": "bad", "good": "fine"},
        "data_files": {"train": ["a"], "test": ["b"]},
    }
    folders = [write_run(tmp_path / name, recipe=recipe) for name, recipe in zip("ab", recipes, strict=True)]
    found = cells(parsed(page_of_runs([read_run(folder) for folder in folders])).by_id("recipe"))
    assert found == [["tasks.mood.labels.good", "good", "fine"]]
