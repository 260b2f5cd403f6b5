"""`evaluate`: the figures of a finished run's model, on the test split that it reports on or on other labelled data."""

import json
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe, TaskConfig
from mtl_dist.data.collate import Batch
from mtl_dist.data.dataset import DataBundle, TaskData
from mtl_dist.data.sources import load_rows
from mtl_dist.data.token_files import open_split, write_split
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.data.validation import LabeledSplit, check_split
from mtl_dist.device import choose_kernels
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError, did_you_mean
from mtl_dist.inference.finished_run import CommandParser, FinishedRun, device_here, open_run
from mtl_dist.io import write_text_atomically
from mtl_dist.models.attention import use_fast_attention
from mtl_dist.models.frozen_linear import cache_frozen_casts
from mtl_dist.models.multitask import MultitaskTransformer, PrefixState
from mtl_dist.progress import show_progress
from mtl_dist.run_layout import RECIPE, SUMMARY
from mtl_dist.tasks.classification import ClassificationMetrics
from mtl_dist.training.evaluation import evaluate, flat_metrics

SPLIT = "test"
READERS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet"}
"""By the end of a file's name, how `datasets` calls its reader."""


def main(arguments: Sequence[str]) -> None:
    """Carries `evaluate` out. Raises UserError and TrainingError."""
    parser = CommandParser("evaluate", "Accuracy, macro-F1, loss and confusion matrix of a finished run's model.")
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--task", help="one task; without it all, or those that a recipe under --data names")
    data = ".json(l), .csv or .parquet with texts and labels, or a recipe whose tasks say where test rows are"
    parser.add_argument("--data", metavar="FILE", help=f"{data}; without it, the run's own test split")
    parser.add_argument("--text", metavar="COLUMN", action="append", help="text column of FILE; twice for a pair")
    parser.add_argument("--label", metavar="COLUMN", help="label column of FILE")
    parser.add_argument("--to", metavar="FILE", type=Path, help="write the figures there too, as JSON")
    options = parser.parse_args(arguments)
    run = open_run(options.run)
    tasks = _tasks(options, run)
    model = run.load_model()
    metrics = measure(run, model, tasks)
    for task, one in metrics.items():
        print(_shown(task, model.labels[task], one))
    if options.data is None:
        print(_against_summary(flat_metrics(metrics, SPLIT), run.summary))
    if options.to is not None:
        write_text_atomically(options.to, json.dumps(_as_json(metrics, model.labels), indent=2) + "\n")


def measure(
    run: FinishedRun, model: MultitaskTransformer, tasks: Mapping[str, TaskConfig]
) -> dict[str, ClassificationMetrics]:
    """Figures of `tasks`, in batches and precision as the run has measured them."""
    recipe = run.recipe
    # All tasks are checked before the first is tokenised.
    examples = {name: _examples(recipe, name, task, model.labels[name]) for name, task in tasks.items()}
    tokenizer = run.load_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        data = {}
        for name, task in tasks.items():
            stem, place = Path(scratch) / name, f"tasks.{name}: {SPLIT}"
            tokenize = ColumnTokenizer(tokenizer, task.text, recipe.data.max_length)
            write_split(stem, place, examples[name], tokenize, stem.with_suffix(".texts.npy"))
            data[name] = TaskData(name, model.labels[name], {SPLIT: open_split(stem)})
        batch_size = recipe.evaluation.batch_size
        batches = sum(-(-len(one.splits[SPLIT].lengths) // batch_size) for one in data.values())
        choose_kernels(device_here(), recipe.safety.deterministic)
        alone = _Alone(model.to(device_here()), run.summary.get("mixed_precision", "no"))
        with show_progress("evaluate", "batches", batches) as advance:
            return evaluate(
                alone, DataBundle(data, tokenizer, "", ()), SPLIT, batch_size, before_batch=lambda: advance(1)
            )


class _Alone:
    """A model in one process, computed as an engine would."""

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


def _tasks(options: Namespace, run: FinishedRun) -> dict[str, TaskConfig]:
    """What to measure, each with where its rows are. Raises UserError where that is not clear."""
    if options.task is not None:
        run.check_task(options.task)
    tasks, data = run.recipe.tasks, options.data
    chosen = [options.task] if options.task is not None else list(tasks)
    if data is None or Path(data).suffix.lower() in (".yaml", ".yml"):
        if options.text or options.label:
            raise UserError(f"--{'text' if options.text else 'label'}: goes with a file of rows under --data")
        if data is not None:
            named = _tasks_in(data, run)
            tasks, chosen = parse(["--config", str(run.folder / RECIPE), "--config", data]).recipe.tasks, named
            chosen = [name for name in named if options.task in (None, name)]
            if not chosen:
                raise UserError(f"--task: {data} does not name the task {options.task}")
        return {name: tasks[name] for name in chosen}
    if len(chosen) > 1:
        raise UserError(f"--task: missing; {data} has the rows of one task: choose from {', '.join(tasks)}")
    reader = READERS.get(Path(data).suffix.lower())
    if reader is None:
        raise UserError(f"--data: {data}: its name ends in none of {', '.join([*READERS, '.yaml'])}")
    task = tasks[chosen[0]]
    columns = options.text or task.text
    if len(columns) != len(task.text):
        raise UserError(f"--text: {len(columns)} columns, and task {chosen[0]} has learnt from {len(task.text)}")
    label = options.label or task.label
    changed = {"path": reader, "name": None, "data_files": {SPLIT: data}, "text": columns, "label": label}
    return {chosen[0]: task.model_copy(update=changed)}


def _tasks_in(file: str, run: FinishedRun) -> list[str]:
    """The tasks that a recipe names. Raises UserError for one that the run has not."""
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return list(run.recipe.tasks)  # the reader of recipes says what is wrong
    tasks = found.get("tasks") if isinstance(found, dict) else None
    if not isinstance(tasks, dict):
        raise UserError(f"--data: {file}: names no tasks")
    for name in tasks:
        if name not in run.recipe.tasks:
            raise UserError(
                f"{file}: tasks.{name}: {run.folder} has no such task{did_you_mean(name, run.recipe.tasks)}"
            )
    return list(tasks)


def _shown(task: str, labels: Sequence[str], metrics: ClassificationMetrics) -> str:
    """Figures and confusion matrix for the screen."""
    head = (
        f"{task}: {int(metrics.confusion.sum())} rows, accuracy {metrics.accuracy:.4f},"
        f" macro-F1 {metrics.macro_f1:.4f}, loss {metrics.loss:.4f}"
    )
    width = max(map(len, (*labels, *map(str, metrics.confusion.ravel())))) + 2
    rows = [
        ["", *labels],
        *([label, *map(str, counts)] for label, counts in zip(labels, metrics.confusion, strict=True)),
    ]
    lines = ["".join(cell.rjust(width) for cell in row) for row in rows]
    return "\n".join([head, "rows: true label, columns: prediction", *lines, ""])


def _against_summary(figures: Mapping[str, float], summary: Mapping[str, Any]) -> str:
    for name, value in figures.items():
        if name not in summary:
            return f"{SUMMARY} has no figures to compare with"
        if summary[name] != value:
            return f"not as in {SUMMARY}: {name} is {value!r} here and {summary[name]!r} there"
    return f"the same figures as in {SUMMARY}, to the last bit"


def _as_json(metrics: Mapping[str, ClassificationMetrics], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        task: {
            "rows": int(one.confusion.sum()),
            **one.as_dict(),
            "labels": list(labels[task]),
            "confusion": one.confusion.tolist(),
        }
        for task, one in metrics.items()
    }
