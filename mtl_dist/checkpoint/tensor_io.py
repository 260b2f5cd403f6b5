"""Safetensors files that are on the disk when a write returns, and their SHA-256.

The library's writer is fast enough: writing and reading with O_DIRECT is less than twice as fast
(`python -m benchmarks.saving`; docs/benchmarks.md has the figure).
"""

import ctypes
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mtl_dist.io import fsync
from mtl_dist.tensor_files import save_safetensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes CPU tensors to a new safetensors file, flushes it to the disk and returns its SHA-256.

    The digest is that of the tensors in memory behind the file's header, so that verification finds whatever became of
    them on the way to the disk. Raises FileExistsError, and OSError or SafetensorError where the disk refuses it.
    """
    path.touch(exist_ok=False)
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_safetensors(path, contiguous)
    fsync(path)
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
    digest = hashlib.sha256(length + header)
    entries = [(entry["data_offsets"], name) for name, entry in json.loads(header).items() if name != "__metadata__"]
    for _, name in sorted(entries):
        digest.update(_bytes_of(contiguous[name]))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without numpy, which keeps FSDP2 from freeing what it has gathered."""
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def sha256_on_disk(path: Path) -> str:
    """Returns the SHA-256 of a flushed file, read from the disk rather than from the page cache. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    with os.fdopen(handle, "rb") as file:
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()
