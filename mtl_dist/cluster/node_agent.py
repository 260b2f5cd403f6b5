"""Runs the processes of one node: starts `accelerate launch`, forwards stop signals, collects the exit code of the run.

Stop signals are forwarded to the worker processes, not to the launcher: a signalled launcher may exit before the
workers have saved a checkpoint. Does not import torch.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import psutil

from mtl_dist.distributed.exit_codes import VARIABLE, combined_exit_code, recorded_exit_codes
from mtl_dist.run_layout import SUMMARY

STOP_SIGNAL = signal.SIGUSR1
"""Signal that asks worker processes to stop. The launcher ignores it, so that it does not exit before they do."""
POLL_SECONDS = 0.2
"""Seconds between two looks at the processes."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Constants of linux/prctl.h."""


@dataclass(frozen=True)
class Launch:
    """Arguments of `accelerate launch` on one node."""

    script: Path
    arguments: tuple[str, ...]
    """Arguments of the script."""
    engine_file: str
    nodes: int
    processes: int
    """Processes on each node."""
    node: int = 0
    """Rank of this node."""
    host: str = ""
    """Address of the first node; needed only with several nodes."""
    port: int = 0
    options: tuple[str, ...] = ()
    """Further options of the launcher."""

    def command(self) -> list[str]:
        """The command line of the launcher."""
        total = self.nodes * self.processes
        words = [sys.executable, "-m", "mtl_dist.cluster.quiet_launch", "accelerate", "launch"]
        words += ["--config_file", self.engine_file]
        words += ["--num_processes", str(total), "--num_machines", str(self.nodes)]
        if self.nodes > 1:
            words += ["--machine_rank", str(self.node), "--main_process_ip", self.host]
            words += ["--rdzv_backend", "static", "--same_network"]
        if total > 1:
            words += ["--main_process_port", str(self.port)]
        return [*words, *self.options, str(self.script), *self.arguments]


class StopSignals:
    """Records the signals that ask this process, and so its part of the run, to stop."""

    def __init__(self) -> None:
        self.times: list[float] = []
        """Arrival time of each signal, in seconds since the epoch."""

    def listen(self) -> None:
        """Installs the handlers. To be called once, in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.times.append(time.time())


def finished(run_folder: Path) -> bool:
    """Whether the run in `run_folder` is finished; prints a line if it is."""
    summary = run_folder / SUMMARY
    if summary.exists():
        print(f"finished already: {summary}", flush=True)
    return summary.exists()


def run_node(launch: Launch, stop_signals: StopSignals, alone: bool, save_seconds: int, lost_code: int = 1) -> int:
    """Runs the launcher until all its processes have ended; returns the exit code of the run on this node.

    With `alone`, signals reach only this process; otherwise their sender has sent them to all processes of the node, as
    Slurm does. Worker processes have `save_seconds` to end after the launcher asks them to. For `lost_code` see
    `combined_exit_code`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # workers that outlive the launcher become our children
    with TemporaryDirectory(prefix="mtl_dist-") as folder:
        environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(save_seconds)} | os.environ | {VARIABLE: folder}
        launcher = subprocess.Popen(
            launch.command(),
            env=environment,
            start_new_session=alone,  # a terminal's Ctrl-C then reaches this process alone
            preexec_fn=_before_exec,  # noqa: PLW1509  there are no other threads
        )
        workers = _WorkerProcesses(launcher.pid, launch.script, alone)
        while launcher.poll() is None or workers.alive():
            if stop_signals.times:
                workers.forward(stop_signals.times)
            time.sleep(POLL_SECONDS)
        asked = bool(stop_signals.times)
        return combined_exit_code(
            recorded_exit_codes(Path(folder)), launch.processes, asked, launcher.returncode, lost_code
        )


def _before_exec() -> None:
    """Prepares the launcher between fork and exec: ignored signals stay ignored until a worker sets a handler."""
    signal.signal(STOP_SIGNAL, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class _WorkerProcesses:
    """The worker processes on this node, to each of which every stop signal is delivered once."""

    def __init__(self, launcher: int, script: Path, alone: bool) -> None:
        self._parents = (launcher, os.getpid())
        self._script = str(script)
        self._alone = alone
        self._delivered: dict[psutil.Process, int] = {}
        """Number of stop signals that each process has received."""

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                is_worker = process.ppid() in self._parents and process.pid not in self._parents
                if is_worker and process.status() != psutil.STATUS_ZOMBIE and self._script in process.cmdline():
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def forward(self, times: list[float]) -> None:
        """Sends undelivered signals to the processes that have a handler; the others get them in a later call."""
        for process in self.alive():
            try:
                self._forward_to(process, times)
            except psutil.NoSuchProcess:
                continue

    def _forward_to(self, process: psutil.Process, times: list[float]) -> None:
        has_handler = _has_handler(process)
        if process not in self._delivered:
            # Sent to all: received if the process existed and had its handler by then, otherwise missed.
            missed = self._alone or not has_handler or process.create_time() > times[0]
            self._delivered[process] = 0 if missed else 1
        if not self._alone and self._delivered[process] == 1:
            return
        if has_handler and self._delivered[process] < len(times):
            process.send_signal(STOP_SIGNAL)
            self._delivered[process] = len(times) if self._alone else 1


def _has_handler(process: psutil.Process) -> bool:
    """Whether `process` has a handler for the stop signal; outside Linux, always True."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except OSError:
        return sys.platform != "linux"
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (STOP_SIGNAL - 1) & 1)
