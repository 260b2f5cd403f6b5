"""Runs with the activation cache against the same runs without it, in one process."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from mtl_dist.activation_cache.groups import DistinctTexts
from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.checkpoint.storage import Checkpoint
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import Interrupted
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.train_state import TrainState
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.unit.training.test_stopped_runs import stop_at_check
from tests.utils.in_process import metrics_of, run_here, setup_here, summary_of
from tests.utils.nonfinite import inject_nonfinite
from tests.utils.shared_rows import CLASSES, shared_recipe_file, ticket_tables
from tests.utils.tiny import tiny_recipe

PHASES = {
    "unfrozen": "[{name: heads, train: [heads], steps: 12}, {name: upper, train: [heads, 'blocks[2:]'], steps: 12},"
    " {name: all, train: [all], steps: 2}]",
    "block by block": "[{name: a, train: [heads], steps: 6}, {name: b, train: ['blocks[3:]'], steps: 8}, {name: c,"
    " train: [heads, 'blocks[1:]'], steps: 8}]",
    "up again": "[{name: a, train: ['blocks[1:]'], steps: 6}, {name: b, train: [heads], steps: 9}, {name: c, train:"
    " ['blocks[3:]'], steps: 6}, {name: d, train: ['blocks[1:]'], steps: 5}]",
}
ALL, FEW, NONE = 1.0, 4e-5, 1e-9
"""Budgets in GiB: for all texts, for some of them, for none."""


def recipe_of(folder: Path, run: str, phases: str, *overrides: str) -> Recipe:
    common = (f"output_dir={folder / run}", f"phases={PHASES[phases]}", "model.dropout=0.1", "cache.mode=always")
    return tiny_recipe(folder, *common, *overrides)


def losses_of(folder: Path) -> list[float]:
    """All losses, of steps and evaluations."""
    return [value for line in metrics_of(folder) for key, value in line.items() if "loss" in key.split("/")]


@pytest.mark.parametrize("phases", PHASES)
def test_caching_changes_no_loss(tmp_path: Path, phases: str) -> None:
    """Also not in evaluation; for every budget, and with phases that unfreeze and refreeze."""
    in_float64 = "model.dtype=float64"
    run_here(recipe_of(tmp_path, "computed", phases, in_float64, "cache.mode=never"))
    computed = losses_of(tmp_path / "computed")
    assert len(computed) > 40
    for budget in (ALL, FEW, NONE):
        run_here(recipe_of(tmp_path, f"kept {budget}", phases, in_float64, f"cache.budget_gb={budget}"))
        assert losses_of(tmp_path / f"kept {budget}") == pytest.approx(computed, rel=1e-9)


@pytest.mark.parametrize(
    ("phases", "budget", "round_"),
    [
        ("unfrozen", ALL, 7),
        ("unfrozen", ALL, 19),
        ("unfrozen", FEW, 21),
        ("block by block", ALL, 11),
        ("block by block", FEW, 20),
        ("up again", ALL, 12),
        ("up again", FEW, 27),
    ],
)
def test_a_run_that_resumes_with_an_empty_cache_has_the_same_bits(
    tmp_path: Path, phases: str, budget: float, round_: int
) -> None:
    """Texts are computed in the same compute groups as without interruption."""
    settings = (f"cache.budget_gb={budget}", f"cache.folder={tmp_path}")
    run_here(recipe_of(tmp_path, "whole", phases, *settings))
    with pytest.MonkeyPatch.context() as patch:
        stop_at_check(patch, round_)
        with pytest.raises(Interrupted):
            run_here(recipe_of(tmp_path, "stopped", phases, *settings))
    run_here(recipe_of(tmp_path, "stopped", phases, *settings))
    whole, stopped = (summary_of(tmp_path / run)["state_sha256"] for run in ("whole", "stopped"))
    assert stopped == whole


def test_each_text_is_computed_once_for_two_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase `upper` reads states that were cached during the phase `heads`."""
    setup = setup_here(recipe_of(tmp_path, "run", "unfrozen"))
    drawn: list[set[tuple[int, int]]] = []
    for phase in setup.rates.schedule.phases[:2]:
        batches = [setup.sampler.batch(step) for step in range(phase.start, phase.stop)]
        drawn.append({pair for batch in batches for pair in zip(batch.pool_ids, batch.rows, strict=True)})
    computed: list[tuple[tuple[int, ...], int]] = []
    run_prefix = MultitaskTransformer.run_prefix

    def noted(self: MultitaskTransformer, depths: Sequence[int], ids: Tensor, *rest: Tensor) -> dict[int, Tensor]:
        computed.append((tuple(sorted(depths)), len(ids)))
        return run_prefix(self, depths, ids, *rest)

    monkeypatch.setattr(MultitaskTransformer, "run_prefix", noted)
    monkeypatch.setattr("mtl_dist.training.callbacks.evaluator.evaluate", lambda *_: {})
    run_here(recipe_of(tmp_path, "run", "unfrozen"))
    assert computed.pop(0) == ((2, 4), 1)  # the trial forward pass
    assert sum(texts for depths, texts in computed if depths == (2, 4)) == len(drawn[0])
    assert sum(texts for depths, texts in computed if depths == (2,)) == len(drawn[1] - drawn[0])


