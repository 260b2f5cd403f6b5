"""Runs whose rows count for several tasks, against a plain PyTorch loop, in one process and in float64."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.train_state import TrainState
from mtl_dist.training.context import RunContext
from mtl_dist.training.evaluation import evaluate
from mtl_dist.training.misclassified import final_tables
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.utils.in_process import metrics_of, run_here, setup_here, summary_of
from tests.utils.plain_loop import PlainLoop
from tests.utils.shared_rows import CLASSES, SPLITS, Table, shared_recipe_file, ticket_tables

TABLES = ticket_tables()
STEPS = 15


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_recipe_file(tmp_path_factory.mktemp("shared rows"))


def recipe_of(recipe_file: Path, *overrides: str) -> Recipe:
    return parse(["--config", str(recipe_file), "model.dtype=float64", *overrides]).recipe


def trained(setup: RunContext) -> Iterator[StepResult]:
    """Runs all phases and yields the result of each step."""
    trainer = LayerwiseLearningRateTrainer(setup, TrainState())
    for phase in setup.rates.schedule.phases:
        setup.engine.enter_phase(phase.name, phase.units)
        setup.engine.train_mode()
        setup.cache.enter_phase(phase, trainer.train_state)
        for step in range(phase.start, phase.stop):
            yield trainer.training_step(step)


def labelled(table: Table, task: str) -> Table:
    return [row for row in table if row[task]]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        ("sampling.rows=shared", "cache.mode=always"),
        ("sampling.rows=shared", "cache.mode=never"),
        ("sampling.rows=per_task", "cache.mode=always"),
        ("sampling.rows=per_task", "sampling.batches=one_task", "cache.mode=never"),
        ("sampling.rows=per_task", "sampling.strategy=proportional", "cache.mode=never"),
    ],
)
def test_a_run_equals_a_plain_loop_with_masks(recipe_file: Path, settings: tuple[str, ...], accumulation: int) -> None:
    setup = setup_here(recipe_of(recipe_file, *settings), accumulation)
    pools = [list(CLASSES)] if settings[0].endswith("shared") else [[task] for task in CLASSES]
    plain = PlainLoop(setup.engine.model, TABLES["train"], pools)
    absent = 0
    for result in trained(setup):
        expected = plain.step(result.batch)
        assert result.batch.counts.tolist() == list(expected.labels.values())
        losses = {task: expected.losses.get(task, 0.0) for task in CLASSES}
        assert dict(zip(CLASSES, result.losses.tolist(), strict=True)) == pytest.approx(losses, rel=1e-9)
        assert result.gradient_norm == pytest.approx(expected.norm, rel=1e-9)
        absent += len(CLASSES) - len(expected.losses)
    if "sampling.strategy=proportional" not in settings and settings[:2] != (
        "sampling.rows=per_task",
        "cache.mode=always",
    ):
        assert absent  # some head was left untouched
    for (name, weight), other in zip(setup.engine.model.named_parameters(), plain.model.parameters(), strict=True):
        if "word_embeddings" not in name:  # of which the plain loop trains the rows without text too
            torch.testing.assert_close(weight, other, rtol=1e-8, atol=1e-12)


def test_a_task_without_a_label_in_the_batch_is_left_untouched(recipe_file: Path) -> None:
    setup = setup_here(recipe_of(recipe_file))
    heads = setup.engine.model.heads
    before = {name: weight.clone() for name, weight in heads.named_parameters()}
    untouched = []
    for result in trained(setup):
        after = {name: weight.clone() for name, weight in heads.named_parameters()}
        for task, count in zip(CLASSES, result.batch.counts, strict=True):
            same = [torch.equal(after[name], before[name]) for name in after if name.startswith(f"{task}.")]
            assert all(same) == (count == 0)
            untouched.append(all(same))
        before = after
    assert any(untouched)


def test_gradient_cosines_are_those_of_the_tasks_on_the_same_rows(recipe_file: Path) -> None:
    """Against one backward pass for each task through the block that is compared."""
    setup = setup_here(recipe_of(recipe_file, "tracking.gradient_cosine_every_steps=1", "cache.mode=never"), 2)
    results = trained(setup)
    for _ in range(6):
        next(results)
    step = 6
    batch, model = setup.sampler.batch(step), setup.engine.model
    inputs = setup.data.training_batch(batch.pool_ids, batch.rows)
    logits = model(inputs.input_ids, inputs.attention_mask, inputs.rows)
    block = [weight for name, weight in model.named_parameters() if ".layer.3." in name]
    gradients = {}
    for task, count in zip(CLASSES, batch.counts, strict=True):
        if count:
            loss = cross_entropy(logits[task], inputs.labels[task])
            found = torch.autograd.grad(loss, block, retain_graph=True)
            gradients[task] = torch.cat([one.flatten() for one in found])
    expected = {
        f"{one}/{other}": float(gradients[one] @ gradients[other] / gradients[one].norm() / gradients[other].norm())
        for one in gradients
        for other in gradients
        if list(CLASSES).index(one) < list(CLASSES).index(other)
    }
    assert expected
    assert next(results).cosines == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_one_forward_pass_measures_all_tasks_of_a_row(
    recipe_file: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = setup_here(recipe_of(recipe_file))
    passes = []
    logits = setup.engine.logits
    monkeypatch.setattr(
        setup.engine, "logits", lambda *inputs: passes.append(len(inputs[0].input_ids)) or logits(*inputs)
    )
    plain = PlainLoop(setup.engine.model.eval(), TABLES["train"], [])
    for split in ("train", "validation", "test"):
        table = [row for row in TABLES[split] if any(row[task] for task in CLASSES)]
        passes.clear()
        metrics = evaluate(setup.engine, setup.data, split, batch_size, max_mistakes=99)
        assert len(passes) == math.ceil(len(table) / batch_size)
        assert list(metrics) == list(CLASSES)
        for task, (loss, accuracy) in plain.evaluate(table).items():
            rows = labelled(table, task)
            assert metrics[task].loss == pytest.approx(loss, rel=1e-9)
            assert metrics[task].accuracy == pytest.approx(accuracy)
            assert metrics[task].confusion.sum() == len(rows)
            truth = {index: CLASSES[task].index(row[task]) for index, row in enumerate(table) if row[task]}
            assert all(truth[mistake.index] == mistake.label for mistake in metrics[task].mistakes)
            assert len(metrics[task].mistakes) == round((1 - accuracy) * len(rows))


def test_misclassified_texts_are_those_of_their_rows_in_the_source(recipe_file: Path) -> None:
    setup = setup_here(recipe_of(recipe_file))
    metrics = evaluate(setup.engine, setup.data, "test", 8, max_mistakes=99)
    tables = final_tables(metrics, setup.data, "test")
    for task in CLASSES:
        assert tables.misclassified[task]
        for one in tables.misclassified[task]:
            row = TABLES["test"][one.row]
            assert (row["text"], row[task]) == (one.text, one.truth)


def test_records_of_a_run_have_draws_of_the_pool_and_labels_of_each_task(recipe_file: Path, tmp_path: Path) -> None:
    run_here(recipe_of(recipe_file, f"output_dir={tmp_path}"))
    setup = json.loads((tmp_path / "setup.json").read_text())
    rows = {task: {split: len(labelled(table, task)) for split, table in TABLES.items()} for task in CLASSES}
    missing = {task: {split: SPLITS[split] - count for split, count in of.items()} for task, of in rows.items()}
    used = sum(any(row[task] for task in CLASSES) for row in TABLES["train"])
    assert setup["pools"] == {"tickets": {"tasks": list(CLASSES), "rows": used}}
    assert summary_of(tmp_path)["tasks"] == {task: {"rows": rows[task], "missing": missing[task]} for task in CLASSES}
    for task in CLASSES:
        assert (setup["tasks"][task]["rows"], setup["tasks"][task]["missing"]) == (rows[task], missing[task])
    sampler = setup_here(recipe_of(recipe_file)).sampler
    lines = [line for line in metrics_of(tmp_path) if "train/loss" in line]
    for line in lines:
        counts = dict(zip(CLASSES, sampler.batch(line["step"] - 1).counts.tolist(), strict=True))
        for task in CLASSES:
            assert line[f"train/{task}/draws"] == 11 * line["step"]
            assert line[f"train/{task}/passes"] == 11 * line["step"] / used
            assert line[f"train/{task}/labels"] == counts[task]
            assert (f"train/{task}/loss" in line) == (counts[task] > 0)
    assert len(lines) == STEPS


def test_rows_per_task_are_those_with_its_label(recipe_file: Path) -> None:
    """A whole pass draws each of them once; lines have no number of labels beside the draws, which are the same."""
    setup = setup_here(recipe_of(recipe_file, "sampling.rows=per_task", "sampling.strategy=proportional"))
    table = [row for row in TABLES["train"] if any(row[task] for task in CLASSES)]
    assert [pool.name for pool in setup.data.pools] == list(CLASSES)
    drawn: list[list[int]] = [[] for _ in CLASSES]
    for step in range(40):
        batch = setup.sampler.batch(step)
        for pool, row in zip(batch.pool_ids, batch.rows, strict=True):
            drawn[pool].append(int(row))
    for task, rows in zip(CLASSES, drawn, strict=True):
        expected = [index for index, row in enumerate(table) if row[task]]
        counts = np.bincount(rows, minlength=len(table))
        assert np.flatnonzero(counts).tolist() == expected
        assert counts[expected].max() - counts[expected].min() <= 1
