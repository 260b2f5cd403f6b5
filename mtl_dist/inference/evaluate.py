"""Metrics of a finished run's model, on the run's own test split or on other labelled data."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mtl_dist.config.load import parse_recipe_of_run
from mtl_dist.config.recipe import Recipe, TaskConfig
from mtl_dist.data.collate import Batch
from mtl_dist.data.dataset import DataBundle, TaskData
from mtl_dist.data.sources import load_rows
from mtl_dist.data.token_cache import open_split, write_split
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.data.validation import LabeledSplit, check_split
from mtl_dist.device import choose_kernels
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError, did_you_mean, list_some
from mtl_dist.inference.figures_text import task_text
from mtl_dist.inference.finished_run import FinishedRun, device_here, open_run
from mtl_dist.io import valid_json, write_text_atomically
from mtl_dist.models.attention import use_fast_attention
from mtl_dist.models.frozen_linear import cache_frozen_casts
from mtl_dist.models.limits import limits_of
from mtl_dist.models.multitask import MultitaskTransformer, PrefixState
from mtl_dist.progress import show_progress
from mtl_dist.run_layout import RECIPE, SUMMARY
from mtl_dist.tasks.classification import ClassificationMetrics
from mtl_dist.training.evaluation import evaluate, flat_confusions, flat_metrics, nonfinite_losses

SPLIT = "test"
READERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet"}
"""Readers of `datasets` by the ending of a file's name."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a finished run's model."""

    metrics: Mapping[str, ClassificationMetrics]
    """Metrics by task."""
    labels: Mapping[str, Sequence[str]]
    """Class names by task."""
    comparison: str | None
    """How the figures compare with summary.json, in a line; None for data other than the run's own test split."""

    def as_text(self) -> str:
        """Figures and confusion matrices for the terminal; of many classes, those that were confused most."""
        parts = [task_text(task, self.labels[task], one) for task, one in self.metrics.items()]
        parts += [f"warning: {line}" for line in nonfinite_losses(self.metrics)]
        return "\n".join(parts if self.comparison is None else [*parts, self.comparison])

    def write_json(self, path: Path) -> None:
        """Writes the figures to a JSON file, a line for each task. Raises TrainingError where the disk is full.

        `confusion` has [label, prediction, count] where the count is not 0. A loss that is not finite is null.
        """
        cells = flat_confusions(self.metrics, SPLIT)
        tasks = {
            task: {
                "rows": int(one.confusion.sum()),
                **one.as_dict(),
                "labels": list(self.labels[task]),
                "confusion": cells[f"{SPLIT}/{task}/confusion"],
            }
            for task, one in self.metrics.items()
        }
        lines = [f"{json.dumps(task)}: {valid_json(content)}" for task, content in tasks.items()]
        write_text_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


def evaluate_run(
    run: str | Path,
    *,
    task: str | None = None,
    data: str | None = None,
    text: Sequence[str] | None = None,
    label: str | None = None,
) -> Evaluation:
    """Evaluates the model of the finished run in folder `run`.

    Without `data`, on the run's own test split, else on a file of labelled rows of one task, with text columns `text`
    and label column `label` (those of the recipe by default), or on the test splits that a recipe names. `task` limits
    this to one task. Raises UserError and TrainingError.
    """
    finished = open_run(run)
    tasks = _tasks_to_evaluate(finished, task, data, text, label)
    model = finished.load_model()
    metrics = evaluate_tasks(finished, model, tasks)
    comparison = None if data is not None else _comparison(flat_metrics(metrics, SPLIT), finished.summary)
    return Evaluation(metrics, {name: model.labels[name] for name in metrics}, comparison)


