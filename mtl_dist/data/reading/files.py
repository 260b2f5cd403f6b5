"""Data files on disk: which ones a pattern names, their format, and their decompressed bytes."""

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mtl_dist.config.sources import FILE_BUILDERS, builder_of, uncompressed_name
from mtl_dist.data.reading.compression import decompressed
from mtl_dist.errors import UserError

FORMATS = FILE_BUILDERS


def find_files(key: str, patterns: Sequence[str]) -> list[str]:
    """Paths of the files that `patterns` name, each file once; relative patterns are relative to the working directory.

    A pattern is a path, a glob (`**` for any folders; matches are sorted) or a URL, which is downloaded. A file whose
    name contains glob characters is found by its name. `key` of the recipe begins error messages. Raises UserError if
    a pattern names no file.
    """
    found = [path for pattern in patterns for path in _matches(key, pattern)]
    return list({Path(path).absolute(): path for path in reversed(found)}.values())[::-1]


def format_of(path: str) -> str | None:
    """Format that the name of a file tells, one of FORMATS, or None; endings of compressed files are ignored."""
    return builder_of(path)


def is_tab_separated(path: str) -> bool:
    """Whether the name of a file, compressed or not, says that tabs separate its fields."""
    return uncompressed_name(path).suffix.lower() == ".tsv"


@contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """Opens a file for reading; gzip, bz2, xz, zip, zstd and lz4 files, known by their first bytes, are decompressed.

    Raises UserError if the file cannot be opened, and on reading if it is broken or cut off.
    """
    try:
        raw = Path(path).open("rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    with raw, decompressed(raw, path) as file:
        yield file


def _matches(key: str, pattern: str) -> list[str]:
    if "://" in pattern:
        return _download(key, pattern)
    pattern = os.path.expanduser(pattern)  # noqa: PTH111
    if os.path.isfile(pattern):  # noqa: PTH113
        return [pattern]
    matches = sorted(glob.glob(_with_literal_folder(pattern), recursive=True))  # noqa: PTH207
    found = [path for path in matches if Path(path).is_file()]
    if not found and Path(pattern).is_dir():
        raise UserError(f"{key}: {pattern} is a folder; name its files, e.g. {pattern.rstrip('/')}/*.csv")
    if not found:
        raise UserError(f"{key}: there is no file {pattern}")
    return found


def _with_literal_folder(pattern: str) -> str:
    """A glob whose longest leading folder that exists is taken by its name, also with glob characters in it."""
    for parent in Path(pattern).parents:
        folder = str(parent)
        if pattern.startswith(folder) and parent.is_dir():
            return glob.escape(folder) + pattern[len(folder) :]
    return pattern


def _download(key: str, pattern: str) -> list[str]:
    """Local paths of the files that a pattern of URLs names; the cache of `datasets` keeps them."""
    from datasets import DownloadManager  # takes a second to import
    from datasets.data_files import resolve_pattern

    try:
        urls = resolve_pattern(pattern, base_path="")
        return [str(path) for path in DownloadManager().download(urls)]
    except FileNotFoundError as error:
        raise UserError(f"{key}: there is no file {pattern}") from error
    except Exception as error:  # each file system has exception classes of its own
        raise UserError(f"{key}: cannot get {pattern}: {' '.join(str(error).split())}") from error
