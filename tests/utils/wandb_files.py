"""What W&B has recorded of a run on this machine, read back as `wandb sync` would read it."""

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import wandb

# Imported by name, because protobuf makes its classes as the module is loaded, unseen by type checks.
Record: Any = import_module("wandb.proto.wandb_internal_pb2").Record


def files_in(folder: Path) -> list[Path]:
    """The files of a run's starts, oldest first; `folder` is the run's."""
    wandb.teardown()  # waits for W&B's service, which writes the file's end after `finish` has returned
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def records_in(folder: Path) -> list[Any]:
    """The records of all starts of the run in `folder`."""
    return [record for path in files_in(folder) for record in records_of(path)]


def records_of(path: Path) -> Iterator[Any]:
    """The records of one file, which is a LevelDB log behind a header of 7 bytes; up to one that a kill cut short."""
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    position, whole = 7, b""
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        if position + 7 + size > len(content):
            return
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a record in one piece, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def items(entries: Any) -> dict[str, Any]:
    """Key -> value of config, history and summary entries; keys that begin with _ are W&B's own."""
    found = {".".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}
    return {key: value for key, value in found.items() if not key.startswith("_")}


def of_kind(records: list[Any], kind: str) -> list[Any]:
    """What the records of one kind hold."""
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def rows_of(records: list[Any]) -> list[dict[str, Any]]:
    """The figures of each row, without charts."""
    rows = [items(history.item) for history in of_kind(records, "history")]
    return [{key: value for key, value in row.items() if not is_chart(key)} for row in rows]


def is_chart(key: str) -> bool:
    return "/confusion_matrix" in key or "/misclassified" in key


def summary_of_wandb(records: list[Any]) -> dict[str, Any]:
    """What was last said of each key."""
    found: dict[str, Any] = {}
    for record in records:
        found |= items(record.summary.update)
    return found


def without_lists(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl as W&B gets it."""
    return {key: value for key, value in line.items() if not isinstance(value, list)}
