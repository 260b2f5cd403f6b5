"""Records of W&B on this machine, read as `wandb sync` would read them."""

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import wandb

# Imported by name because protobuf creates its classes when the module is loaded, invisible to type checkers.
Record: Any = import_module("wandb.proto.wandb_internal_pb2").Record


def files_in(folder: Path) -> list[Path]:
    """Returns the files of all starts of the run in `folder`, oldest first."""
    wandb.teardown()  # waits for W&B's service, which writes the file's end after `finish` has returned
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def records_in(folder: Path) -> list[Any]:
    """Returns the records of all starts of the run in `folder`."""
    return [record for path in files_in(folder) for record in records_of(path)]


def records_of(path: Path) -> Iterator[Any]:
    """Yields the records of one file, a LevelDB log after a header of 7 bytes, up to the first incomplete one."""
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
        if kind in (1, 4):  # a record in one chunk, or its last chunk
            yield Record.FromString(whole)
            whole = b""


def items(entries: Any) -> dict[str, Any]:
    """Returns config, history or summary entries by key, without W&B's own keys, which begin with _."""
    found = {".".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}
    return {key: value for key, value in found.items() if not key.startswith("_")}


def of_kind(records: list[Any], kind: str) -> list[Any]:
    """Returns the content of the records of one kind."""
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def rows_of(records: list[Any]) -> list[dict[str, Any]]:
    """Returns the figures of each row, without charts."""
    rows = [items(history.item) for history in of_kind(records, "history")]
    return [{key: value for key, value in row.items() if not is_chart(key)} for row in rows]


def is_chart(key: str) -> bool:
    return "/confusion_matrix" in key or "/misclassified" in key


def summary_of_wandb(records: list[Any]) -> dict[str, Any]:
    """Returns the last value of each key of the run summary."""
    found: dict[str, Any] = {}
    for record in records:
        found |= items(record.summary.update)
    return found


def without_lists(line: dict[str, Any]) -> dict[str, Any]:
    """Returns a line of metrics.jsonl as it is sent to W&B."""
    return {key: value for key, value in line.items() if not isinstance(value, list)}
