"""The command `mtl_dist report`."""

import subprocess
import sys
from pathlib import Path

import pytest

from mtl_dist.__main__ import main
from mtl_dist.report.page import page_of_run
from mtl_dist.report.records import read_run
from tests.utils.report_folders import two_runs, write_run
from tests.utils.report_pages import parsed


def test_the_command_writes_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = (str(folder) for folder in two_runs(tmp_path))
    assert main(["report", one]) == main(["report", one, other]) == main(["report", one, "--to", "x.html"]) == 0
    paths = [Path(one) / "report.html", Path("comparison.html"), Path("x.html")]
    assert capsys.readouterr().out == "".join(f"written to {path}\n" for path in paths)
    assert paths[0].read_text() == paths[2].read_text() == page_of_run(read_run(Path(one)))
    assert parsed(paths[1].read_text()).first("h1").text == "2 runs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "{folder}: is no run: it has no recipe.yaml"),
        (["{run}", "{folder}/none"], "{folder}/none: no such folder; name a run's output_dir"),
        (["{run}", "--to", "{folder}/none/x.html"], "--to: {folder}/none is no folder"),
        (["{run}", "--to", "{folder}"], "--to: {folder} is a folder; name a file in it"),
        ([], "command line: the following arguments are required: RUN"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    names = {"folder": str(tmp_path), "run": str(write_run(tmp_path / "run"))}
    assert main(["report", *(one.format(**names) for one in arguments)]) == 2
    assert capsys.readouterr().err == f"error: {message.format(**names)}\n"
    assert not list(tmp_path.glob("**/*.html"))


def test_the_command_runs_as_a_module(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    command = [sys.executable, "-m", "mtl_dist", "report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True)
    assert done.stdout == f"written to {folder / 'report.html'}\n"
