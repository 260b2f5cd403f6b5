"""`evaluate` against the metrics in a run's summary, and on other data against counts made in the test."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtl_dist.__main__ import main
from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import UserError
from mtl_dist.inference.evaluate import evaluate_run
from mtl_dist.inference.finished_run import open_run
from mtl_dist.inference.predict import Predictor
from tests.utils.in_process import run_here, summary_of
from tests.utils.tiny import WORDS, tiny_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measure")
    recipe = tiny_recipe(folder, "model.pooling=mean", "optimizer.lr=1e-2", "evaluation.batch_size=5", rows=96)
    run_here(recipe)
    return Path(recipe.output_dir)


def evaluated(to: Path, *arguments: str | Path) -> dict[str, Any]:
    assert main(["evaluate", *map(str, arguments), "--to", str(to)]) == 0
    return json.loads(to.read_text())


def test_metrics_without_data_equal_those_of_the_summary(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(tmp_path / "out.json", run)
    out = capsys.readouterr().out
    summary = summary_of(run)
    for task, labels in (("topic", ["art", "cat", "law", "sea"]), ("mood", ["0", "1", "2"])):
        for name in ("loss", "accuracy", "macro_f1"):
            assert found[task][name] == summary[f"test/{task}/{name}"]
        assert found[task]["labels"] == labels
        assert found[task]["rows"] == 24
        assert f"{task}: 24 rows, accuracy {found[task]['accuracy']:.4f}, macro-F1" in out
    assert out.splitlines()[-1] == "the same figures as in summary.json, to the last bit"


def test_metrics_that_differ_from_the_summary_are_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "summary.json").read_text()
    (run / "summary.json").write_text(json.dumps(summary_of(run) | {"test/mood/loss": 0.5}))
    try:
        assert main(["evaluate", str(run), "--task", "mood"]) == 0
    finally:
        (run / "summary.json").write_text(before)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("not as in summary.json: test/mood/loss is ")
    assert last.endswith(" here and 0.5 there")


def test_metrics_of_a_labelled_file_are_correct(run: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (run.parent / "data/topic.train.json").read_text().splitlines()]
    lines = ["words,class", *(f"{row['text']},{row['label']}" for row in rows)]
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    columns = ["--text", "words", "--label", "class"]
    found = evaluated(tmp_path / "o.json", run, "--data", tmp_path / "own.csv", "--task", "topic", *columns)
    labels = ["art", "cat", "law", "sea"]
    (scores,) = Predictor(open_run(run), "topic", ["text"], 64).scores([(row["text"],) for row in rows])
    confusion = np.zeros((4, 4), dtype=int)
    for row, each in zip(rows, scores, strict=True):
        assert each is not None
        confusion[labels.index(row["label"]), int(each.argmax())] += 1
    cells = [[*map(int, cell), int(confusion[tuple(cell)])] for cell in np.argwhere(confusion)]
    assert found["topic"]["confusion"] == cells
    assert found.keys() == {"topic"}
    assert len({prediction for _, prediction, _ in cells}) > 1  # one class for all would hide mistakes


def test_a_recipe_names_the_rows_and_only_its_tasks_are_evaluated(run: Path, tmp_path: Path) -> None:
    other = run.parent / "data/mood.train.json"
    (tmp_path / "other.yaml").write_text(json.dumps({"tasks": {"mood": {"data_files": {"test": str(other)}}}}))
    found = evaluated(tmp_path / "o.json", run, "--data", tmp_path / "other.yaml")
    assert found == evaluated(tmp_path / "o.json", run, "--data", other, "--task", "mood")
    assert (found.keys(), found["mood"]["rows"]) == ({"mood"}, 96)


def test_each_mistake_is_reported_on_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.jsonl").write_text('{"text": "good1", "label": 0}\n{"text": "bad1", "label": 7}\n')
    (tmp_path / "own.yaml").write_text("tasks: {moot: {path: csv}}")
    (tmp_path / "none.yaml").write_text("seed: 3")
    own = tmp_path / "own.jsonl"
    for arguments, words in (
        (("--task", "moot"), "has no task 'moot'; did you mean mood?"),
        (("--data", own), "--task: missing; "),
        (("--data", own, "--task", "mood"), "tasks.mood: test row 1 (from 0): label '7' is not one of the classes"),
        (("--data", tmp_path / "own.yaml"), "own.yaml: tasks.moot: "),
        (("--data", tmp_path / "none.yaml"), "none.yaml: names no tasks"),
        (("--data", tmp_path / "no.csv", "--task", "mood"), "there is no file"),
        (("--data", tmp_path / "no.yaml"), "no.yaml: No such file or directory"),
        (("--data", tmp_path / "own.xls", "--task", "mood"), "its name does not tell that it is one of csv, json, "),
        (("--label", "a"), "--label: goes with a file of rows under --data"),
        (("--data", own, "--task", "mood", "--text", "a", "--text", "b"), "2 columns, and task mood has learnt from 1"),
    ):
        assert main(["evaluate", str(run), *map(str, arguments)]) == UserError.exit_code
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one table with labels "1", "2", "3", true, false and holes, whose test rows are a share of it."""
    folder = tmp_path_factory.mktemp("shared")
    recipe = tiny_recipe(folder, "optimizer.lr=1e-2", "evaluation.batch_size=5").model_dump()
    rows = [
        {
            "text": f"{WORDS[n % 40]} {WORDS[n % 37]} so{n % 8}",
            "stars": str(1 + n % 3),
            "good": n % 2 == 0 if n % 4 else None,
        }
        for n in range(80)
    ]
    (folder / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "json", "data_files": {"train": [str(folder / "rows.json")]}, "split": {"test": 0.4}}
    tasks = {"stars": {"source": "table", "label": "stars"}, "good": {"source": "table", "label": "good"}}
    run_here(Recipe.model_validate(recipe | {"sources": {"table": source}, "tasks": tasks}))
    return folder / "run"


