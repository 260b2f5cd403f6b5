"""Campaign `rows`: one bad row anywhere in the data is reported with task and place, or left out if configured.

The command (with `--plan`) must end with exit code 2 before the first step, on one process and on two.
"""

import csv
import io
import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.campaign import Campaign, Outcome
from tests.faults.fork_server import ForkServer, Hook
from tests.faults.runs import LaunchConfig, Runs
from tests.utils.tiny import MOODS, TOPICS

Row = dict[str, Any]
BadRow = Row | bytes
"""A row, or the bytes of its line of JSON."""
SKIP = "data.empty_text=skip"
ACCEPTED = ""


@dataclass(frozen=True)
class Fault:
    """One kind of error in a row, and the message expected for it."""

    corrupt: Callable[[random.Random, Row], BadRow]
    message: str
    """Regular expression for the message after the place; ACCEPTED if the row is valid after all."""
    formats: tuple[str, ...] = ("json",)
    tasks: tuple[str, ...] = ("topic", "mood")
    splits: tuple[str, ...] = ("train", "test")
    overrides: tuple[str, ...] = ()
    by_line: bool = False
    """Whether the reader finds it, and so names file and line instead of split and row."""


def value(**values: Any) -> Callable[[random.Random, Row], BadRow]:
    """Replaces values, each by one of a list."""
    return lambda rng, row: row | {name: rng.choice(choices) for name, choices in values.items()}


def without(name: str) -> Callable[[random.Random, Row], BadRow]:
    return lambda rng, row: {key: held for key, held in row.items() if key != name}


def line_of(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"


def truncated(rng: random.Random, row: Row) -> bytes:
    line = line_of(row)
    return line[: rng.randint(1, len(line) - 3)] + b"\n"


def with_other_bytes(rng: random.Random, row: Row) -> bytes:
    """Inserts bytes that are not UTF-8 into the text."""
    line = line_of(row)
    place = line.index(b'"text": "') + len(b'"text": "')
    return line[:place] + rng.choice((b"\xff", b"\xc3 ", b"\xed\xa0\x80", b"\xe9t\xe9 ")) + line[place:]


def with_key_twice(rng: random.Random, row: Row) -> bytes:
    extra = rng.choice((b'"text": "cat1"', b'"label": 1', b'"label": "cat"'))
    return b"{" + extra + b", " + line_of(row)[1:]


ALL = ("json", "csv", "parquet")
UNKNOWN = "label '.*' is not one of the classes; .*"
EMPTY = (" ", "", "\t", " ")
FAULTS: dict[str, Fault] = {
    "empty text": Fault(value(text=EMPTY), "text is empty; data.empty_text=skip leaves such rows out", ALL),
    "null text": Fault(value(text=[None]), "text is empty; data.empty_text=skip leaves such rows out", ALL),
    "no text": Fault(without("text"), "text is empty; data.empty_text=skip leaves such rows out"),
    "empty text, skipped": Fault(value(text=EMPTY), ACCEPTED, ALL, overrides=(SKIP,)),
    "null text, skipped": Fault(value(text=[None]), ACCEPTED, ALL, overrides=(SKIP,)),
    "text of another type": Fault(
        value(text=[3, 0.5, True, ["a"], {"a": 1}]), "text column 'text' holds .*, no string", by_line=True
    ),
    "null label": Fault(value(label=[None]), ACCEPTED, ALL),
    "no label": Fault(without("label"), ACCEPTED),
    "null label, refused": Fault(
        value(label=[None]), "has no label; .*", ALL, ("mood",), overrides=("tasks.mood.missing=error",)
    ),
    "no label, refused": Fault(
        without("label"), "has no label; .*", tasks=("mood",), overrides=("tasks.mood.missing=error",)
    ),
    "label that is no number": Fault(
        value(label=[float("nan")]), "has no label; .*", tasks=("topic",), overrides=("tasks.topic.missing=error",)
    ),
    "label that is no value": Fault(
        value(label=[[1], {"a": 1}]), "column 'label' holds .*, no single value", by_line=True
    ),
    "infinite label": Fault(value(label=[float("inf")]), "column 'label' holds inf", by_line=True),
    "another class in training": Fault(
        value(label=[True, 1, -7, "dog"]), ACCEPTED, tasks=("topic",), splits=("train",)
    ),
    "another class in test": Fault(value(label=[True, 1, -7]), UNKNOWN, tasks=("topic",), splits=("test",)),
    "fraction": Fault(value(label=[0.5, 1.25]), "label .* is a fractional number; .*", ALL, ("mood",)),
    "number as text": Fault(value(label=["1", "0", "1.0", 1.0]), ACCEPTED, tasks=("mood",)),
    "word among numbers": Fault(value(label=["bad"]), UNKNOWN, ("json", "csv"), ("mood",), ("test",)),
    "label beyond 64 bits": Fault(value(label=[2**70]), UNKNOWN, ("json", "csv"), ("mood",), ("test",)),
    "label out of range": Fault(value(label=[-1, len(MOODS), 2**40]), UNKNOWN, ALL, ("mood",), ("test",)),
    "unknown class": Fault(value(label=["dog", "Cat"]), UNKNOWN, ALL, ("topic",), ("test",)),
    "class that the recipe lacks": Fault(
        value(label=["dog"]), UNKNOWN, ALL, ("topic",), overrides=(f"tasks.topic.labels={[*TOPICS]}",)
    ),
    "truncated line": Fault(truncated, r"no valid JSON \(.*\); .*", by_line=True),
    "no object": Fault(lambda rng, row: rng.choice((b"5\n", b'["a", 1]\n', b'"a"\n')), "no JSON object", by_line=True),
    "no UTF-8": Fault(with_other_bytes, "byte 0x.. is not valid utf-8.*", by_line=True),
    "half of a surrogate pair": Fault(
        value(text=["cat1 \ud800", "\udfff"]), "'text' has half of a surrogate pair", by_line=True
    ),
    "key twice": Fault(with_key_twice, "the key '.*' occurs twice", by_line=True),
    "huge text": Fault(value(text=["cat1 " * 300_000]), ACCEPTED, ALL),
    "blank line": Fault(lambda rng, row: b" \n", ACCEPTED),
    "zero byte": Fault(value(text=["cat1 \0 sea2"]), ACCEPTED, ("json", "parquet")),
    "number as words": Fault(value(text=["12345"]), ACCEPTED, ALL),
    "another column": Fault(value(other=["x", 5]), ACCEPTED),
}


def write_rows(path: Path, rows: list[BadRow]) -> None:
    """Writes rows in the format that the file's suffix names; bytes only occur for JSON."""
    if path.suffix == ".json":
        path.write_bytes(b"".join(row if isinstance(row, bytes) else line_of(row) for row in rows))
        return
    plain = [row for row in rows if isinstance(row, dict)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(plain), path)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "label"], quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(plain)
    path.write_text(text.getvalue(), encoding="utf-8")


