"""Starting real processes as a user does: `accelerate launch` with a file of accelerate_configs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT = 600
"""Seconds after which a launch counts as hanging."""


def launch(
    script: Path | str, *arguments: str, processes: int = 1, config: str | None = None, on_cpu: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs `script` in this many CPU processes from the repository's root; its output is captured.

    `config` is a file of accelerate_configs; `on_cpu` sets what takes a file for GPUs to CPUs.
    """
    config = config or ("cpu.yaml" if processes == 1 else "multi_cpu.yaml")
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", f"accelerate_configs/{config}", "--num_processes", str(processes)),
        # A free port, so that launches side by side do not meet.
        *("--main_process_port", "0"),
        str(script),
        *arguments,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def launched(
    script: Path | str, *arguments: str, processes: int = 1, config: str | None = None, on_cpu: bool = False
) -> str:
    """As `launch`, and returns what was printed; fails with it where the exit code is not 0."""
    done = launch(script, *arguments, processes=processes, config=config, on_cpu=on_cpu)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
