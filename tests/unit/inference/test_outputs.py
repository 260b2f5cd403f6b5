"""Outputs of commands that would replace what they read, or a file of the run."""

from pathlib import Path

import pytest

from mtl_dist.cli.report import write_report
from mtl_dist.errors import UserError
from mtl_dist.inference.evaluate import evaluate_run
from mtl_dist.inference.export import export_run
from mtl_dist.inference.predict import predict_file
from tests.utils.in_process import run_here
from tests.utils.tiny import tiny_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `run` and its data in `data`."""
    folder = tmp_path_factory.mktemp("outputs")
    run_here(tiny_recipe(folder))
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_command_replaces_what_it_reads(folder: Path) -> None:
    run, rows = folder / "run", folder / "data" / "topic.test.json"
    (folder / "rows.jsonl").write_bytes(rows.read_bytes())
    (folder / "link.jsonl").symlink_to("rows.jsonl")
    before = content(folder)
    for to in (folder / "rows.jsonl", folder / "link.jsonl", run / "metrics.jsonl"):
        with pytest.raises(UserError, match=rf"^--to: {to} is "):
            predict_file(run, str(folder / "rows.jsonl"), task="topic", to=to)
    for to in (rows, run / "summary.json", run / "setup.json", run / "model" / "config.json"):
        with pytest.raises(UserError, match=rf"^--to: {to} is "):
            evaluate_run(run, to=to)
    with pytest.raises(UserError, match=r"^--to: .*rows\.jsonl is a file that is read; name another$"):
        evaluate_run(run, task="topic", data=str(folder / "link.jsonl"), to=folder / "rows.jsonl")
    for to in (run / "recipe.yaml", run / "metrics.jsonl", run / "model" / "README.md"):
        with pytest.raises(UserError, match=rf"^--to: {to} is "):
            write_report([run], to)
        with pytest.raises(UserError, match=rf"^--to: {to} is "):
            write_report([run, run], to)
    with pytest.raises(UserError, match=r"is there already; name a new folder$"):
        export_run(run, run / "model", task="topic")
    with pytest.raises(
        UserError, match=rf"^export: {run}/checkpoints/x is checkpoints of the run in {run}, or in it; "
    ):
        export_run(run, run / "checkpoints" / "x", task="topic")
    assert content(folder) == before


def test_a_run_folder_may_hold_outputs(folder: Path) -> None:
    run = folder / "run"
    predict_file(run, str(folder / "data" / "mood.test.json"), task="mood", to=run / "mood.csv", format="jsonl")
    assert write_report([run], run / "report.html") == run / "report.html"
    evaluate_run(run, to=run / "figures.json")
