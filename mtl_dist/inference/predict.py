"""Labels and scores of one task for the texts of a file of any length, in its order.

Rows are read, tokenized, computed and written one window at a time, so that memory does not grow with the file. Within
a window, texts of similar length share a batch.
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Literal, TextIO, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mtl_dist.config.data_recipe import ReadConfig
from mtl_dist.config.sources import source_of
from mtl_dist.data.reading.files import FORMATS, format_of
from mtl_dist.data.reading.table import TableFile, read_stream
from mtl_dist.data.reading.values import Block
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.errors import TrainingError, UserError, list_some
from mtl_dist.inference.finished_run import FinishedRun, device_here, open_run
from mtl_dist.io import fsync, reporting_write_errors
from mtl_dist.models.limits import limits_of
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.progress import show_progress
from mtl_dist.run_files import check_output

WINDOW_BATCHES = 32
"""Batches per window; rows are sorted by length within a window."""
_OUTPUT_FORMATS = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
Texts = tuple[str, ...]
"""The texts of one row: one, or two for a pair."""


def predict_file(
    run: str | Path,
    file: str,
    *,
    task: str | None = None,
    to: Path | None = None,
    format: str | None = None,
    text: Sequence[str] | None = None,
    batch_size: int = 64,
) -> None:
    """Writes label and scores of `task` for every row of `file`, in its order.

    `file` is a path, or `-` for standard input, in `format` (one of FORMATS), which the ending of its name tells by
    default. `text` names its text columns, by default those of the recipe. `task` may be None where the run has one.
    `to` is a .jsonl or .csv file; None writes JSON lines to standard output.

    Raises UserError and TrainingError. A row of a file that cannot be used is found before anything is written.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size: {batch_size} is not at least 1")
    finished = open_run(run)
    if task is None and len(finished.recipe.tasks) > 1:
        raise UserError(f"--task: missing; choose from {list_some([*finished.recipe.tasks])}")
    task = task or next(iter(finished.recipe.tasks))
    finished.check_task(task)
    rows = _rows_of(finished, task, file, format, text)
    out_format = _output_format(to)
    if to is not None:
        check_output("--to", to, [Path(file)], finished.folder)
    # The whole file is checked before the model is loaded, so that a bad row far down costs no hours.
    total = rows.count()
    predictor = Predictor(finished, task, rows.columns, batch_size, rows.table.name)
    if total is not None:
        predictor.check(rows)
    with _output(to) as out, show_progress("predict", "rows", total) as advance:
        write = _writer(out, out_format, predictor.labels)
        for scores in predictor.scores(rows):
            write(scores)
            advance(len(scores))


class Predictor:
    """Scores of one task of a run, on the GPU where there is one."""

    def __init__(
        self, run: FinishedRun, task: str, columns: Sequence[str], batch_size: int, source: str = "texts"
    ) -> None:
        """`columns`: names of the texts of a row, one or two; `source`: where they are from, for messages."""
        model = run.load_model()
        self._tokenizer = run.load_tokenizer(model)
        self._limits = limits_of(model.sentence_transformer.encoder)
        self.labels = model.labels[task]
        self._task = task
        self._columns = list(columns)
        self._batch_size = batch_size
        self._device = device_here()
        self._model: MultitaskTransformer = model.to(self._device)
        self._tokenize = ColumnTokenizer(self._tokenizer, self._columns, run.recipe.data.max_length)
        self._pad = int(cast(int, self._tokenizer.pad_token_id))
        self._source = source

    def check(self, rows: Iterable[Texts | None]) -> None:
        """Raises UserError for the first row that the encoder cannot compute, if the tokenizer makes any such row."""
        if self._limits.exceeded_by(self._tokenizer):
            for numbers, present, _ in self._windows(rows):
                if present:
                    self._tokens(numbers, present)

    def scores(self, rows: Iterable[Texts | None]) -> Iterator[list[np.ndarray | None]]:
        """For each window of rows, each row's probabilities [num_labels], float64; None for a row without text.

        Raises UserError for a row that the encoder cannot compute, and TrainingError for scores that are not finite.
        """
        for numbers, present, window in self._windows(rows):
            found = iter(self._window_scores(numbers, present)) if present else iter(())
            yield [None if texts is None else next(found) for texts in window]

    def _windows(self, rows: Iterable[Texts | None]) -> Iterator[tuple[list[int], list[Texts], list[Texts | None]]]:
        """For each window, the numbers of its rows with text, these rows, and all of its rows."""
        numbered = enumerate(rows)
        while window := list(islice(numbered, WINDOW_BATCHES * self._batch_size)):
            present = [(number, texts) for number, texts in window if texts is not None]
            yield [number for number, _ in present], [texts for _, texts in present], [texts for _, texts in window]

    def _tokens(self, numbers: Sequence[int], rows: Sequence[Texts]) -> dict[str, list[list[int]]]:
        """The tokenizer's output for `rows`, whose numbers are for messages. Raises UserError."""
        texts = {name: [row[index] for row in rows] for index, name in enumerate(self._columns)}
        columns, _ = self._tokenize(pa.table(texts))
        if fault := self._limits.first_fault(columns["input_ids"], self._tokenizer):
            raise UserError(f"{self._place(numbers[fault[0]])}: {fault[1]}")
        return {name: lists.to_pylist() for name, lists in columns.items()}

    def _place(self, number: int) -> str:
        return f"{self._source} row {number} (from 0)"

    def _window_scores(self, numbers: Sequence[int], rows: Sequence[Texts]) -> np.ndarray:
        """Probabilities [rows, num_labels]."""
        tokens = self._tokens(numbers, rows)
        lengths = np.array([len(one) for one in tokens["input_ids"]])
        order = np.argsort(lengths, kind="stable")
        scores = np.empty((len(rows), len(self.labels)))
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            batch = {name: self._padded([lists[row] for row in chosen], name) for name, lists in tokens.items()}
            mask = torch.arange(batch["input_ids"].shape[1]) < torch.from_numpy(lengths[chosen]).unsqueeze(1)
            scores[chosen] = self._probabilities(batch, mask.long())
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if len(bad):
            raise TrainingError(f"{self._place(numbers[bad[0]])}: the model's scores for it are not finite")
        return scores

    def _padded(self, lists: Sequence[Sequence[int]], name: str) -> Tensor:
        """Rows of the tokenizer's output `name`, padded to [rows, longest]."""
        width = max(1, *(len(one) for one in lists))
        fill = self._pad if name == "input_ids" else 0
        return torch.tensor([[*one, *([fill] * (width - len(one)))] for one in lists])

    def _probabilities(self, batch: dict[str, Tensor], mask: Tensor) -> np.ndarray:
        """Probabilities [rows, num_labels] of one padded batch; NaN in a row that has a logit that is not finite."""
        types = batch.get("token_type_ids")
        with torch.inference_mode():
            logits = self._model(
                batch["input_ids"].to(self._device),
                mask.to(self._device),
                self._task,
                None if types is None else types.to(self._device),
            )
        finite = logits.isfinite().all(dim=-1, keepdim=True)
        return logits.double().softmax(dim=-1).masked_fill(~finite, torch.nan).cpu().numpy()