def rows(rng: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """Injects every fault in turn, in a random task, split, format and row."""
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder, without=without)
        for number in range(count):
            name = list(FAULTS)[number % len(FAULTS)]
            fault, config = FAULTS[name], LaunchConfig(rng.choice((1, 2)))
            task, split, kind = rng.choice(fault.tasks), rng.choice(fault.splits), rng.choice(fault.formats)
            good = read_rows(folder / "data" / f"{task}.{split}.json")
            place = rng.randrange(1, len(good))  # the types of the first row are those that the others must have
            path = folder / f"bad {number}.{kind}"
            write_rows(path, [*good[:place], fault.corrupt(rng, good[place]), *good[place + 1 :]])
            overrides = (f"tasks.{task}.path={kind}", *files_of(runs, task, split, path), *fault.overrides, "--plan")
            where_in_data = f"{path} line {place + 1}" if fault.by_line else f"{split} row {place} (from 0)"
            expected = re.escape(f"error: tasks.{task}: {where_in_data}: ") + f"({fault.message})"
            problem = check_refusal(
                runs, LaunchConfig(config.world_size, overrides), expected if fault.message else ACCEPTED
            )
            problem = problem or ("" if SKIP not in overrides else check_left_out(runs, overrides, split, len(good)))
            where = f"tasks.{task}: {split} row {place}, {kind}, {config}"
            yield Outcome(name, where, problem or fault.message or "accepted", not problem)


def read_rows(path: Path) -> list[Row]:
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def files_of(runs: Runs, task: str, split: str, path: Path) -> list[str]:
    """Returns overrides with the bad file for `split` and good files of the same format for the other splits."""
    files = {split: path}
    for other in {"train", "validation", "test"} - {split}:
        files[other] = runs.folder / f"{task}.{other}{path.suffix}"
        if not files[other].exists():
            write_rows(files[other], list(read_rows(runs.folder / "data" / f"{task}.{other}.json")))
    return [f"tasks.{task}.data_files.{name}={file}" for name, file in sorted(files.items())]


def check_refusal(runs: Runs, config: LaunchConfig, expected: str) -> str:
    """Describes a wrong exit code, a wrong message or a hang of a run; "" if it ends as expected."""
    job = runs.start(config, "run")
    try:
        first = job.first_end(60)
        if first is not None and first[1] != 0:
            job.kill(number=signal.SIGTERM)  # as a launcher does with the others
        codes = job.wait(30)
    except TimeoutError as error:
        return f"hangs: {error}"
    output = "\n".join(map(job.output, range(config.world_size)))
    if not expected:
        return "" if set(codes) == {0} else f"exit codes {codes}: {output}"
    # A rank that has not ended by itself is ended by the signal.
    right = codes[0] == 2 and set(codes) <= {2, -signal.SIGTERM}
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    if right and len(lines) == 1 and re.fullmatch(expected, lines[0]):
        return ""
    return f"exit codes {codes}: {output}"


def check_left_out(runs: Runs, overrides: tuple[str, ...], split: str, total: int) -> str:
    """Describes a missing message about rows that are left out; "" if the run prints it."""
    job = runs.start(LaunchConfig(1, overrides), "run")
    job.wait()
    message = f"1 of {total} {split} rows have no text and are left out"
    return "" if message in job.output() else f"does not print: {message}"


ROWS = Campaign(200, rows)
