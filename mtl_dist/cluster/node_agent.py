"""One machine's part of a run: starts `accelerate launch`, passes requests to stop on, learns the run's own exit code.

A request goes to the processes of the run, never to the launcher: of a signal the launcher may end before they have
saved. Imports no torch.
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

ASKING = signal.SIGUSR1
"""How processes of the run are asked: a launcher that ignores it, as this one is made to, does not end of it."""
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Of linux/prctl.h."""


@dataclass(frozen=True)
class Launch:
    """What one machine starts."""

    script: Path
    arguments: tuple[str, ...]
    """The script's."""
    engine_file: str
    nodes: int
    processes: int
    """On this machine; the others start as many."""
    node: int = 0
    """Number of this machine."""
    host: str = ""
    """The first machine, where there are several, and its port."""
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


class Requests:
    """The signals that ask this process, and so its part of the run, to stop."""

    def __init__(self) -> None:
        self.times: list[float] = []
        """When each came, in seconds since the epoch."""

    def listen(self) -> None:
        """From here on; called once, in the main thread."""
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(one, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.times.append(time.time())


def finished(run_folder: Path) -> bool:
    """Whether a run has come to its end there, which is said."""
    summary = run_folder / SUMMARY
    if summary.exists():
        print(f"finished already: {summary}", flush=True)
    return summary.exists()


def run_part(launch: Launch, requests: Requests, alone: bool, save_seconds: int, lost_code: int = 1) -> int:
    """Runs the launcher to its end and returns the exit code of the run's processes here.

    `alone` says that signals reach this process only; else whoever sent one has sent it to all of them, as Slurm does.
    A process of the run has `save_seconds` to end once the launcher wants it to. `lost_code`: see
    `combined_exit_code`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # what outlives its launcher is still ours to wait for
    with TemporaryDirectory(prefix="mtl_dist-") as folder:
        environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(save_seconds)} | os.environ | {VARIABLE: folder}
        launcher = subprocess.Popen(
            launch.command(),
            env=environment,
            start_new_session=alone,  # so that a terminal's Ctrl-C reaches this process alone
            preexec_fn=_in_the_launcher,  # noqa: PLW1509  no other thread is here
        )
        ranks = _Ranks(launcher.pid, launch.script, alone)
        while launcher.poll() is None or ranks.alive():
            if requests.times:
                ranks.pass_on(requests.times)
            time.sleep(POLL_SECONDS)
        asked = bool(requests.times)
        return combined_exit_code(
            recorded_exit_codes(Path(folder)), launch.processes, asked, launcher.returncode, lost_code
        )


def _in_the_launcher() -> None:
    """Between fork and exec: what is ignored here stays so, until a process of the run listens to it."""
    signal.signal(ASKING, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class _Ranks:
    """The run's processes on this machine, each of which is to hear of each request once."""

    def __init__(self, launcher: int, script: Path, alone: bool) -> None:
        self._parents = (launcher, os.getpid())
        self._script = str(script)
        self._alone = alone
        self._heard: dict[psutil.Process, int] = {}
        """How many requests each has heard."""

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                ours = process.ppid() in self._parents and process.pid not in self._parents
                if ours and process.status() != psutil.STATUS_ZOMBIE and self._script in process.cmdline():
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def pass_on(self, requests: list[float]) -> None:
        """Sends what has not been heard to those that listen; what does not listen yet hears of it later."""
        for process in self.alive():
            try:
                self._tell(process, requests)
            except psutil.NoSuchProcess:
                continue

    def _tell(self, process: psutil.Process, requests: list[float]) -> None:
        listens = _listens(process)
        if process not in self._heard:
            # It was there and listened when the signal reached all, or it has missed it.
            self._heard[process] = 0 if self._alone or not listens or process.create_time() > requests[0] else 1
        if not self._alone and self._heard[process] == 1:
            return
        if listens and self._heard[process] < len(requests):
            process.send_signal(ASKING)
            self._heard[process] = len(requests) if self._alone else 1


def _listens(process: psutil.Process) -> bool:
    """Whether a process has a handler for the signal that asks."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except OSError:
        return sys.platform != "linux"
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (ASKING - 1) & 1)
