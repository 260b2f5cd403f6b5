"""Negative controls: with a mechanism disabled, its campaign fails. test_stopping.py has those of runs that stop.

Each test injects only faults that the mechanism protects from; other faults of the campaign may pass without it.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import basecontainer

from mtl_dist.checkpoint import format as checkpoint_format
from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.models import encoder
from mtl_dist.models import multitask as model
from tests.faults import corruption, disk, hostile, killing, ranks, rows, saving, tracking, without, worlds
from tests.faults.campaign import Outcome
from tests.faults.fork_server import TRAIN, Hook
from tests.faults.runs import LaunchConfig
from tests.utils.disks import disks_unavailable

Draw = random.Random


def only_failure(outcomes: list[Outcome]) -> str:
    """Returns the outcome of a single fault, which must have failed."""
    (outcome,) = outcomes
    assert not outcome.passed, outcome
    return outcome.outcome


def test_without_comparing_hashes_corruption_is_not_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_format, "_check_content", lambda folder, name, expected, sha256: None)
    assert [one for one in corruption.run(Draw(1), tmp_path, 21) if not one.passed] != []


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
def test_without_a_temporary_folder_a_full_disk_leaves_a_partial_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save", without.save_in_place)
    monkeypatch.setattr(disk, "ON_ERROR", ("stop",))
    assert "No space left on device" in only_failure(list(disk.disks(Draw(1), tmp_path, 1)))


@pytest.mark.parametrize(
    ("fault", "owner", "name", "instead"),
    [
        (hostile.pickle_in_a_checkpoint, checkpoint, "verify", lambda folder, step, *sha256: {}),
        (hostile.header, checkpoint_format, "_tensors", lambda folder, name: {}),
        (hostile.path_in_a_manifest, checkpoint, "verify", lambda folder, step, *sha256: {}),
        (hostile.link, checkpoint_format, "_check_names", lambda folder: None),
        (hostile.yaml_tag, basecontainer, "get_yaml_loader", lambda: yaml.UnsafeLoader),
        (hostile.model_folder, encoder, "has_remote_code", lambda config: False),
        (hostile.model_folder, model, "has_remote_code", lambda config: False),
    ],
)
def test_without_the_check_hostile_files_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: hostile.Fault, owner: object, name: str, instead: object
) -> None:
    monkeypatch.setattr(hostile, "FAULTS", (fault,))
    monkeypatch.setattr(owner, name, instead)
    assert [one for one in hostile.run(Draw(22), tmp_path, 4) if not one.passed] != []


@pytest.mark.parametrize(
    ("campaign", "seed", "hook", "outcome"),
    [
        # Killed at a byte of the weights file, whose incomplete content would be loaded.
        (saving.kill_in_save, 13, without.safe_saving, "exit codes [1]"),
        (killing.thirty_kills, 1, without.optimizer_state, "step "),
        (killing.thirty_kills, 1, without.trimming_metrics, "steps [1, 2, "),
        (killing.repeat, 1, without.fixed_seeds, "step 1: "),
        (worlds.world_sizes, 1, without.optimizer_state, "step "),
    ],
)
def test_without_the_mechanism_a_resumed_run_differs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    campaign: Callable[..., Any],
    seed: int,
    hook: Hook,
    outcome: str,
) -> None:
    monkeypatch.setattr(killing, "KILLS", 3)
    monkeypatch.setattr(killing, "PHASE_STEPS", 8)
    monkeypatch.setattr(killing, "REPEATED", (LaunchConfig(1),))
    monkeypatch.setattr(worlds, "between_engines", list)
    monkeypatch.setattr(
        worlds,
        "between_sizes",
        lambda: [worlds.Move(LaunchConfig(1, worlds.FLOAT64), LaunchConfig(2, worlds.FLOAT64), 1)],
    )
    assert only_failure(list(campaign(Draw(seed), tmp_path, 1, hook))).startswith(outcome)


def test_without_optimizer_state_a_killed_rank_changes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import runpy\n"
        "from tests.faults import without\n"
        "without.optimizer_state()\n"
        f"runpy.run_path({str(TRAIN)!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr(ranks, "TRAIN", script)
    assert only_failure(list(ranks.kill_rank(Draw(1), tmp_path, 1))).startswith("step ")


@pytest.mark.parametrize(
    ("fault", "hook"), [("empty text", without.refusing_rows), ("truncated line", without.finding_lines)]
)
def test_without_row_validation_a_bad_row_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, hook: Hook
) -> None:
    monkeypatch.setattr(rows, "FAULTS", {fault: rows.FAULTS[fault]})
    assert only_failure(list(rows.rows(Draw(1), tmp_path, 1, hook))).startswith("exit codes")


def test_without_guarding_trackers_a_wandb_failure_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FAULTS", {"service killed": tracking.FAULTS["service killed"]})
    assert only_failure(list(tracking.wandb(Draw(1), tmp_path, 1, without.guarding_trackers))).startswith("exit codes")
