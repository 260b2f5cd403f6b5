"""Starting real processes: as a user does, by `accelerate launch` with a file of accelerate_configs, or by forks."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict, Unpack

from tests.faults.fork_server import ForkServer

ROOT = Path(__file__).parents[2]
TIMEOUT = 600
"""Seconds after which a launch counts as hanging, unless it is told to take longer."""


class How(TypedDict, total=False):
    """How to launch."""

    processes: int
    """On CPUs; 1 at first."""
    config: str
    """A file of accelerate_configs; at first the one for CPUs."""
    on_cpu: bool
    """Take a file for GPUs to CPUs."""
    flags: tuple[str, ...]
    """The launcher's; at first a free port, so that launches side by side do not meet."""
    threads: int
    """Of each process, for torch; 1 at first."""
    timeout: float
    """Seconds; TIMEOUT at first."""


def launch(script: Path | str, *arguments: str, **how: Unpack[How]) -> subprocess.CompletedProcess[str]:
    """Runs `script` from the repository's root; its output is captured."""
    processes = how.get("processes", 1)
    config = how.get("config", "cpu.yaml" if processes == 1 else "multi_cpu.yaml")
    flags = how.get("flags", ("--main_process_port", "0"))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(how.get("threads", 1))}
    if how.get("on_cpu") and processes == 1:
        flags = (*flags, "--cpu")
    elif how.get("on_cpu"):
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", f"accelerate_configs/{config}", "--num_processes", str(processes), *flags),
        str(script),
        *arguments,
    ]
    timeout = how.get("timeout", TIMEOUT)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def launched(script: Path | str, *arguments: str, **how: Unpack[How]) -> str:
    """As `launch`, and returns what was printed; fails with it where the exit code is not 0."""
    return _require_success(launch(script, *arguments, **how))


def launched_on_nodes(script: Path | str, *arguments: str, nodes: int, config: str) -> list[str]:
    """What each of several launchers printed, which start one CPU process each, as the machines of a cluster do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def on_node(rank: int) -> subprocess.CompletedProcess[str]:
        machine = ("--num_machines", str(nodes), "--machine_rank", str(rank))
        flags = (*machine, "--main_process_ip", "127.0.0.1", "--main_process_port", str(port))
        return launch(script, *arguments, processes=nodes, config=config, on_cpu=True, flags=flags)

    with ThreadPoolExecutor(nodes) as pool:
        return [_require_success(done) for done in pool.map(on_node, range(nodes))]


def forked(script: str, *arguments: str, processes: int, logs: Path) -> None:
    """As `launched`, for runs of which the launcher is no part: by forks, which need not import torch each."""
    with ForkServer(logs) as fork_server:
        job = fork_server.start(arguments, processes, script=ROOT / script)
        codes = job.wait(TIMEOUT)
        assert set(codes) == {0}, f"exit codes {codes}\n" + "\n".join(map(job.output, range(processes)))


def _require_success(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
