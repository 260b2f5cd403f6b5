"""`predict`: labels and scores of one task for the texts of a file of any length, in its order.

Rows are read, tokenised, computed and written a window at a time, so that memory does not grow with the file. Within a
window, texts of like length share a batch.
"""

import csv
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.errors import TrainingError, UserError
from mtl_dist.inference.finished_run import CommandParser, FinishedRun, device_here, open_run
from mtl_dist.inference.text_reader import ENDINGS, FORMATS, TextSource
from mtl_dist.io import fsync, reporting_write_errors
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.progress import show_progress

WINDOW_BATCHES = 32
"""Batches whose rows are exchanged to put like lengths together."""
Texts = tuple[str, ...]


def main(arguments: Sequence[str]) -> None:
    """Carries `predict` out. Raises UserError and TrainingError."""
    options = _parsed(arguments)
    run = open_run(options.run)
    task = options.task or next(iter(run.recipe.tasks))
    if options.task is None and len(run.recipe.tasks) > 1:
        raise UserError(f"--task: missing; choose from {', '.join(run.recipe.tasks)}")
    run.check_task(task)
    source = _source(options, run, task)
    out_kind = _out_kind(options.to)
    # The whole file is checked before the model is loaded, so that a bad row far down costs no hours.
    total = sum(1 for _ in _rows_of(options.file, source)) if Path(options.file).is_file() else None
    predictor = Predictor(run, task, source.columns, options.batch_size)
    with _output(options.to) as out, show_progress("predict", "rows", total) as advance:
        write = _writer(out, out_kind, predictor.labels)
        for scores in predictor.scores(_rows_of(options.file, source)):
            write(scores)
            advance(len(scores))


class Predictor:
    """Scores of one task of a run, on the GPU where there is one."""

    def __init__(self, run: FinishedRun, task: str, columns: Sequence[str], batch_size: int) -> None:
        """`columns`: names of the texts of a row, one or two."""
        model, tokenizer = run.load_model(), run.load_tokenizer()
        self.labels = model.labels[task]
        self._task = task
        self._columns = list(columns)
        self._batch_size = batch_size
        self._device = device_here()
        self._model: MultitaskTransformer = model.to(self._device)
        self._tokenize = ColumnTokenizer(tokenizer, self._columns, run.recipe.data.max_length)
        self._pad = int(tokenizer.pad_token_id)

    def scores(self, rows: Iterable[Texts | None]) -> Iterator[list[np.ndarray | None]]:
        """For each window of rows, each row's probabilities [num_labels], float64; None for a row without text."""
        rows = iter(rows)
        while window := list(islice(rows, WINDOW_BATCHES * self._batch_size)):
            scores: list[np.ndarray | None] = [None] * len(window)
            present = [index for index, texts in enumerate(window) if texts is not None]
            if present:
                found = self._window([texts for texts in window if texts is not None])
                for index, values in zip(present, found, strict=True):
                    scores[index] = values
            yield scores

    def _window(self, rows: Sequence[Texts]) -> np.ndarray:
        """Probabilities [rows, num_labels]."""
        texts = {name: [row[index] for row in rows] for index, name in enumerate(self._columns)}
        columns, _ = self._tokenize(pa.table(texts))
        tokens = {name: lists.to_pylist() for name, lists in columns.items()}
        lengths = np.array([len(one) for one in tokens["input_ids"]])
        order = np.argsort(lengths, kind="stable")
        scores = np.empty((len(rows), len(self.labels)))
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            batch = {name: self._padded([lists[row] for row in chosen], name) for name, lists in tokens.items()}
            mask = torch.arange(batch["input_ids"].shape[1]) < torch.from_numpy(lengths[chosen]).unsqueeze(1)
            scores[chosen] = self._probabilities(batch, mask.long())
        return scores

    def _padded(self, lists: Sequence[Sequence[int]], name: str) -> Tensor:
        width = max(1, *(len(one) for one in lists))
        fill = self._pad if name == "input_ids" else 0
        return torch.tensor([[*one, *([fill] * (width - len(one)))] for one in lists])

    def _probabilities(self, batch: dict[str, Tensor], mask: Tensor) -> np.ndarray:
        types = batch.get("token_type_ids")
        with torch.inference_mode():
            logits = self._model(
                batch["input_ids"].to(self._device),
                mask.to(self._device),
                self._task,
                None if types is None else types.to(self._device),
            )
        return logits.double().softmax(dim=-1).cpu().numpy()


