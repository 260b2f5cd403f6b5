"""Protection of what is read: files that a run or a command would move away, or write over, are found beforehand."""

from collections.abc import Iterable
from pathlib import Path

from mtl_dist.errors import UserError
from mtl_dist.run_layout import OWN_NAMES


class OwnFiles:
    """What a run writes in its folder, recognised under any name: through links, `..`, mounts and other spellings."""

    def __init__(self, folder: Path) -> None:
        paths = {folder / name: name for name in OWN_NAMES}
        self._by_path = {resolved(path): name for path, name in paths.items()}
        self._by_identity = {key: name for path, name in paths.items() if (key := _identity(path))}
        self._known: dict[Path, str | None] = {}

    def name_of(self, path: Path) -> str | None:
        """The one of OWN_NAMES that `path` is, or is in; None for any other path."""
        return self._of_resolved(resolved(path))

    def _of_resolved(self, path: Path) -> str | None:
        if path not in self._known:
            name = self._by_path.get(path)
            if name is None and (identity := _identity(path)):
                name = self._by_identity.get(identity)
            if name is None and path != path.parent:
                name = self._of_resolved(path.parent)
            self._known[path] = name
        return self._known[path]


def check_output(option: str, to: Path, reads: Iterable[Path], run: Path, allowed: str | None = None) -> None:
    """Raises UserError if `to` is one of the files in `reads`, or belongs to `run` and is not the one `allowed` name.

    `option` begins messages.
    """
    for path in reads:
        if resolved(to) == resolved(path) or (_identity(to) is not None and _identity(to) == _identity(path)):
            raise UserError(f"{option}: {to} is a file that is read; name another")
    name = OwnFiles(run).name_of(to)
    if name is not None and name != allowed:
        raise UserError(f"{option}: {to} is {name} of the run in {run}, or in it; name another")


def resolved(path: Path) -> Path:
    """The absolute path without links and `..`; of links in a circle, the absolute path."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # RuntimeError for a circle, before Python 3.13
        return path.absolute()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at `path`; None where there is nothing that can be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
