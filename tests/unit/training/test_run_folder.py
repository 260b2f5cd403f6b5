import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.checkpoint.storage import Checkpoint
from mtl_dist.config.recipe import CheckpointConfig
from mtl_dist.errors import TrainingError, UserError
from mtl_dist.io import write_text_atomically
from mtl_dist.run_layout import CHECKPOINTS, OWN_NAMES, RECIPE, SUMMARY
from mtl_dist.tracking.console import show_log_lines
from mtl_dist.tracking.tracker import METRICS
from mtl_dist.training.run_folder import open_run_folder, trim_metrics
from tests.utils.checkpoints import flip_a_bit, state_at
from tests.utils.disks import disks_unavailable, nearly_full, read_only, small_disk

RECIPE_OF_RUN: dict[str, Any] = {
    "output_dir": "runs/a",
    "seed": 1,
    "optimizer": {"lr": 1e-4, "eps": 1e-8},
    "tracking": {"wandb": False},
}


@pytest.fixture(autouse=True)
def log_lines_are_shown() -> None:
    show_log_lines(True)


def opened(
    folder: Path, recipe: dict[str, Any] = RECIPE_OF_RUN, resume: str = "auto", files: tuple[str, ...] = ()
) -> Checkpoint | None:
    return open_run_folder(folder, recipe, resume, files)


def metrics_lines(*steps: int) -> str:
    return "".join(json.dumps({"step": step, "phase": "heads", "train/loss": 1 / step}) + "\n" for step in steps)


def write_earlier_run(folder: Path, *checkpoints: int, finished: bool = False) -> dict[str, str]:
    """Writes the files of a run of 6 steps and a user's file; returns their texts by name."""
    folder.mkdir(exist_ok=True)
    texts = {RECIPE: "seed: 1\n", METRICS: metrics_lines(1, 2, 3, 4, 5, 6), "notes.txt": "mine\n"}
    if finished:
        texts[SUMMARY] = "{}\n"
    for name, text in texts.items():
        (folder / name).write_text(text)
    for step in checkpoints:
        state = state_at(step, identity=RECIPE_OF_RUN)
        checkpoint.save(folder / CHECKPOINTS, step, {"weight": torch.ones(1)}, {}, state, CheckpointConfig())
    return texts


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_missing_folder_is_created(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert opened(tmp_path / "deep" / "run") is None
    assert (tmp_path / "deep" / "run").is_dir()
    assert capsys.readouterr().out == ""


def test_files_of_the_user_stay_in_place(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert opened(tmp_path) is None
    assert files_in(tmp_path) == {"notes.txt"}


@pytest.mark.parametrize(
    ("checkpoints", "finished", "resume"),
    [((), True, "auto"), ((6,), True, "auto"), ((), False, "auto"), ((4,), False, "never")],
    ids=["finished", "finished with checkpoints", "without a checkpoint", "resume is never"],
)
def test_an_earlier_run_is_moved_to_previous_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoints: tuple[int, ...], finished: bool, resume: str
) -> None:
    texts = write_earlier_run(tmp_path, *checkpoints, finished=finished)
    assert opened(tmp_path, resume=resume) is None
    assert files_in(tmp_path) == {"notes.txt", "previous"}
    moved = tmp_path / "previous" / "1"
    assert {name: (moved / name).read_text() for name in texts if name != "notes.txt"} == {
        name: text for name, text in texts.items() if name != "notes.txt"
    }
    assert (moved / CHECKPOINTS).exists() == bool(checkpoints)
    assert capsys.readouterr().out == f"an earlier run's files moved to {moved}\n"


def test_earlier_runs_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "previous" / "9").mkdir(parents=True)
    (tmp_path / "previous" / "old").mkdir()
    for number in (10, 11):
        (tmp_path / RECIPE).write_text(f"run {number}")
        opened(tmp_path)
    assert files_in(tmp_path / "previous") == {"9", "10", "11", "old"}
    assert (tmp_path / "previous" / "11" / RECIPE).read_text() == "run 11"