def _parsed(arguments: Sequence[str]) -> Namespace:
    parser = CommandParser("predict", "Writes label and scores of one task for every row of a file, in its order.")
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("file", metavar="FILE", help="texts: .txt (one a line), .jsonl or .csv; - is standard input")
    parser.add_argument("--task", help="which of the run's tasks; may be left out where there is one")
    parser.add_argument("--to", metavar="FILE", type=Path, help=".jsonl or .csv; without it, JSON lines to the screen")
    parser.add_argument("--format", choices=FORMATS, help="of FILE, where its name does not say it")
    parser.add_argument("--text", metavar="COLUMN", action="append", help="text column; twice for a pair")
    parser.add_argument("--batch-size", metavar="N", type=int, default=64, help="rows in one forward (64)")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise UserError(f"--batch-size: {options.batch_size} is not at least 1")
    return options


def _source(options: Namespace, run: FinishedRun, task: str) -> TextSource:
    """What the rows of the file are. Raises UserError where that is not known, and where there is no file."""
    config, name = run.recipe.tasks[task], options.file
    kind = options.format or ("text" if name == "-" else ENDINGS.get(Path(name).suffix.lower()))
    if kind is None:
        raise UserError(f"{name}: its name does not say what it is; give --format {', '.join(FORMATS)}")
    columns = options.text or config.text
    if len(columns) != len(config.text):
        raise UserError(f"--text: {len(columns)} columns, and task {task} has learnt from {len(config.text)}")
    if kind == "text" and len(columns) > 1:
        raise UserError(f"{name}: task {task} needs pairs of texts, and a plain text has one a line; use jsonl or csv")
    if name != "-" and not Path(name).exists():
        raise UserError(f"{name}: there is no such file")
    return TextSource("standard input" if name == "-" else name, kind, columns, run.recipe.data.empty_text)


def _out_kind(to: Path | None) -> str:
    kind = "jsonl" if to is None else ENDINGS.get(to.suffix.lower())
    if kind not in ("jsonl", "csv"):
        raise UserError(f"--to: {to}: its name ends neither in .jsonl nor in .csv")
    if to is not None and not to.absolute().parent.is_dir():
        raise UserError(f"--to: {to}: there is no folder {to.parent}")
    return kind


def _rows_of(name: str, source: TextSource) -> Iterator[Texts | None]:
    if name == "-":
        yield from source.rows(sys.stdin.buffer)
        return
    try:
        with Path(name).open("rb") as file:
            yield from source.rows(file)
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from error


@contextmanager
def _output(to: Path | None) -> Iterator[TextIO]:
    """Where the results go; a file gets its name once it is whole."""
    if to is None:
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
            raise TrainingError("standard output was closed before all was written") from error
        return
    partial = to.with_name(f".{to.name}.partial")
    with reporting_write_errors(to):
        try:
            with partial.open("w", encoding="utf-8", newline="") as out:
                yield out
            fsync(partial)
            partial.rename(to)
        finally:
            partial.unlink(missing_ok=True)
        fsync(to.absolute().parent)


def _writer(out: TextIO, kind: str, labels: Sequence[str]) -> Callable[[Sequence[np.ndarray | None]], None]:
    """What writes the scores of rows, a line each; a row without text has null, or nothing, in place of its label."""

    def write_json(rows: Sequence[np.ndarray | None]) -> None:
        for scores in rows:
            label = None if scores is None else labels[int(scores.argmax())]
            each = None if scores is None else dict(zip(labels, map(float, scores), strict=True))
            out.write(json.dumps({"label": label, "scores": each}, ensure_ascii=False) + "\n")
        out.flush()

    if kind == "jsonl":
        return write_json
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["label", *(f"score_{label}" for label in labels)])

    def write_csv(rows: Sequence[np.ndarray | None]) -> None:
        for scores in rows:
            empty = [""] * (1 + len(labels))
            table.writerow(empty if scores is None else [labels[int(scores.argmax())], *map(float, scores)])
        out.flush()

    return write_csv
