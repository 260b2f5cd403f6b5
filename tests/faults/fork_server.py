"""Real runs that start without import time: forks of one server process that has imported everything they need.

Importing takes several seconds, a tiny run one. A fork runs launch/train.py as a user's process does, and can be killed
like any other. The ranks of a job are children of an agent, which takes the place of a launcher: it is the leader of
their session and reports how each of them ended. Processes die with their parents: agents with the driver, ranks with
their agent.
"""

import atexit
import ctypes
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import psutil

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "launch" / "train.py"
TIMEOUT = 180.0
"""Seconds after which a job counts as hanging."""
TICK = 0.01
"""Seconds between two polls of the ranks."""
PRELOADED = ("tests.faults.preloaded",)
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a fork has only the first thread of its parent
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    # multiprocessing warns at exit about locks that killed processes have left.
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    "ACCELERATE_USE_CPU": "true",
}
WANDB_SERVICE = "WANDB_SERVICE"
"""Environment variable with which W&B offers a service that a process has started to the children of the process.

It is removed here, so that a run started by a driver that uses W&B starts its own service, as a user's run does.
"""

Hook = Callable[[], None]
"""Function called in each rank before its run, with which a campaign changes the run.

It is pickled, so it must be a function of a module or a `functools.partial` of one. If there are several ranks, the
environment variable RANK holds the rank.
"""


@dataclass(frozen=True)
class JobSpec:
    """Command, processes and environment of a job."""

    arguments: tuple[str, ...]
    """Arguments of the script."""
    folder: Path
    """Folder for the output of the ranks."""
    world_size: int = 1
    engine: str = "data parallel"
    """A name of ENGINES in tests/distributed/worker.py."""
    hook: Hook | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    script: Path = TRAIN


class ForkServer:
    """Starts jobs as forks of a preloaded process; kills those that still run when it is closed."""

    def __init__(self, folder: Path) -> None:
        """Creates no process; the output of jobs goes to `folder`."""
        self._folder = folder
        self._jobs: list[Job] = []
        # The fork server of multiprocessing imports once and forks for each job; there is one for each driver.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for job in self._jobs:
            job.kill()

    def start(
        self,
        arguments: Sequence[str],
        world_size: int = 1,
        engine: str = "data parallel",
        hook: Hook | None = None,
        environment: Mapping[str, str] | None = None,
        script: Path = TRAIN,
    ) -> "Job":
        """Starts `script` with `arguments` on `world_size` processes; returns at once."""
        folder = self._folder / f"job-{len(self._jobs):04d}"
        folder.mkdir(parents=True)
        spec = JobSpec(tuple(arguments), folder, world_size, engine, hook, environment or {}, script)
        before = dict(os.environ)
        os.environ.update(ENVIRONMENT)  # for the fork server, which starts with the first job
        os.environ.pop(WANDB_SERVICE, None)
        try:
            job = Job(self._context, spec)
        finally:
            os.environ.clear()
            os.environ.update(before)
        self._jobs.append(job)
        return job

    def leftovers(self) -> list[psutil.Process]:
        """Returns processes of ended jobs that are still alive after up to 5 seconds."""
        ended = {job.session for job in self._jobs if not job.agent.is_alive()}
        deadline = time.monotonic() + 5
        while (found := [one for one in psutil.process_iter() if _session(one) in ended]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.01)  # the kernel takes some time to end a killed process
        return found


