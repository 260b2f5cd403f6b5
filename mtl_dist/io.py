"""Writing to a disk that may be full, read-only or cut off at any moment: a file is complete, or does not exist."""

import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mtl_dist.errors import TrainingError, UserError, root_cause


@contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """Turns an error of the file system while `path` is written into a TrainingError that names path and cause."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise TrainingError(f"cannot write {path}: {root_cause(error)}") from error


def valid_json(content: Any, indent: int | None = None) -> str:
    """`content` as JSON, with null for every number that is not finite: JSON has no NaN."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a text file so that readers see the old or the new content, after a crash too. Raises TrainingError."""
    partial = path.with_name(f".{path.name}.partial")
    with reporting_write_errors(path):
        try:
            partial.write_text(text, encoding="utf-8")
            fsync(partial)
            partial.rename(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        fsync(path.parent)


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yields a temporary folder that replaces `final` when the block ends, and is deleted when the block raises.

    Its files get the modes that the umask says, whatever library writes them.

    Raises TrainingError if the folder cannot be written.
    """
    partial = final.with_name(f".{final.name}.partial")
    with reporting_write_errors(final):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            apply_umask(partial)
            fsync_tree(partial)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            # The tokenizers library raises a bare Exception on a full disk.
            if isinstance(error, Exception) and not isinstance(error, UserError | TrainingError):
                raise TrainingError(f"cannot write {final}: {root_cause(error)}") from error
            raise
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        fsync(final.parent)


def apply_umask(folder: Path) -> None:
    """Gives everything in `folder` the mode of new files and folders there: libraries write files that are closed.

    Asks the file system for these modes, because the umask cannot be read without changing it for other threads, and
    the folder may have rules of its own (access control lists). Raises OSError.
    """
    probe = folder / ".mode"
    probe.touch()
    file_mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    probe.mkdir()
    folder_mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(folder_mode if path.is_dir() else file_mode)


def fsync(path: Path) -> None:
    """Waits until the content of a file, or the entries of a folder, are on the storage device."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Calls `fsync` for everything in `folder`, then for the folder itself."""
    for path in [*sorted(folder.rglob("*")), folder]:
        fsync(path)


def remove_path(path: Path) -> None:
    """Deletes a file, or a folder with all its content; of a symbolic link only the link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
