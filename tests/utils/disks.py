"""Small real file systems that are full, read-only or under a quota; mounting them needs root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILL = "fill"
"""Name of the file that fills a disk."""


def disks_unavailable() -> str | None:
    """Reason why no disk can be mounted here, or None."""
    if os.geteuid() != 0:
        return "only root can mount a small disk"
    # In a mount namespace of its own, so that nothing stays mounted.
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"no disk can be mounted: {done.stderr.strip()}" if done.returncode else None


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mounts a disk of `size` bytes, rounded up to pages, at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes `folder` read-only inside the block, even for root."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def bound(folder: Path, at: Path) -> Iterator[Path]:
    """Makes `folder` appear at `at` as well inside the block."""
    at.mkdir()
    _mount("--bind", str(folder), str(at))
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@contextmanager
def nearly_full(disk: Path, left: int) -> Iterator[None]:
    """Leaves `left` free bytes, rounded down to pages, on the disk inside the block."""
    room = os.statvfs(disk)
    (disk / FILL).write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - left)))
    try:
        yield
    finally:
        (disk / FILL).unlink()


def quotas_unavailable() -> str | None:
    """Reason why no folder can have a quota here, or None."""
    if reason := disks_unavailable():
        return reason
    return None if shutil.which("mkfs.btrfs") else "there is no mkfs.btrfs (Debian: btrfs-progs)"


@contextmanager
def disk_for_quotas(folder: Path, size: int = 256 << 20) -> Iterator[Path]:
    """Mounts a disk of `size` bytes at `folder`, stored in a sparse file; yields a folder on it for `quota`.

    The file system is btrfs, because its quotas need no other kernel support and apply to root too.
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
    """Limits a folder of `disk_for_quotas` to `left` more bytes inside the block, including what btrfs reserves."""
    shown = _run("btrfs", "qgroup", "show", "--raw", "--sync", "-f", str(folder))
    group, used, *_ = shown.splitlines()[-1].split()
    # Addressed through the disk, because commands on a folder over its quota fail.
    _run("btrfs", "qgroup", "limit", str(int(used) + left), group, str(folder.parent))
    try:
        yield
    finally:
        _run("btrfs", "qgroup", "limit", "none", group, str(folder.parent))


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _mount(*arguments: str) -> None:
    _run("mount", *arguments)