def test_after_a_rollback_no_state_of_the_lost_weights_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentence vectors in phase b depend on blocks that phase a trains; the run rolls back from b into a.

    Checkpoints newer than step 4 are hidden from it.
    """
    newest = checkpoint.newest_valid

    def of_step_4(root: Path) -> tuple[Checkpoint | None, list[str]]:
        for folder in root.glob("step-*"):
            if folder.name > "step-0000000004":
                folder.rename(folder.with_name(f"hidden-{folder.name}"))
        return newest(root)

    monkeypatch.setattr(checkpoint, "newest_valid", of_step_4)
    inject_nonfinite(range(8, 10), put=monkeypatch.setattr)
    common = ("model.dtype=float64", "checkpoint.every_steps=4", "checkpoint.keep=9", "optimizer.max_nonfinite_steps=2")
    for mode in ("always", "never"):
        run_here(recipe_of(tmp_path, mode, "up again", *common, f"cache.mode={mode}"))
    assert any("safety/rolled_back_to" in line for line in metrics_of(tmp_path / "always"))
    kept, computed = ([loss for loss in losses_of(tmp_path / mode) if loss is not None] for mode in ("always", "never"))
    assert kept == pytest.approx(computed, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        (
            ("cache.mode=always",),
            ["cache: sentence vectors for heads: up to ", "cache: states before block 2 for upper: up to "],
        ),
        (("cache.mode=auto", f"cache.budget_gb={NONE}"), ["cache: off: cache.budget_gb holds less than "]),
        (("cache.mode=never",), []),
    ],
)
def test_one_line_is_logged_for_each_span(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: Sequence[str], lines: Sequence[str]
) -> None:
    caplog.set_level("INFO", logger="mtl_dist")
    setup_here(recipe_of(tmp_path, "run", "unfrozen", *settings))
    logged = [message for message in caplog.messages if message.startswith("cache: ")]
    assert len(logged) == len(lines)
    assert all(message.startswith(line) for message, line in zip(logged, lines, strict=True))


@pytest.mark.parametrize("rows", ["shared", "per_task"])
def test_each_row_is_computed_once_for_all_of_its_tasks(tmp_path: Path, rows: str) -> None:
    """Two phases of the heads pass over all rows of a table with three tasks; further passes read the cache."""
    phases = "phases=[{name: heads, train: [heads], epochs: 2.0}, {name: again, train: [heads], epochs: 1.0}]"
    settings = (f"sampling.rows={rows}", "sampling.strategy=proportional", phases, "cache.mode=always")
    setup = setup_here(parse(["--config", str(shared_recipe_file(tmp_path)), *settings]).recipe)
    trainer = LayerwiseLearningRateTrainer(setup, TrainState())
    for phase in setup.rates.schedule.phases:
        setup.engine.enter_phase(phase.name, phase.units)
        setup.cache.enter_phase(phase, trainer.train_state)
        for step in range(phase.start, phase.stop):
            trainer.training_step(step)
    with_labels = sum(any(row[task] for task in CLASSES) for row in ticket_tables()["train"])
    assert setup.cache.computed == with_labels
    assert setup.cache.reads == 11 * setup.rates.schedule.total_steps > 3 * with_labels - 11


def test_rows_of_two_pools_over_one_example_set_are_the_same_texts() -> None:
    hashes = np.array([[7, text] for text in (4, 9, 2)], dtype=np.uint64)
    other = np.array([[7, 9]], dtype=np.uint64)
    distinct = DistinctTexts([hashes, other], [np.array([4, 9, 2]), np.array([9])], [0, 0, 1])
    first, second, third = (
        distinct.numbers(np.full(count, pool), np.arange(count)) for pool, count in ((0, 3), (1, 3), (2, 1))
    )
    assert first.tolist() == second.tolist()
    assert third[0] == first[1]
    assert [distinct.count(0, None), distinct.count(1, np.array([0, 2])), distinct.count(2, None)] == [3, 2, 1]
    assert len(distinct.lengths) == 3
