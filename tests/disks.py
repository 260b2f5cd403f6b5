"""Real small disks, to be full or read-only: what only who may mount them can have."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILL = "fill"
"""A file that takes the room on a disk."""


def why_not() -> str | None:
    """Why no disk can be mounted here, or None."""
    if os.geteuid() != 0:
        return "only root can mount a small disk"
    # In a name space of its own, so that nothing stays mounted.
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"no disk can be mounted: {done.stderr.strip()}" if done.returncode else None


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk with room for `size` bytes, rounded up to pages, at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside, nothing below `folder` can be written, not even by root."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def nearly_full(disk: Path, left: int) -> Iterator[None]:
    """Inside, the disk has room for `left` bytes, rounded down to pages."""
    room = os.statvfs(disk)
    (disk / FILL).write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - left)))
    try:
        yield
    finally:
        (disk / FILL).unlink()


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
