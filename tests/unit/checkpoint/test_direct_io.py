import errno
import fcntl
import hashlib
import os
import resource
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from mtl_dist.checkpoint import direct_io
from mtl_dist.checkpoint.direct_io import read_hashed, write_hashed

BLOCK, BUFFER = 4096, 8192
FLAG: int = getattr(os, "O_DIRECT", 0)
needs_direct = pytest.mark.skipif(not FLAG, reason="this system has no direct calls")
SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER, 5 * BUFFER + BLOCK + 7]


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_io, "_BUFFER_BYTES", BUFFER)


def in_pieces(content: bytes, cuts: int) -> list[memoryview]:
    places = sorted([0, len(content), *(Random(cuts).randrange(len(content) + 1) for _ in range(cuts))])
    return [memoryview(content)[start:stop] for start, stop in pairwise(places)]


def written(path: Path, size: int, cuts: int = 3) -> None:
    """Writes bytes and reads them again, each by a digest and by plain calls."""
    content = Random(size).randbytes(size)
    expected = hashlib.sha256(content).hexdigest()
    assert write_hashed(path, in_pieces(content, cuts)) == expected
    assert path.read_bytes() == content
    assert read_hashed(path) == expected


@pytest.mark.parametrize("cuts", [0, 3, 40])
@pytest.mark.parametrize("size", SIZES)
def test_a_file_has_the_bytes_and_the_digest_of_all_pieces(tmp_path: Path, size: int, cuts: int) -> None:
    written(tmp_path / "file", size, cuts)


@needs_direct
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("refused", ["flag", "call"])
def test_without_direct_calls_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, refused: str
) -> None:
    """A file system may refuse the flag, or take it and refuse each call."""
    flags: list[int] = []
    control, write, readv = fcntl.fcntl, os.write, os.readv

    def refuses(handle: int, what: int, value: int = 0) -> int:
        if refused == "flag" and value & FLAG:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return control(handle, what, value)

    def only_plain(action: Any) -> Any:
        def call(handle: int, content: Any) -> int:
            flags.append(control(handle, fcntl.F_GETFL) & FLAG)
            if flags[-1]:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return action(handle, content)

        return call

    monkeypatch.setattr(fcntl, "fcntl", refuses)
    monkeypatch.setattr(os, "write", only_plain(write))
    monkeypatch.setattr(os, "readv", only_plain(readv))
    written(tmp_path / "file", size)
    assert any(flags) == (refused == "call")


@needs_direct
def test_calls_are_direct_where_the_file_system_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []

    def noted(action: Any) -> Any:
        def call(handle: int, content: Any) -> int:
            flags.append(fcntl.fcntl(handle, fcntl.F_GETFL) & FLAG)
            return action(handle, content)

        return call

    handle = os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY)
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, FLAG)
    except OSError as error:
        pytest.skip(f"the file system of temporary folders has no direct calls: {error}")
    finally:
        os.close(handle)
    monkeypatch.setattr(os, "write", noted(os.write))
    monkeypatch.setattr(os, "readv", noted(os.readv))
    written(tmp_path / "file", 4 * BUFFER)
    assert flags
    assert all(flags)


@pytest.mark.parametrize("limit", [BLOCK, 3 * BUFFER, 2 * BUFFER + 5])
def test_a_limit_within_a_block_is_told_as_what_it_is(tmp_path: Path, limit: int) -> None:
    """Python ignores the signal that goes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            write_hashed(tmp_path / "file", [memoryview(bytes(5 * BUFFER))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.errno == errno.EFBIG
    assert (tmp_path / "file").stat().st_size <= limit


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(FileExistsError):
        write_hashed(tmp_path / "file", [memoryview(b"after")])
    assert (tmp_path / "file").read_text() == "before"


def test_no_file_stays_open(tmp_path: Path) -> None:
    def content() -> Any:
        yield memoryview(bytes(BUFFER))
        raise ValueError("in the middle")

    process = psutil.Process()
    before = process.num_fds()
    written(tmp_path / "file", BUFFER)
    with pytest.raises(ValueError, match="in the middle"):
        write_hashed(tmp_path / "other", content())
    with pytest.raises(FileNotFoundError):
        read_hashed(tmp_path / "none")
    assert process.num_fds() == before
