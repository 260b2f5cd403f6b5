import hashlib
import os
import resource
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from mtl_dist.checkpoint.tensor_io import sha256_on_disk, write_tensors

CASES = {
    "none": {},
    "one number": {"step/a": torch.tensor(3.0)},
    "an empty tensor": {"a": torch.zeros(0, 3), "b": torch.ones(2)},
    "both types, out of order": {
        "A": torch.randn(3, 5),
        "a": torch.randn(7, dtype=torch.float64),
        "exp_avg/A": torch.randn(3, 5),
        "B": torch.randn(2, 2, 2, dtype=torch.float64),
    },
    "with a gradient": {"a": torch.randn(4, 4, requires_grad=True)},
    "names that JSON escapes": {
        f"n{mark}": torch.randn(2) for mark in ('"', "\\", "/", "\n", "\x1f", "\x7f", "ä", "\U0001f600")
    },
    "many": {f"block.{number}": torch.randn(100, 100) for number in range(200)},
}


@pytest.mark.parametrize("case", CASES)
def test_file_and_digest_are_those_of_safetensors(tmp_path: Path, case: str) -> None:
    digest = write_tensors(tmp_path / "file", CASES[case])
    expected = save({name: tensor.detach() for name, tensor in CASES[case].items()})
    assert (tmp_path / "file").read_bytes() == expected
    assert digest == hashlib.sha256(expected).hexdigest() == sha256_on_disk(tmp_path / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_only_the_viewed_part_of_a_tensor_is_written(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "file", {"a": whole[:, 1:3], "b": whole.T})
    assert (tmp_path / "file").read_bytes() == save({"a": whole[:, 1:3].contiguous(), "b": whole.T.contiguous()})


def test_a_written_tensors_storage_can_be_freed(tmp_path: Path) -> None:
    """FSDP2 frees the storages that it has gathered; a rank that fails there leaves the others waiting."""
    tensor = torch.ones(5)
    write_tensors(tmp_path / "file", {"a": tensor})
    tensor.untyped_storage().resize_(0)
    assert tensor.untyped_storage().nbytes() == 0


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "file", {"a": torch.ones(2)})
    assert (tmp_path / "file").read_text() == "before"


def test_a_file_is_on_the_disk_before_its_digest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(Path(f"/proc/self/fd/{handle}").read_bytes()))
    write_tensors(tmp_path / "file", {"a": torch.ones(2)})
    assert flushed == [(tmp_path / "file").read_bytes()]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot drop pages of a file")
def test_the_digest_on_disk_is_not_that_of_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"as written")
    dropped: list[tuple[int, ...]] = []

    def drop(handle: int, *range_and_advice: int) -> None:
        assert Path(f"/proc/self/fd/{handle}").readlink() == path
        dropped.append(range_and_advice)
        path.write_bytes(b"on the disk")

    monkeypatch.setattr(os, "posix_fadvise", drop)
    assert sha256_on_disk(path) == hashlib.sha256(b"on the disk").hexdigest()
    assert dropped == [(0, 0, os.POSIX_FADV_DONTNEED)]


@pytest.mark.parametrize("limit", [0, 1 << 12, 39_999])
def test_a_size_limit_is_named_as_the_cause(tmp_path: Path, limit: int) -> None:
    """Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(SafetensorError, match="File too large"):
            write_tensors(tmp_path / "file", {"a": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert all(path.stat().st_size <= limit for path in tmp_path.iterdir())


def test_no_file_stays_open(tmp_path: Path) -> None:
    process = psutil.Process()
    write_tensors(tmp_path / "warm-up", {"a": torch.ones(2)})
    before = process.num_fds()
    write_tensors(tmp_path / "file", {"a": torch.ones(2)})
    sha256_on_disk(tmp_path / "file")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "file", {"a": torch.ones(2)})
    with pytest.raises(FileNotFoundError):
        sha256_on_disk(tmp_path / "none")
    assert process.num_fds() == before


def test_the_digest_is_of_the_tensors_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit that flips on the way to the disk is found when the file is verified."""
    path = tmp_path / "file"

    def flips(handle: int) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(os, "fsync", flips)
    assert write_tensors(path, {"a": torch.ones(2)}) != sha256_on_disk(path)


def test_a_file_has_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "file", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
