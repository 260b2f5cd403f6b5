"""Time to save a checkpoint with the `safetensors` library, compared with a writer that bypasses the page cache.

`python -m benchmarks.saving [--rounds N] [--folder DIR] [--tiny]` writes the parameters of a MiniLM-sized encoder
(90 MB) and their optimizer state (180 MB) to a new folder. Every side flushes both files to the disk, takes their
SHA-256 and reads them back to compare:

    library  `mtl_dist.checkpoint.tensor_io`: save_file, fsync, hashlib.file_digest; read back after the file's pages
             were dropped from the page cache
    cached   the same, read back through the page cache (which does not show what is on the disk)
    direct   O_DIRECT writes and reads (see open(2)), hashed in a second thread while the disk works

The sides take turns. Printed are the seconds of each round, and the ratio of the seconds of either library side to
those of `direct` as median (minimum to maximum).
"""

import argparse
import ctypes
import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from benchmarks.training_runs import spread
from mtl_dist.checkpoint.format import sha256_of
from mtl_dist.checkpoint.tensor_io import sha256_on_disk, write_tensors

BUFFER_BYTES = 4 << 20
BLOCK_BYTES = 4096
"""Multiple of the block size of common disks: O_DIRECT transfers whole blocks."""
DIRECT = getattr(os, "O_DIRECT", 0)  # macOS has none

Files = dict[str, dict[str, Tensor]]


def files_of(config: BertConfig) -> Files:
    """The parameters of a model and the AdamW state for them, by file name."""
    torch.manual_seed(0)
    weights = {name: parameter.detach() for name, parameter in BertModel(config).named_parameters()}
    optimizer_state = {
        f"{key}/{name}": torch.randn_like(one) for key in ("exp_avg", "exp_avg_sq") for name, one in weights.items()
    }
    return {"model.safetensors": weights, "optimizer.safetensors": optimizer_state}


def save_direct(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes a safetensors file with O_DIRECT; returns the SHA-256 of what was written."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))  # aligned, as O_DIRECT requires
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | DIRECT)
    with ThreadPoolExecutor(1) as thread:
        for filled in filled_buffers(content_of(tensors), buffer):
            hashing = thread.submit(digest.update, buffer[:filled])
            whole = buffer[: -(-filled // BLOCK_BYTES) * BLOCK_BYTES]
            written = 0
            while written < len(whole):
                written += os.write(handle, whole[written:])
            hashing.result()
            size += filled
        os.ftruncate(handle, size)
        os.fsync(handle)
        os.close(handle)
    return digest.hexdigest()


def read_direct(path: Path) -> str:
    """The SHA-256 of a file read with O_DIRECT."""
    digest = hashlib.sha256()
    buffer, hashed = (memoryview(mmap.mmap(-1, BUFFER_BYTES)) for _ in range(2))
    handle = os.open(path, os.O_RDONLY | DIRECT)
    with ThreadPoolExecutor(1) as thread:
        hashing = thread.submit(digest.update, b"")
        while size := os.readv(handle, [buffer]):
            hashing.result()
            buffer, hashed = hashed, buffer
            hashing = thread.submit(digest.update, hashed[:size])
        hashing.result()
        os.close(handle)
    return digest.hexdigest()


def content_of(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of a safetensors file, without a copy of the tensors (https://github.com/huggingface/safetensors)."""
    ordered = sorted(tensors.items())
    header: dict[str, object] = {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        yield memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def filled_buffers(content: Iterator[memoryview], buffer: memoryview) -> Iterator[int]:
    """Fills the buffer repeatedly; yields the number of bytes in it, its whole length except for the last time."""
    filled = 0
    for piece in content:
        start = 0
        while start < len(piece):
            size = min(len(piece) - start, len(buffer) - filled)
            buffer[filled : filled + size] = piece[start : start + size]
            start, filled = start + size, filled + size
            if filled == len(buffer):
                yield filled
                filled = 0
    if filled:
        yield filled


SIDES: dict[str, tuple[Callable[[Path, Mapping[str, Tensor]], str], Callable[[Path], str]]] = {
    "library": (write_tensors, sha256_on_disk),
    "cached": (write_tensors, sha256_of),
    "direct": (save_direct, read_direct),
}
"""How each side writes a file, and how it reads it back."""


def seconds_of(side: str, files: Files, folder: Path) -> float:
    """Seconds to save and verify all files in a new folder."""
    write, read = SIDES[side]
    os.sync()  # or this save would wait for what others have written
    began = time.perf_counter()
    folder.mkdir()
    digests = {name: write(folder / name, tensors) for name, tensors in files.items()}
    for name, digest in digests.items():
        if read(folder / name) != digest:
            raise SystemExit(f"{side}: {folder / name} is not what was written")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="saves of each side, in turn (%(default)s)")
    parser.add_argument("--folder", type=Path, help="folder of the disk to write to (the current folder)")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try out the benchmark itself")
    options = parser.parse_args()
    small = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=100)
    large = BertConfig(hidden_size=384, num_attention_heads=12, num_hidden_layers=6, intermediate_size=1536)
    files = files_of(small if options.tiny else large)
    sizes = (sum(tensor.nbytes for tensor in tensors.values()) / 1e6 for tensors in files.values())
    print(" and ".join(f"{size:.0f} MB" for size in sizes), flush=True)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with TemporaryDirectory(dir=options.folder or Path.cwd(), prefix=".saving-") as scratch:
        for number in range(options.rounds):
            turn = number % len(SIDES)
            for side in [*list(SIDES)[turn:], *list(SIDES)[:turn]]:
                with TemporaryDirectory(dir=scratch) as folder:
                    times[side].append(seconds_of(side, files, Path(folder) / "checkpoint"))
            now = ", ".join(f"{side} {seconds[-1]:.3f}" for side, seconds in times.items())
            print(f"round {number + 1}: {now} s", flush=True)
    for side in ("library", "cached"):
        ratios = [mine / direct for mine, direct in zip(times[side], times["direct"], strict=True)]
        print(f"{side}: {median(times[side]):.3f} s, {spread(ratios)} times as long as direct")


if __name__ == "__main__":
    main()