def evaluate_tasks(
    run: FinishedRun, model: MultitaskTransformer, tasks: Mapping[str, TaskConfig]
) -> dict[str, ClassificationMetrics]:
    """Metrics of `tasks`, computed with the batch size and precision of the run's own evaluation."""
    recipe = run.recipe
    # All tasks are checked before the first one is tokenized.
    examples = {name: _examples(recipe, name, task, model.labels[name]) for name, task in tasks.items()}
    tokenizer, limits = run.load_tokenizer(model), limits_of(model.sentence_transformer.encoder)
    with tempfile.TemporaryDirectory() as scratch:
        data = {}
        for name, task in tasks.items():
            stem, place = Path(scratch) / name, f"tasks.{name}: {SPLIT}"
            tokenize = ColumnTokenizer(tokenizer, task.text, recipe.data.max_length)
            write_split(stem, place, examples[name], tokenize, stem.with_suffix(".texts.npy"))
            split = open_split(stem)
            limits.check_split(place, split, tokenizer)
            data[name] = TaskData(name, model.labels[name], {SPLIT: split})
        batch_size = recipe.evaluation.batch_size
        batches = sum(-(-len(one.splits[SPLIT].lengths) // batch_size) for one in data.values())
        choose_kernels(device_here(), recipe.safety.deterministic)
        engine = _SingleProcess(model.to(device_here()), run.summary.get("mixed_precision", "no"))
        with show_progress("evaluate", "batches", batches) as advance:
            return evaluate(
                engine, DataBundle(data, tokenizer, "", ()), SPLIT, batch_size, before_batch=lambda: advance(1)
            )


class _SingleProcess:
    """The part of an engine that evaluation needs, for a model in one process."""

    def __init__(self, model: MultitaskTransformer, precision: str) -> None:
        self.processes = ProcessGroup()
        self.device = next(model.parameters()).device
        self._model = model.eval().requires_grad_(False)
        cache_frozen_casts(self._model)
        use_fast_attention(self._model.sentence_transformer.encoder)
        self._precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        with torch.no_grad():
            yield

    def logits(self, batch: Batch, prefix: PrefixState | None = None) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, self._precision, enabled=self._precision is not None):
            logits = self._model(batch.input_ids, batch.attention_mask, batch.rows, batch.token_type_ids, prefix)
        return {task: values.to(self._model.sentence_transformer.encoder.dtype) for task, values in logits.items()}


def _examples(recipe: Recipe, name: str, task: TaskConfig, labels: tuple[str, ...]) -> LabeledSplit:
    rows = load_rows(f"tasks.{name}", task, SPLIT)
    return check_split(f"tasks.{name}", task, SPLIT, rows, labels, recipe.data.empty_text)


def _tasks_to_evaluate(
    run: FinishedRun, task: str | None, data: str | None, text: Sequence[str] | None, label: str | None
) -> dict[str, TaskConfig]:
    """The tasks to evaluate, each with the source of its rows. Raises UserError where that is not clear."""
    if task is not None:
        run.check_task(task)
    tasks = run.recipe.tasks
    chosen = [task] if task is not None else list(tasks)
    if data is None or Path(data).suffix.lower() in (".yaml", ".yml"):
        if text or label:
            raise UserError(f"--{'text' if text else 'label'}: goes with a file of rows under --data")
        if data is not None:
            named = _tasks_in(data, run)
            tasks = parse_recipe_of_run(run.folder / RECIPE, data).tasks
            chosen = [name for name in named if task in (None, name)]
            if not chosen:
                raise UserError(f"--task: {data} does not name the task {task}")
        return {name: tasks[name] for name in chosen}
    if len(chosen) > 1:
        raise UserError(f"--task: missing; {data} has the rows of one task: choose from {list_some([*tasks])}")
    reader = READERS.get(Path(data).suffix.lower())
    if reader is None:
        raise UserError(f"--data: {data}: its name ends in none of {', '.join([*READERS, '.yaml'])}")
    name, config = chosen[0], tasks[chosen[0]]
    columns = list(text or config.text)
    if len(columns) != len(config.text):
        raise UserError(f"--text: {len(columns)} columns, and task {name} has learnt from {len(config.text)}")
    changes: dict[str, Any] = {"path": reader, "name": None, "data_files": {SPLIT: data}, "text": columns}
    return {name: config.model_copy(update={**changes, "label": label or config.label})}


def _tasks_in(file: str, run: FinishedRun) -> list[str]:
    """Names of the tasks in a recipe file. Raises UserError for one that the run does not have."""
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return list(run.recipe.tasks)  # `parse` reports what is wrong
    tasks = found.get("tasks") if isinstance(found, dict) else None
    if not isinstance(tasks, dict):
        raise UserError(f"--data: {file}: names no tasks")
    for name in tasks:
        if name not in run.recipe.tasks:
            raise UserError(
                f"{file}: tasks.{name}: {run.folder} has no such task{did_you_mean(name, run.recipe.tasks)}"
            )
    return list(tasks)


def _comparison(figures: Mapping[str, float], summary: Mapping[str, Any]) -> str:
    """How `figures` compare with those of summary.json, in a line."""
    for name, value in figures.items():
        if name not in summary:
            return f"{SUMMARY} has no figures to compare with"
        if not (summary[name] == value or (summary[name] is None and not math.isfinite(value))):  # JSON has no NaN
            return f"not as in {SUMMARY}: {name} is {value!r} here and {summary[name]!r} there"
    return f"the same figures as in {SUMMARY}, to the last bit"
