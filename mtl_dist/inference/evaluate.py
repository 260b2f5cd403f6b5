"""Metrics of a finished run's model, on the run's own test split or on other labelled data."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mtl_dist.config.data_recipe import ReadConfig, SourceConfig
from mtl_dist.config.files_read import data_paths
from mtl_dist.config.load import parse_recipe_of_run
from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import ExampleSetConfig, example_sets, source_of
from mtl_dist.data.collate import Batch
from mtl_dist.data.dataset import DataBundle, ExampleSet, TaskData
from mtl_dist.data.labels import classes_of_model
from mtl_dist.data.reading.files import format_of
from mtl_dist.data.sources import open_source
from mtl_dist.data.token_files import open_split, write_split
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.data.validation import LabeledSet, check_rows
from mtl_dist.device import choose_kernels
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError, did_you_mean
from mtl_dist.inference.figures_text import task_text
from mtl_dist.inference.finished_run import FinishedRun, device_here, open_run
from mtl_dist.io import valid_json, write_text_atomically
from mtl_dist.models.attention import use_fast_attention
from mtl_dist.models.frozen_linear import cache_frozen_casts
from mtl_dist.models.limits import limits_of
from mtl_dist.models.multitask import MultitaskTransformer, PrefixState
from mtl_dist.progress import show_progress
from mtl_dist.run_files import check_output
from mtl_dist.run_layout import RECIPE, SUMMARY
from mtl_dist.tasks.classification import ClassificationMetrics
from mtl_dist.training.evaluation import evaluate, flat_confusions, flat_metrics, nonfinite_losses

SPLIT = "test"
KINDS = ("csv", "json", "parquet", "arrow")
"""Formats of files that can hold texts and labels."""


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
    to: Path | None = None,
) -> Evaluation:
    """Evaluates the model of the finished run in folder `run`.

    Without `data`, on the run's own test split, else on a file of labelled rows of one task, with text columns `text`
    and label column `label` (those of the recipe by default), or on the test splits that a recipe names. `task` limits
    this to one task. `to` is where the figures will be written (`Evaluation.write_json`), which must not be what is
    read. Raises UserError and TrainingError.
    """
    finished = open_run(run)
    sets = _sets_to_evaluate(finished, task, data, text, label)
    if to is not None:
        read = data_paths({"sources": {one.name: one.source.model_dump() for one in sets}})
        check_output("--to", to, [*(path for _, path in read), *([Path(data)] if data else [])], finished.folder)
    model = finished.load_model()
    metrics = evaluate_sets(finished, model, sets)
    metrics = {name: one for name, one in metrics.items() if task in (None, name)}
    comparison = None if data is not None else _comparison(flat_metrics(metrics, SPLIT), finished.summary)
    return Evaluation(metrics, {name: model.labels[name] for name in metrics}, comparison)


def evaluate_sets(
    run: FinishedRun, model: MultitaskTransformer, sets: Sequence[ExampleSetConfig]
) -> dict[str, ClassificationMetrics]:
    """Metrics of the tasks of `sets`, computed with the batch size and precision of the run's own evaluation."""
    recipe = run.recipe
    tokenizer, limits = run.load_tokenizer(model), limits_of(model.sentence_transformer.encoder)
    with ExitStack() as scratch:
        # All sets are checked before the first one is tokenized.
        labeled = [_labeled(one, recipe, model, scratch) for one in sets]
        folder = Path(scratch.enter_context(tempfile.TemporaryDirectory()))
        found = {}
        for index, (one, rows) in enumerate(zip(sets, labeled, strict=True)):
            (folder / str(index)).mkdir()
            stem = folder / str(index) / SPLIT
            tokenize = ColumnTokenizer(tokenizer, list(one.text), recipe.data.max_length)
            write_split(stem, one.key, rows.splits[SPLIT], tokenize)
            split = open_split(stem, list(one.tasks))
            limits.check_split(f"{one.key}: {one.origin_of(SPLIT)}", split, tokenizer)
            found[one.name] = ExampleSet(one.name, tuple(one.tasks), {SPLIT: split})
        tasks = {
            task: TaskData(
                task, classes.names, found[one.name], rows.class_counts[task], rows.missing[task], classes.kind
            )
            for one, rows in zip(sets, labeled, strict=True)
            for task, classes in rows.classes.items()
        }
        tasks = {task: tasks[task] for task in recipe.tasks if task in tasks}
        batch_size = recipe.evaluation.batch_size
        batches = sum(-(-len(one.splits[SPLIT].lengths) // batch_size) for one in found.values())
        choose_kernels(device_here(), recipe.safety.deterministic)
        engine = _SingleProcess(model.to(device_here()), run.summary.get("mixed_precision", "no"))
        data = DataBundle(tuple(found.values()), tasks, (), tokenizer, "", ())
        with show_progress("evaluate", "batches", batches) as advance:
            return evaluate(engine, data, SPLIT, batch_size, before_batch=lambda: advance(1))


def _labeled(config: ExampleSetConfig, recipe: Recipe, model: MultitaskTransformer, scratch: ExitStack) -> LabeledSet:
    """The rows to evaluate, with the classes of the model; `scratch` removes the files that hold them."""
    classes = {
        task: classes_of_model(config.key_of(task), model.labels[task], one.labels)
        for task, one in config.tasks.items()
    }
    folder = Path(scratch.enter_context(tempfile.TemporaryDirectory()))
    source = open_source(config, (SPLIT,)).read(folder)
    return check_rows(config, source, (SPLIT,), recipe.data.empty_text, classes)


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


def _sets_to_evaluate(
    run: FinishedRun, task: str | None, data: str | None, text: Sequence[str] | None, label: str | None
) -> list[ExampleSetConfig]:
    """The rows to evaluate, and their tasks. Raises UserError where that is not clear."""
    if task is not None:
        run.check_task(task)
    recipe = run.recipe
    if data is not None and Path(data).suffix.lower() not in (".yaml", ".yml"):
        return [_set_of_file(run, task, data, text, label)]
    if text or label:
        raise UserError(f"--{'text' if text else 'label'}: goes with a file of rows under --data")
    if data is None:
        # With all tasks of the set, because its rows then share batches as in the run's own evaluation.
        return [one for one in example_sets(recipe) if task is None or task in one.tasks]
    chosen = [name for name in _tasks_in(data, run) if task in (None, name)]
    if not chosen:
        raise UserError(f"--task: {data} does not name the task {task}")
    sets = example_sets(parse_recipe_of_run(run.folder / RECIPE, data))
    found = [replace(one, tasks={name: of for name, of in one.tasks.items() if name in chosen}) for one in sets]
    return [one for one in found if one.tasks]


def _set_of_file(
    run: FinishedRun, task: str | None, data: str, text: Sequence[str] | None, label: str | None
) -> ExampleSetConfig:
    """The rows of a file, which are those of one task; read as its source is where that has the same format."""
    tasks = run.recipe.tasks
    if task is None and len(tasks) > 1:
        raise UserError(f"--task: missing; {data} has the rows of one task: choose from {', '.join(tasks)}")
    task = task or next(iter(tasks))
    kind = format_of(data)
    if kind not in KINDS:
        raise UserError(
            f"--data: {data}: its name does not tell that it is one of {', '.join(KINDS)}, or a recipe (.yaml)"
        )
    learnt = source_of(run.recipe, task)
    columns = list(text or learnt.text)
    if len(columns) != len(learnt.text):
        raise UserError(f"--text: {len(columns)} columns, and task {task} has learnt from {len(learnt.text)}")
    read = learnt.read if kind == learnt.path else ReadConfig()
    source = SourceConfig(path=kind, data_files={SPLIT: [data]}, text=columns, read=read)
    config = tasks[task].model_copy(update={"label": label or tasks[task].label})
    return ExampleSetConfig(task, f"tasks.{task}", source, columns, {task: config})


def _tasks_in(file: str, run: FinishedRun) -> list[str]:
    """Names of the tasks in a recipe file, and of those that use a source in it.

    Raises UserError for a task that the run does not have.
    """
    tasks = run.recipe.tasks
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return list(tasks)  # `parse` reports what is wrong
    sections = found if isinstance(found, dict) else {}
    named, sources = (sections.get(key) or {} for key in ("tasks", "sources"))
    if not isinstance(named, dict) or not isinstance(sources, dict):
        return list(tasks)
    for name in named:
        if name not in tasks:
            raise UserError(f"{file}: tasks.{name}: {run.folder} has no such task{did_you_mean(name, tasks)}")
    chosen = [name for name, task in tasks.items() if name in named or task.source in sources]
    if not chosen:
        raise UserError(f"--data: {file}: names no tasks")
    return chosen


def _comparison(figures: Mapping[str, float], summary: Mapping[str, Any]) -> str:
    """How `figures` compare with those of summary.json, in a line."""
    for name, value in figures.items():
        if name not in summary:
            return f"{SUMMARY} has no figures to compare with"
        if not (summary[name] == value or (summary[name] is None and not math.isfinite(value))):  # JSON has no NaN
            return f"not as in {SUMMARY}: {name} is {value!r} here and {summary[name]!r} there"
    return f"the same figures as in {SUMMARY}, to the last bit"
