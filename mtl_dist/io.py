"""Writing to a disk that may be full, read-only or cut off at any moment: files are whole, or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mtl_dist.errors import TrainingError, UserError, root_cause


@contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """Around all that writes `path`: what the disk refuses becomes one TrainingError that names both."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise TrainingError(f"cannot write {path}: {root_cause(error)}") from error


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a crash, sees all of it or the old one. Raises TrainingError."""
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
    """A folder to write into, which takes the place of `final` once it is whole, or is gone. Raises TrainingError."""
    partial = final.with_name(f".{final.name}.partial")
    with reporting_write_errors(final):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            fsync_tree(partial)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            # The tokenizers library has no class of its own for a full disk.
            if isinstance(error, Exception) and not isinstance(error, UserError | TrainingError):
                raise TrainingError(f"cannot write {final}: {root_cause(error)}") from error
            raise
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        fsync(final.parent)


def fsync(path: Path) -> None:
    """Returns once a file's content, or a folder's list of names, is on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Flushes all that is in `folder`, and then the folder."""
    for path in [*sorted(folder.rglob("*")), folder]:
        fsync(path)


def remove_path(path: Path) -> None:
    """Removes a folder with all that is in it; of a link only the link itself."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