def test_share_of_a_shared_source_is_the_one_of_the_run(
    shared_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(tmp_path / "out.json", shared_run)
    assert capsys.readouterr().out.splitlines()[-1] == "the same figures as in summary.json, to the last bit"
    assert 0 < found["good"]["rows"] < found["stars"]["rows"]
    assert (found["stars"]["labels"], found["good"]["labels"]) == (["1", "2", "3"], ["false", "true"])
    for task in ("stars", "good"):
        assert evaluated(tmp_path / "one.json", shared_run, "--task", task) == {task: found[task]}
        assert capsys.readouterr().out.splitlines()[-1] == "the same figures as in summary.json, to the last bit"


def test_rows_in_another_format_give_the_same_figures(shared_run: Path, tmp_path: Path) -> None:
    """Labels that were strings, booleans or missing in training are the same classes in CSV and parquet."""
    rows = [json.loads(line) for line in (shared_run.parent / "rows.json").read_text().splitlines()]
    table = {name: [row[name] for row in rows] for name in ("text", "stars", "good")}
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(table)
        lines.writerows(zip(*table.values(), strict=True))
    numbers = {"stars": pa.array([float(stars) for stars in table["stars"]])}
    pq.write_table(pa.table(table | numbers), tmp_path / "rows.parquet")
    for task in ("stars", "good"):
        figures = [
            evaluated(tmp_path / "out.json", shared_run, "--task", task, "--data", file)
            for file in (shared_run.parent / "rows.json", tmp_path / "rows.csv", tmp_path / "rows.parquet")
        ]
        assert figures[0] == figures[1] == figures[2]
        assert figures[0][task]["rows"] == sum(row[task] is not None for row in rows)


def test_a_recipe_can_name_other_rows_of_a_source(shared_run: Path, tmp_path: Path) -> None:
    rows = shared_run.parent / "rows.json"
    other = {"sources": {"table": {"data_files": {"test": [str(rows)]}, "split": {"test": None}}}}
    (tmp_path / "other.yaml").write_text(json.dumps(other))
    found = evaluated(tmp_path / "o.json", shared_run, "--data", tmp_path / "other.yaml")
    assert {task: of["rows"] for task, of in found.items()} == {"stars": 80, "good": 60}
    assert (
        found["good"]["accuracy"]
        == evaluated(tmp_path / "p.json", shared_run, "--data", rows, "--task", "good")["good"]["accuracy"]
    )


def test_a_file_of_another_format_than_the_source_is_read_with_the_defaults(tmp_path: Path) -> None:
    """The encoding of the recipe's CSV files says nothing about JSON, which would be read as other texts."""
    recipe = tiny_recipe(tmp_path)
    lines = ["text;label", *(f"{'sö' if number % 2 else 'cat1'} {WORDS[number]};{number % 2}" for number in range(24))]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="cp1252")
    files = {split: [str(tmp_path / "rows.csv")] for split in ("train", "test")}
    task = {"path": "csv", "data_files": files, "read": {"encoding": "cp1252"}}
    recipe = Recipe.model_validate(recipe.model_dump() | {"tasks": {"t": task}})
    run_here(recipe)
    (tmp_path / "rows.json").write_text('{"text": "sö", "label": 1}\n', encoding="cp1252")
    with pytest.raises(UserError, match="line 1: byte 0xf6 is not valid utf-8"):
        evaluate_run(tmp_path / "run", data=str(tmp_path / "rows.json"))
