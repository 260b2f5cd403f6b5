"""Decompression of files that are known by their first bytes; a broken or cut file is an error, never a short one."""

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import IO, Any

import pyarrow as pa

from mtl_dist.errors import UserError

_BUFFER = 1 << 20
_READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)


def decompressed(file: io.BufferedReader, path: str) -> AbstractContextManager[IO[bytes]]:
    """The decompressed bytes of an open file; `path` is its name in error messages.

    Raises UserError, here or on reading, if the file is broken, cut off, or a zip archive of several files.
    """
    begin = file.peek(16)
    for magic, (kind, opened) in _KINDS.items():
        if re.match(magic, begin, re.DOTALL):
            try:
                inner = opened(file, path)
            except _READ_ERRORS as error:
                raise _broken(path, kind, error) from error
            return closing(io.BufferedReader(_Archive(inner, path, kind), _BUFFER))
    return nullcontext(file)


def _unzipped(file: IO[bytes], path: str) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    # macOS adds a folder of its own to the archives that it makes.
    members = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        raise UserError(f"{path}: is a zip archive of {len(members)} files; one is read")
    if members[0].flag_bits & 1:
        raise UserError(f"{path}: is a zip archive with a password")
    return archive.open(members[0])


def _by_arrow(codec: str) -> Callable[[IO[bytes], str], Any]:
    return lambda file, path: pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)


_KINDS: dict[bytes, tuple[str, Callable[[IO[bytes], str], Any]]] = {
    rb"\x1f\x8b": ("gzip", lambda file, path: gzip.GzipFile(fileobj=file)),
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": ("bz2", lambda file, path: bz2.BZ2File(file)),
    rb"\xfd7zXZ\x00": ("xz", lambda file, path: lzma.open(file)),  # noqa: SIM115
    rb"PK(\x03\x04|\x05\x06)": ("zip", _unzipped),
    rb"\x28\xb5\x2f\xfd": ("zstd", _by_arrow("zstd")),
    rb"\x04\x22\x4d\x18": ("lz4", _by_arrow("lz4")),
}
"""Patterns of the first bytes of a file: the name of its compression, and the function that opens it."""


class _Archive(io.RawIOBase):
    """Decompressed bytes, whose errors name the file."""

    def __init__(self, file: Any, path: str, kind: str) -> None:
        self._file, self._path, self._kind = file, path, kind

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except _READ_ERRORS as error:
            raise _broken(self._path, self._kind, error) from error
        buffer[: len(data)] = data
        return len(data)


def _broken(path: str, kind: str, error: BaseException) -> UserError:
    return UserError(f"{path}: is a broken or cut {kind} file ({' '.join(str(error).split())})")
