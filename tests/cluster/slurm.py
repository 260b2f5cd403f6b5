"""Slurm cluster of three nodes on loopback addresses of this machine: real daemons, with all state in one folder."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import psutil

NODES = ("127.0.0.2", "127.0.0.3")
"""Node names: addresses, because they need no entry in a hosts file."""
APART = "127.0.0.4"
"""Node on which the folder `apart` is another one than on the other nodes; it is only in the partition `apart`."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
DEADLINE = 120.0
"""Default number of seconds to wait for a state."""
CONFIG = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it starts again.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=512
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
SlurmdTimeout=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
{nodes}
PartitionName=main Nodes=127.0.0.[2-3] Default=YES MaxTime=60 PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=127.0.0.[2-3] MaxTime=60 PriorityTier=2 PreemptMode=OFF
PartitionName=apart Nodes=127.0.0.[2-4] MaxTime=60 PriorityTier=1
"""


def slurm_unavailable() -> str | None:
    """Returns the reason why Slurm cannot be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here; make test-cluster installs them if it is allowed to"
    return None if os.geteuid() == 0 else "only root can start Slurm's daemons"


@dataclass(frozen=True)
class Job:
    """State of a job, as `scontrol show job` reports it."""

    fields: dict[str, str]

    @property
    def state(self) -> str:
        return self.fields["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.fields["Restarts"])

    @property
    def code(self) -> int:
        """Exit code of the batch script."""
        return int(self.fields["ExitCode"].partition(":")[0])


class Slurm:
    """Running Slurm cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "GLOO_SOCKET_IFNAME": "lo"}

    def run(self, *command: str) -> str:
        """Runs a command of Slurm and returns its output; fails if its exit code is not 0."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: int) -> Job:
        words = self.run("scontrol", "show", "job", "-o", str(number)).split()
        return Job(dict(word.split("=", 1) for word in words if "=" in word))

    def wait(self, number: int, *states: str, seconds: float = DEADLINE) -> Job:
        """Waits until the job is in one of `states` and returns it."""
        what = f"job {number}: {states}"
        return wait_until(lambda: job if (job := self.job(number)).state in states else None, what, seconds)

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        (self.folder / "spool" / node).mkdir(parents=True, exist_ok=True)
        if node == APART:
            script = 'mount -t tmpfs none "$0" && exec slurmd -N "$1"'
            self.run("unshare", "--mount", "sh", "-c", script, str(self.folder / "apart"), node)
        else:
            self.run("slurmd", "-N", node)

    def processes(self) -> list[psutil.Process]:
        """Returns all live processes of this cluster: daemons, job steps and the processes in them."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            if process.name() == "slurmstepd":  # its title has overwritten its environment
                places = [str(connection.laddr) for connection in process.net_connections("unix")]
                return any(place.startswith(str(self.folder)) for place in places)
            return process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]
        except psutil.Error:
            return False

    def of_job(self, number: int) -> list[psutil.Process]:
        """Returns the live processes of a job on all nodes, including the daemons of its steps."""
        return [process for process in self.processes() if self._job_and_node(process)[0] == str(number)]

    def kill_node(self, node: str) -> None:
        """Kills all processes of a node, as a loss of power would."""
        daemon = (self.folder / f"slurmd.{node}.pid").read_text().strip()
        doomed = [process for process in self.processes() if self._job_and_node(process)[1] == node]
        _kill_all([psutil.Process(int(daemon)), *doomed])

    def _job_and_node(self, process: psutil.Process) -> tuple[str | None, str | None]:
        try:
            if process.name() == "slurmstepd":  # its socket is SPOOL/NODE/HOST_JOB.STEP
                for connection in process.net_connections("unix"):
                    found = re.search(r"/spool/([^/]+)/[^/]*_(\d+)\.[\w-]+$", str(connection.laddr))
                    if found:
                        return found[2], found[1]
                return None, None
            environment = process.environ()
            return environment.get("SLURM_JOB_ID"), environment.get("SLURMD_NODENAME")
        except psutil.Error:
            return None, None


T = TypeVar("T")


def wait_until(what: Callable[[], T | None], description: str, seconds: float = DEADLINE) -> T:
    """Calls `what` until it returns a value other than None, which is returned; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = what()
        if value is not None:
            return value
        assert time.monotonic() < deadline, f"timed out: {description}"
        time.sleep(0.2)


@contextmanager
def cluster() -> Iterator[Slurm]:
    """Starts a cluster, waits until all nodes are idle, and kills all its processes at the end."""
    with TemporaryDirectory(prefix="mtl_dist-slurm-") as folder, _cluster(Path(folder)) as slurm:
        yield slurm


@contextmanager
def _cluster(folder: Path) -> Iterator[Slurm]:
    slurm = Slurm(folder)
    for name in ("state", "spool", "apart"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # munge requires that all users can read the folder
    host = socket.gethostname().partition(".")[0]
    lines = [
        f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={free_port()} CPUs=4 RealMemory=4096 State=UNKNOWN"
        for node in (*NODES, APART)
    ]
    text = CONFIG.format(folder=folder, host=host, port=free_port(), nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(text)
    with ExitStack() as stack:
        stack.callback(_end, slurm)
        _start_munge(slurm)
        slurm.run("slurmctld", "-c")
        for node in (*NODES, APART):
            slurm.start_node(node)
        idle = {*NODES, APART}
        wait_until(
            lambda: True if set(slurm.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()) == idle else None,
            "idle nodes",
        )
        yield slurm


def free_port() -> int:
    """Returns a free port below the range from which jobs take theirs."""
    for port in range(10000, 20000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in _taken:
            _taken.add(port)
            return port
    raise AssertionError("no free port")


_taken: set[int] = set()


def _start_munge(slurm: Slurm) -> None:
    key = slurm.folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    files = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    files["seed-file"] = "munge.seed"
    slurm.run("munged", *(f"--{option}={slurm.folder / name}" for option, name in files.items()))
    wait_until(lambda: True if (slurm.folder / "munge.socket").exists() else None, "munge")


def _end(slurm: Slurm) -> None:
    """Kills all processes of the cluster."""
    wait_until(lambda: None if _kill_all(slurm.processes()) else True, "the end of the cluster")


def _kill_all(processes: list[psutil.Process]) -> int:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return len(processes)
