import os
from pathlib import Path

import pytest

from mtl_dist.errors import UserError
from mtl_dist.run_files import OwnFiles, check_output
from mtl_dist.run_layout import OWN_NAMES
from tests.utils.disks import bound, disks_unavailable


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("")
    return folder


def test_own_files_are_recognised_by_path_whether_they_are_there_or_not(run: Path) -> None:
    own = OwnFiles(run)
    for name in OWN_NAMES:
        assert own.name_of(run / name) == name
        assert own.name_of(run / name / "a" / "b") == name
        assert own.name_of(run / f"{name}.bak") is None
    for path in (run, run.parent, run / "data.csv", run / "previous" / "1" / "model", run.parent / "model"):
        assert own.name_of(path) is None


def test_own_files_are_recognised_through_links_and_dots(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.parent / "link").symlink_to(run)
    (run.parent / "to_model").symlink_to("run/model")
    monkeypatch.chdir(run.parent)
    for folder in (run, Path("run"), Path("link"), Path("x/../run"), run.parent / "link"):
        own = OwnFiles(folder)
        for path in ("run/model/x", "link/model", "./run/../run/model", "to_model", "to_model/x", "no/../run/model"):
            assert own.name_of(Path(path)) == "model"


def test_the_target_of_an_own_link_is_own_too(run: Path) -> None:
    (run.parent / "scratch").mkdir()
    (run / "checkpoints").symlink_to(run.parent / "scratch")
    assert OwnFiles(run).name_of(run.parent / "scratch" / "step-1") == "checkpoints"


def test_links_in_a_circle_are_no_files(run: Path) -> None:
    (run.parent / "circle").symlink_to("circle")
    assert OwnFiles(run).name_of(run.parent / "circle") is None
    assert OwnFiles(run.parent / "circle").name_of(run) is None


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
def test_own_files_are_recognised_under_another_mount(run: Path) -> None:
    with bound(run / "model", run.parent / "again") as again:
        assert OwnFiles(run).name_of(again / "x") == "model"


def test_an_output_may_be_no_file_that_is_read_and_none_of_the_run(run: Path, tmp_path: Path) -> None:
    data, link, hard = tmp_path / "data.csv", tmp_path / "link.csv", tmp_path / "hard.csv"
    data.write_text("text\n")
    link.symlink_to(data)
    os.link(data, hard)
    for to in (data, link, hard):
        with pytest.raises(UserError, match=rf"^--to: {to} is a file that is read; name another$"):
            check_output("--to", to, [data], run)
    for name in OWN_NAMES:
        with pytest.raises(UserError, match=rf"^--to: {run / name} is {name} of the run in {run}, or in it; "):
            check_output("--to", run / name, [], run)
    check_output("--to", run / "report.html", [data], run, allowed="report.html")
    check_output("--to", run / "predictions.csv", [data, Path("-")], run)
