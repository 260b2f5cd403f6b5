"""The file in which W&B records a run on this machine, read back: how far it has come.

A LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) behind a header of 7 bytes, each record of
which is a protobuf message of W&B's. A killed run leaves a file whose last record is cut short.
"""

import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

_MAGIC = b":W&B"
_HEADER = 7
"""Bytes of the file's header, and of each piece's."""
_BLOCK = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
"""Kinds of pieces of a record."""


def records(path: Path) -> Iterator[Any]:
    """W&B's records of a file, up to the first that is not whole."""
    # Here, because a run without W&B needs neither.
    from google.protobuf.message import DecodeError

    # By name, because protobuf makes its classes as the module is loaded, unseen by type checks.
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
            except DecodeError:  # the machine lost its power
                return
            yield record
            whole = b""


def last_row(folder: Path, wandb_id: str) -> int:
    """The number (`_step`) of the last row that the files of a run in `folder`, W&B's own, have; -1 without any."""
    last = -1
    # Of two starts within a second, the later one's folder has -1 behind the id.
    for path in folder.glob(f"*run-*/run-{wandb_id}.wandb"):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                last = max(last, record.history.step.num)
    return last
