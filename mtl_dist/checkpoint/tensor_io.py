"""Safetensors files that are on the disk when a write returns, and their SHA-256.

The library's writer is fast enough: writing and reading with O_DIRECT is less than twice as fast
(`python -m benchmarks.saving`; docs/benchmarks.md has the figure).
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mtl_dist.checkpoint.format import sha256_of
from mtl_dist.io import fsync


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes CPU tensors to a new safetensors file, flushes it to the disk and returns its SHA-256.

    The digest is that of the page cache, i.e. of the bytes as they were written. Raises FileExistsError, and OSError or
    SafetensorError where the disk refuses the write.
    """
    path.touch(exist_ok=False)  # save_file would replace a file of this name
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    fsync(path)
    return sha256_of(path)


def sha256_on_disk(path: Path) -> str:
    """Returns the SHA-256 of a flushed file, read from the disk rather than from the page cache. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    with os.fdopen(handle, "rb") as file:
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()