@dataclass(frozen=True)
class _Rows:
    """The texts of a file, or of standard input for `-`, row by row."""

    file: str
    table: TableFile
    columns: Sequence[str]
    """Text columns: one, or two for a pair."""
    empty: Literal["error", "skip"]
    """Whether a row without text is an error, or is yielded as None."""

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.table.name

    def __iter__(self) -> Iterator[Texts | None]:
        """Raises UserError for the first row that cannot be used."""
        for batch, place in self._blocks():
            texts = [batch.column(name).to_pylist() for name in self.columns]
            for row, values in enumerate(zip(*texts, strict=True)):
                if not any(map(_is_blank, values)):
                    yield values
                elif self.empty == "skip":
                    yield None
                else:
                    empty = next(name for name, value in zip(self.columns, values, strict=True) if _is_blank(value))
                    hint = "; leave the row out, or train with data.empty_text=skip, which gives such rows no label"
                    raise UserError(f"{place(row)}: text is empty in column {empty!r}{hint}")

    def count(self) -> int | None:
        """Number of rows, each of which is checked; None for a stream, which can be read once only."""
        return sum(1 for _ in self) if self._is_regular() else None

    def _is_regular(self) -> bool:
        return self.file != "-" and Path(self.file).is_file()

    def _blocks(self) -> Iterator[Block]:
        if self._is_regular():
            yield from self.table.blocks(self.columns, [])
        elif self.file == "-":
            yield from read_stream(cast(BufferedReader, sys.stdin.buffer), self.table, self.columns, [])
        else:  # a pipe
            with Path(self.file).open("rb") as stream:
                yield from read_stream(stream, self.table, self.columns, [])


def _rows_of(run: FinishedRun, task: str, file: str, format: str | None, text: Sequence[str] | None) -> _Rows:
    """How rows are read from `file`. Raises UserError where that is not known, and where there is no file."""
    source = source_of(run.recipe, task)
    kind = format or ("text" if file == "-" else format_of(file))
    if kind is None:
        raise UserError(f"{file}: its name does not say what it is; give --format {', '.join(FORMATS)}")
    kind = "json" if kind == "jsonl" else kind
    columns = text or source.text
    if len(columns) != len(source.text):
        raise UserError(f"--text: {len(columns)} columns, and task {task} has learnt from {len(source.text)}")
    if kind == "text" and len(columns) > 1:
        raise UserError(f"{file}: task {task} needs pairs of texts, and a plain text has one a line; use json or csv")
    if file != "-" and not Path(file).exists():
        raise UserError(f"{file}: there is no such file")
    if Path(file).is_dir():
        raise UserError(f"{file}: is a folder; name a file")
    read = source.read if kind == source.path else ReadConfig()
    table = TableFile(file, kind, read, "standard input" if file == "-" else file)
    return _Rows(file, table, columns, run.recipe.data.empty_text)


def _is_blank(text: str | None) -> bool:
    return not (text and text.strip())


def _output_format(to: Path | None) -> str:
    """The format of the results: jsonl or csv. Raises UserError."""
    kind = "jsonl" if to is None else _OUTPUT_FORMATS.get(to.suffix.lower())
    if kind is None:
        raise UserError(f"--to: {to}: its name ends neither in .jsonl nor in .csv")
    if to is not None and not to.absolute().parent.is_dir():
        raise UserError(f"--to: {to}: there is no folder {to.parent}")
    return kind


@contextmanager
def _output(to: Path | None) -> Iterator[TextIO]:
    """The stream for the results; a file gets its name only once it is complete."""
    if to is None:
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would report a second error at exit
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
    """A function that writes the scores of rows, a line each; a row without text gets null, or empty fields in CSV."""

    def write_json(rows: Sequence[np.ndarray | None]) -> None:
        for scores in rows:
            label = None if scores is None else labels[int(scores.argmax())]
            each = None if scores is None else dict(zip(labels, map(float, scores), strict=True))
            out.write(json.dumps({"label": label, "scores": each}, ensure_ascii=False, allow_nan=False) + "\n")
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