def test_the_recipe_that_the_command_reads_stays_in_place(tmp_path: Path) -> None:
    """Otherwise a run that is killed before it has written its own could not be started again."""
    texts = write_earlier_run(tmp_path, finished=True)
    (tmp_path / "link").symlink_to(tmp_path)
    assert opened(tmp_path, files=(str(tmp_path / "link" / RECIPE),)) is None
    assert files_in(tmp_path) == {"notes.txt", "previous", "link", RECIPE}
    for place in (tmp_path, tmp_path / "previous" / "1"):
        assert (place / RECIPE).read_text() == texts[RECIPE]


@pytest.mark.parametrize("names", [("model",), ("wandb", "report.html"), ("checkpoints", "tensorboard")])
def test_what_no_run_has_written_is_not_moved(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError) as error:
        opened(tmp_path)
    assert files_in(tmp_path) == set(names)
    found = ", ".join(name for name in OWN_NAMES if name in names)
    assert str(error.value) == (
        f"output_dir: {tmp_path} holds {found} and no recipe.yaml, so no run has written that;"
        " name another folder, or move it away"
    )


def test_stacks_of_a_run_that_hung_before_its_first_file_are_moved(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    assert opened(tmp_path) is None
    assert files_in(tmp_path) == {"previous"}


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", ["checkpoints", "model", "wandb", "previous", METRICS])
def test_a_run_with_links_is_not_moved(tmp_path: Path, name: str, dangling: bool) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    texts = write_earlier_run(run, finished=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(elsewhere)
    if not dangling:
        elsewhere.mkdir()
        (elsewhere / "mine").write_text("mine")
    with pytest.raises(UserError, match=rf"^output_dir: {run / name} is a symbolic link, and .* cannot be moved "):
        opened(run)
    assert files_in(run) == {*texts, name}
    assert dangling or files_in(elsewhere) == {"mine"}


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
@pytest.mark.parametrize("name", ["checkpoints", "previous"])
def test_a_run_with_mounted_disks_is_not_moved(tmp_path: Path, name: str) -> None:
    texts = write_earlier_run(tmp_path, finished=True)
    with small_disk(tmp_path / name, 1 << 16):
        with pytest.raises(UserError, match=rf"^output_dir: {tmp_path / name} is a mount point, and "):
            opened(tmp_path)
        assert files_in(tmp_path) == {*texts, name}


def test_an_unfinished_run_resumes_from_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_earlier_run(tmp_path, 2, 4)
    found = opened(tmp_path)
    assert found is not None
    assert found.state == state_at(4, identity=RECIPE_OF_RUN)
    assert (tmp_path / METRICS).read_text() == metrics_lines(1, 2, 3, 4)
    assert files_in(tmp_path) == {RECIPE, METRICS, CHECKPOINTS, "notes.txt"}
    assert capsys.readouterr().out == ""


def test_a_corrupt_checkpoint_is_reported_and_the_older_one_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_earlier_run(tmp_path, 2, 4)
    flip_a_bit(tmp_path / CHECKPOINTS / "step-0000000004" / "state.json")
    found = opened(tmp_path)
    assert found is not None
    assert found.step == 2
    assert (tmp_path / METRICS).read_text() == metrics_lines(1, 2)
    assert capsys.readouterr().out == "checkpoint step-0000000004 skipped: state.json does not match its SHA-256\n"


def test_a_run_with_only_corrupt_checkpoints_is_moved_to_previous(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_earlier_run(tmp_path, 4)
    (tmp_path / CHECKPOINTS / "step-0000000004" / "manifest.json").unlink()
    assert opened(tmp_path) is None
    skipped, moved = capsys.readouterr().out.splitlines()
    assert skipped.startswith("checkpoint step-0000000004 skipped: ")
    assert moved == f"an earlier run's files moved to {tmp_path / 'previous' / '1'}"
    assert (tmp_path / "previous" / "1" / CHECKPOINTS / "step-0000000004").is_dir()


def test_a_changed_recipe_is_refused_with_its_keys_and_changes_no_file(tmp_path: Path) -> None:
    texts = write_earlier_run(tmp_path, 4)
    with pytest.raises(UserError) as error:
        opened(tmp_path, RECIPE_OF_RUN | {"seed": 2, "optimizer": {"lr": 2e-4, "eps": 1e-8}})
    assert str(error.value) == (
        f"{tmp_path}: its checkpoint belongs to a run that differs in optimizer.lr, seed;"
        " change back, or start anew with checkpoint.resume=never"
    )
    assert {name: (tmp_path / name).read_text() for name in texts} == texts


def test_keys_that_do_not_affect_the_result_may_change(tmp_path: Path) -> None:
    write_earlier_run(tmp_path, 4)
    changes = {"output_dir": "runs/b", "tracking": {"wandb": True}, "checkpoint": {"every_steps": 7}}
    assert opened(tmp_path, RECIPE_OF_RUN | changes) is not None


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_that_cannot_be_created_is_a_user_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / below
    with pytest.raises(UserError) as error:
        opened(folder)
    reason = "Not a directory" if below else "File exists"
    assert str(error.value) == f"output_dir: cannot write to {folder}: {reason}"


def trimmed(folder: Path, text: str, step: int) -> str:
    path = folder / METRICS
    path.write_text(text)
    trim_metrics(path, step)
    return path.read_text()


def test_metrics_are_trimmed_to_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    boundary = '{"step": 4, "phase": "heads", "eval/topic/loss": 1.0}\n'
    text = metrics_lines(2, 4) + boundary + metrics_lines(6)
    assert trimmed(tmp_path, text, 4) == metrics_lines(2, 4) + boundary
    assert trimmed(tmp_path, text, 3) == metrics_lines(2)
    assert trimmed(tmp_path, text, 6) == text
    assert trimmed(tmp_path, text, 1) == ""


def test_an_incomplete_metrics_line_is_dropped(tmp_path: Path) -> None:
    assert trimmed(tmp_path, metrics_lines(1, 2)[:-1], 4) == metrics_lines(1)
    assert trimmed(tmp_path, metrics_lines(1) + '{"step": 2, "pha', 4) == metrics_lines(1)
    assert trimmed(tmp_path, metrics_lines(1) + "\0" * 9 + "\n" + metrics_lines(2), 4) == metrics_lines(1)


def test_the_line_of_phase_end_is_dropped_because_it_is_written_again(tmp_path: Path) -> None:
    """A run may be killed after it has written this line and before it writes the summary."""
    end = '{"step": 4, "phase": "end", "eval/topic/loss": 1.0, "test/topic/loss": 1.0}\n'
    assert trimmed(tmp_path, metrics_lines(3, 4) + end, 4) == metrics_lines(3, 4)


def test_a_run_killed_before_its_first_line_has_no_metrics_to_trim(tmp_path: Path) -> None:
    trim_metrics(tmp_path / METRICS, 4)
    assert files_in(tmp_path) == set()


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / SUMMARY
    write_text_atomically(path, "the first\n")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "incomplete \ud800")
    assert path.read_text() == "the first\n"
    write_text_atomically(path, "the second\n")
    assert path.read_text() == "the second\n"
    assert files_in(tmp_path) == {SUMMARY}


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 16) as disk:
        path = disk / SUMMARY
        write_text_atomically(path, "the first\n")
        with nearly_full(disk, 4096), pytest.raises(TrainingError) as error:
            write_text_atomically(path, "x" * 9000)
        assert str(error.value) == f"cannot write {path}: No space left on device"
        assert path.read_text() == "the first\n"
        assert files_in(disk) == {SUMMARY}


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
def test_metrics_are_trimmed_on_a_disk_without_room_for_a_copy(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 16) as disk:
        (disk / METRICS).write_text(metrics_lines(*range(1, 200)))
        with nearly_full(disk, 0):
            trim_metrics(disk / METRICS, 150)
        assert (disk / METRICS).read_text() == metrics_lines(*range(1, 151))


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
def test_a_read_only_folder_is_a_user_error(tmp_path: Path) -> None:
    with read_only(tmp_path), pytest.raises(UserError) as error:
        opened(tmp_path)
    assert str(error.value) == f"output_dir: cannot write to {tmp_path}: Read-only file system"
