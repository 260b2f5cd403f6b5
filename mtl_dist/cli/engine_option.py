"""`--engine` of `mtl-dist train`: engine files by name, and the default for this machine."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from mtl_dist.errors import UserError, did_you_mean
from mtl_dist.resources import ENGINES, engine_names

_SECONDS_FOR_NVIDIA_SMI = 30


class DefaultEngine(NamedTuple):
    """The engine of a command line that names none."""

    name: str
    reason: str


def engine_file(engine: str) -> Path:
    """The engine file called `engine`, or `engine` itself where it is a path. Raises UserError."""
    names = engine_names()
    if engine in names:
        return ENGINES / f"{engine}.yaml"
    path = Path(engine)
    if path.suffix in (".yaml", ".yml") or path.name != engine:
        return path
    raise UserError(f"--engine: {engine}: unknown engine{did_you_mean(engine, names)}")


def default_engine(processes: int | None) -> DefaultEngine:
    """The engine for `processes` processes where none is named: `gpu` or `cpu`, and `multi_*` for several processes.

    `gpu` is taken where nvidia-smi lists a GPU that is not hidden from this process.
    """
    device, reason = _default_device()
    return DefaultEngine(f"multi_{device}" if (processes or 1) > 1 else device, reason)


def _default_device() -> DefaultEngine:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return DefaultEngine("cpu", "CUDA_VISIBLE_DEVICES hides all GPUs")
    command = shutil.which("nvidia-smi")
    if command is None:
        return DefaultEngine("cpu", "nvidia-smi is not installed")
    try:
        done = subprocess.run(
            [command, "--list-gpus"], capture_output=True, text=True, check=False, timeout=_SECONDS_FOR_NVIDIA_SMI
        )
    except (OSError, subprocess.TimeoutExpired):
        return DefaultEngine("cpu", "nvidia-smi does not run")
    found = next((line for line in done.stdout.splitlines() if line.startswith("GPU ")), None)
    if done.returncode or found is None:
        return DefaultEngine("cpu", "nvidia-smi lists no GPU")
    return DefaultEngine("gpu", f"nvidia-smi lists {found.partition(' (UUID')[0]}")
