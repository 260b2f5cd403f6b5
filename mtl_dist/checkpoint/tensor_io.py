"""Writing tensors as a safetensors file (https://github.com/huggingface/safetensors#format) without a copy of them.

The library's own `save_file` maps the file and fills it page by page, which takes several times as long as the disk.
"""

import ctypes
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mtl_dist.checkpoint.direct_io import write_hashed

_NAMES = {torch.float64: "F64", torch.float32: "F32"}
_ALIGNMENT = 8
"""Bytes."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes a new file of tensors on the CPU, of types float32 and float64, flushed; returns its SHA-256.

    The bytes are those of the library. Raises OSError.
    """
    return write_hashed(path, _content(tensors))


def _content(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    # Wide types first, so that each number is aligned in the file.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, object] = {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        flat = tensor.detach().reshape(-1)
        # By its address, because numpy makes a tensor's storage impossible to free, and FSDP2 frees what it gathers.
        yield memoryview((ctypes.c_char * flat.nbytes).from_address(flat.data_ptr())).cast("B")
