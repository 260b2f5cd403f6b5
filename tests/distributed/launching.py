"""Functions that start real processes: by `accelerate launch` with a file of accelerate_configs, or by forks."""

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
"""Default number of seconds after which a launch counts as hanging."""


class LaunchOptions(TypedDict, total=False):
    """Options of `launch`."""

    processes: int
    """Number of processes on CPUs; default 1."""
    config: str
    """Name of a file of accelerate_configs; default: the one for CPUs."""
    on_cpu: bool
    """Whether to use a config file for GPUs on CPUs."""
    flags: tuple[str, ...]
    """Flags of the launcher; default: any free port, so that parallel launches do not collide."""
    threads: int
    """Number of torch threads of each process; default 1."""
    timeout: float
    """Time limit in seconds; default TIMEOUT."""


def launch(script: Path | str, *arguments: str, **options: Unpack[LaunchOptions]) -> subprocess.CompletedProcess[str]:
    """Runs `script` with `accelerate launch` from the repository's root and captures its output."""
    processes = options.get("processes", 1)
    config = options.get("config", "cpu.yaml" if processes == 1 else "multi_cpu.yaml")
    flags = options.get("flags", ("--main_process_port", "0"))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(options.get("threads", 1))}
    if options.get("on_cpu") and processes == 1:
        flags = (*flags, "--cpu")
    elif options.get("on_cpu"):
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", f"accelerate_configs/{config}", "--num_processes", str(processes), *flags),
        str(script),
        *arguments,
    ]
    timeout = options.get("timeout", TIMEOUT)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def launched(script: Path | str, *arguments: str, **options: Unpack[LaunchOptions]) -> str:
    """Runs `script` with `launch` and returns its stdout; fails with its output if the exit code is not 0."""
    return _require_success(launch(script, *arguments, **options))


def launched_on_nodes(script: Path | str, *arguments: str, nodes: int, config: str) -> list[str]:
    """Runs one launcher for each node, which starts one CPU process, as on a cluster; returns the stdout of each."""
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
    """Runs `script` on forked processes, which need no import of torch, for tests that do not need the launcher."""
    with ForkServer(logs) as fork_server:
        job = fork_server.start(arguments, processes, script=ROOT / script)
        codes = job.wait(TIMEOUT)
        assert set(codes) == {0}, f"exit codes {codes}\n" + "\n".join(map(job.output, range(processes)))


def _require_success(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