class Job:
    """Processes of one launch: an agent and its ranks."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, spec: JobSpec) -> None:
        self.spec = spec
        self._codes: dict[int, int] = {}
        self._report, reporting = context.Pipe(duplex=False)
        self.agent = context.Process(target=_run_agent, args=(spec, reporting))
        self.agent.start()
        reporting.close()  # else the end of the agent would not close the pipe
        self.pids: list[int] = self._report.recv()

    @property
    def session(self) -> int:
        """Session id of the agent and the ranks."""
        assert self.agent.pid is not None, "started"
        return self.agent.pid

    def kill(self, rank: int | None = None, number: int = signal.SIGKILL) -> None:
        """Sends a signal to one rank, or to the whole job at once; processes that have ended are ignored."""
        if rank is None and number == signal.SIGKILL:
            _send(os.killpg, self.session, number)
            return
        for one in range(len(self.pids)) if rank is None else [rank]:
            if one not in self._codes:
                _send(os.kill, self.pids[one], number)

    def first_end(self, timeout: float = TIMEOUT) -> tuple[int, int] | None:
        """Waits for the next rank to end and returns its rank and exit code; None if the whole job was killed.

        The exit code is the negative signal number for a rank that a signal ended. Raises TimeoutError, and kills the
        job, if no rank ends in time.
        """
        if not self._report.poll(timeout):
            self.kill()
            raise TimeoutError(f"none of {self.spec.world_size} processes ended within {timeout:.0f} s")
        try:
            rank, code = self._report.recv()
        except (EOFError, OSError):  # the agent was killed, and with it all ranks
            self._codes |= {rank: -signal.SIGKILL for rank in range(len(self.pids)) if rank not in self._codes}
            self.agent.join()
            return None
        self._codes[rank] = code
        return rank, code

    def wait(self, timeout: float = TIMEOUT) -> list[int]:
        """Waits for the job to end and returns the exit codes by rank, negative signal numbers for signals.

        Raises TimeoutError, and kills the job, if it does not end in time.
        """
        deadline = time.monotonic() + timeout
        while len(self._codes) < len(self.pids):
            self.first_end(max(0.0, deadline - time.monotonic()))
        self.agent.join(timeout=10)
        return [self._codes[rank] for rank in range(len(self.pids))]

    def output(self, rank: int = 0) -> str:
        """Returns what a rank has printed so far to stdout and stderr."""
        return _log(self.spec, rank).read_text(encoding="utf-8", errors="replace")


def _send(how: Callable[[int, int], None], target: int, number: int) -> None:
    with suppress(ProcessLookupError):  # the process has ended
        how(target, number)


def _session(process: psutil.Process) -> int | None:
    """Returns the session id of a process; None if it has ended or is a zombie."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.Error, OSError):
        return None


def _log(spec: JobSpec, rank: int) -> Path:
    return spec.folder / f"rank-{rank}.log"


# The functions below run in the forks.


def _die_with_parent(parent: int) -> None:
    libc: Any = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent died before the call
        os._exit(1)


def _run_agent(spec: JobSpec, report: Connection) -> None:
    """Runs the agent of a job: forks the ranks, reports their process ids and then the exit code of each."""
    _die_with_parent(os.getppid())
    os.setsid()
    os.environ.update(_rendezvous_variables(spec.world_size))
    pids = [_fork_rank(spec, rank) for rank in range(spec.world_size)]
    report.send(pids)
    driver = multiprocessing.parent_process()
    assert driver is not None, "a fork, and not the driver itself"
    for _ in pids:
        while (ended := os.waitpid(-1, os.WNOHANG))[0] == 0:
            # The fork server does not end with the driver, but only when no fork is left.
            if wait([driver.sentinel], TICK):
                os._exit(1)
        report.send((pids.index(ended[0]), os.waitstatus_to_exitcode(ended[1])))


def _rendezvous_variables(world_size: int) -> dict[str, str]:
    """Returns the variables with which the ranks find each other; none for a single process."""
    if world_size == 1:
        return {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(world_size)
    found = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return found | {"OMPI_COMM_WORLD_SIZE": size}  # as mpirun does: there is a launcher


def _fork_rank(spec: JobSpec, rank: int) -> int:
    agent = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _die_with_parent(agent)
            code = _run_rank(spec, rank)
        except BaseException:  # noqa: BLE001 - a fork must not return into its parent's code
            traceback.print_exc()
        _exit_process(code)
    return pid


def _run_rank(spec: JobSpec, rank: int) -> int:
    """Runs the script in this process and returns its exit code."""
    log = os.open(_log(spec, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(ROOT)
    os.environ.update(spec.environment)
    if spec.world_size > 1:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    if spec.engine != "data parallel":
        _use_engine(spec.engine)
    if spec.hook is not None:
        spec.hook()
    sys.argv = [str(spec.script), *spec.arguments]
    try:
        runpy.run_path(str(spec.script), run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _use_engine(engine: str) -> None:
    """Makes the run use this engine, as a file of accelerate_configs would with `accelerate launch`."""
    from mtl_dist.training import run
    from tests.distributed.worker import ENGINES

    start = run.start_accelerator

    def start_with_engine() -> Any:
        accelerator, processes, _ = start()
        return accelerator, processes, ENGINES[engine]

    run.start_accelerator = start_with_engine


def _exit_process(code: int) -> NoReturn:
    """Ends the process as the interpreter would, without returning into the agent's stack frames."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
