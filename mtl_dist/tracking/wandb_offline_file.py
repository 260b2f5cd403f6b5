"""Reader of the file in which W&B records a run on this machine, to find the last row that it has.

The file is a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) after a header of 7 bytes;
each record is a protobuf message of W&B. A killed run leaves a file with an incomplete last record.
"""

import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

_MAGIC = b":W&B"
_HEADER = 7
"""Size in bytes of the file's header, and of the header of each chunk."""
_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
"""Types of chunks of a record."""


def records(path: Path) -> Iterator[Any]:
    """Yields W&B's records of a file, up to the first incomplete one."""
    # Imported here because a run without W&B needs neither.
    from google.protobuf.message import DecodeError

    # Imported by name because protobuf creates its classes when the module is loaded, invisible to type checkers.
    record_class: Any = import_module("wandb.proto.wandb_internal_pb2").Record
    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        return
    position, whole = _HEADER, b""
    while position + _HEADER <= len(content):
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < _HEADER:
            position += left_in_block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        start, position = position + _HEADER, position + _HEADER + size
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or position > len(content):
            return
        whole += content[start:position]
        if kind in (_FULL, _LAST):
            try:
                record = record_class.FromString(whole)
            except DecodeError:  # after a power failure
                return
            yield record
            whole = b""


def last_row(folder: Path, wandb_id: str) -> int:
    """Returns the number (`_step`) of a run's last row in W&B's folder `folder`; -1 without any."""
    last = -1
    # Where a run starts twice within a second, the name of the second folder ends in -1 after the id.
    for path in folder.glob(f"*run-*/run-{wandb_id}.wandb"):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                last = max(last, record.history.step.num)
    return last
