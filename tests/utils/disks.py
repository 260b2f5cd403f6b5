"""Real small disks, to be full, read-only or under a quota: what only who may mount them can have."""

import os
import shutil
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


def why_no_quota() -> str | None:
    """Why no folder can be put under a quota here, or None."""
    if reason := why_not():
        return reason
    return None if shutil.which("mkfs.btrfs") else "there is no mkfs.btrfs (Debian: btrfs-progs)"


@contextmanager
def disk_for_quotas(folder: Path, size: int = 256 << 20) -> Iterator[Path]:
    """A disk of `size` bytes at `folder`, in a file that takes up what is written; yields a folder of it for `quota`.

    btrfs, because its quotas need no support of the kernel's beyond its own, and hold for root too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = folder.with_name(f"{folder.name}.image")
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.btrfs", "--quiet", str(image))
    _mount("-o", "loop", str(image), str(folder))
    try:
        _run("btrfs", "quota", "enable", str(folder))
        _run("btrfs", "subvolume", "create", str(folder / "held"))
        yield folder / "held"
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        image.unlink()


@contextmanager
def quota(folder: Path, left: int) -> Iterator[None]:
    """Inside, a folder of `disk_for_quotas` may grow by `left` bytes; what btrfs sets aside for a change counts."""
    shown = _run("btrfs", "qgroup", "show", "--raw", "--sync", "-f", str(folder))
    group, used, *_ = shown.splitlines()[-1].split()
    # By way of the disk, for what is over its quota can have no command of its own.
    _run("btrfs", "qgroup", "limit", str(int(used) + left), group, str(folder.parent))
    try:
        yield
    finally:
        _run("btrfs", "qgroup", "limit", "none", group, str(folder.parent))


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _mount(*arguments: str) -> None:
    _run("mount", *arguments)
