"""Real runs that start at once: forks of one process that has imported everything and done nothing.

Importing takes seconds and a tiny run one. A fork runs launch/train.py as a user's process does, and is killed like any
other. Above the ranks of a job stands an agent, as a launcher would: it leads their session, and reports how each of
them ended. Whoever dies takes all below along: the driver the agents, and these their ranks.
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
"""Seconds between two looks at the ranks."""
PRELOADED = ("tests.faults.preloaded",)
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a fork has the first thread of its parent only
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    # At its end multiprocessing speaks of locks that it had to clear away after killed processes.
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    "ACCELERATE_USE_CPU": "true",
}
WANDB_SERVICE = "WANDB_SERVICE"
"""Environment variable by which W&B, used in a process, offers the service it has started to the process's children.
A run beside a driver that uses W&B itself has a service of its own, as a user's run does."""

Hook = Callable[[], None]
"""Called in each rank before its run; what a campaign changes there. It is pickled: a function of a module, or a
`functools.partial` of one. The rank stands in the environment variable RANK if there is more than one."""


@dataclass(frozen=True)
class JobSpec:
    """What a job is."""

    arguments: tuple[str, ...]
    """Of the script."""
    folder: Path
    """For what the ranks print."""
    world_size: int = 1
    engine: str = "data parallel"
    """A name of ENGINES in tests/distributed/worker.py."""
    hook: Hook | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    script: Path = TRAIN


class ForkServer:
    """Starts jobs; those that are left when it closes are killed."""

    def __init__(self, folder: Path) -> None:
        """`folder` gets what the jobs print."""
        self._folder = folder
        self._jobs: list[Job] = []
        # multiprocessing's fork server is the process that imports once and forks; there is one in a driver.
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
        os.environ.update(ENVIRONMENT)  # of the fork server, which starts with the first job
        os.environ.pop(WANDB_SERVICE, None)
        try:
            job = Job(self._context, spec)
        finally:
            os.environ.clear()
            os.environ.update(before)
        self._jobs.append(job)
        return job

    def leftovers(self) -> list[psutil.Process]:
        """Processes of jobs that have ended which are still there, 5 seconds later."""
        ended = {job.session for job in self._jobs if not job.agent.is_alive()}
        deadline = time.monotonic() + 5
        while (found := [one for one in psutil.process_iter() if _session(one) in ended]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.01)  # the kernel ends a killed process in its own time
        return found


class Job:
    """The processes of one launch."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, spec: JobSpec) -> None:
        self.spec = spec
        self._codes: dict[int, int] = {}
        self._report, reporting = context.Pipe(duplex=False)
        self.agent = context.Process(target=_run_agent, args=(spec, reporting))
        self.agent.start()
        reporting.close()  # or the end of the agent would not be seen here
        self.pids: list[int] = self._report.recv()

    @property
    def session(self) -> int:
        """Of the agent and the ranks."""
        assert self.agent.pid is not None, "started"
        return self.agent.pid

    def kill(self, rank: int | None = None, number: int = signal.SIGKILL) -> None:
        """Sends one rank, or the whole job at once, a signal; nothing where it has ended."""
        if rank is None and number == signal.SIGKILL:
            _send(os.killpg, self.session, number)
            return
        for one in range(len(self.pids)) if rank is None else [rank]:
            if one not in self._codes:
                _send(os.kill, self.pids[one], number)

    def first_end(self, timeout: float = TIMEOUT) -> tuple[int, int] | None:
        """Rank and exit code (minus a signal's number) of the first that ends from now on; None if the job did.

        Raises TimeoutError, and kills the job, where none ends in time.
        """
        if not self._report.poll(timeout):
            self.kill()
            raise TimeoutError(f"none of {self.spec.world_size} processes ended within {timeout:.0f} s")
        try:
            rank, code = self._report.recv()
        except (EOFError, OSError):  # the agent was killed, and so were all
            self._codes |= {rank: -signal.SIGKILL for rank in range(len(self.pids)) if rank not in self._codes}
            self.agent.join()
            return None
        self._codes[rank] = code
        return rank, code

    def wait(self, timeout: float = TIMEOUT) -> list[int]:
        """Exit codes by rank, minus a signal's number where it was one.

        Raises TimeoutError, and kills the job, where it does not end in time.
        """
        deadline = time.monotonic() + timeout
        while len(self._codes) < len(self.pids):
            self.first_end(max(0.0, deadline - time.monotonic()))
        self.agent.join(timeout=10)
        return [self._codes[rank] for rank in range(len(self.pids))]

    def output(self, rank: int = 0) -> str:
        """What a rank has printed so far, on either stream."""
        return _log(self.spec, rank).read_text(encoding="utf-8", errors="replace")


def _send(how: Callable[[int, int], None], target: int, number: int) -> None:
    with suppress(ProcessLookupError):  # has ended by itself
        how(target, number)


def _session(process: psutil.Process) -> int | None:
    """None where the process is gone, a zombie included."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.Error, OSError):
        return None


def _log(spec: JobSpec, rank: int) -> Path:
    return spec.folder / f"rank-{rank}.log"


# From here on in the forks


def _die_with_parent(parent: int) -> None:
    libc: Any = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was faster
        os._exit(1)


def _run_agent(spec: JobSpec, report: Connection) -> None:
    """The agent: starts the ranks, says who they are, and how each has ended."""
    _die_with_parent(os.getppid())
    os.setsid()
    os.environ.update(_rendezvous_variables(spec.world_size))
    pids = [_fork_rank(spec, rank) for rank in range(spec.world_size)]
    report.send(pids)
    driver = multiprocessing.parent_process()
    assert driver is not None, "a fork, and not the driver itself"
    for _ in pids:
        while (ended := os.waitpid(-1, os.WNOHANG))[0] == 0:
            # The fork server does not end with the driver: it stays for as long as there are forks.
            if wait([driver.sentinel], TICK):
                os._exit(1)
        report.send((pids.index(ended[0]), os.waitstatus_to_exitcode(ended[1])))


def _rendezvous_variables(world_size: int) -> dict[str, str]:
    """Of one process too few to be launched as several: none."""
    if world_size == 1:
        return {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(world_size)
    return {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


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
    """Runs the script in this process; returns the exit code that it asks for."""
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
    """As if by the file of accelerate_configs that `accelerate launch` was given."""
    from mtl_dist.training import run
    from tests.distributed.worker import ENGINES

    start = run.start_accelerator

    def asked() -> Any:
        accelerator, processes, _ = start()
        return accelerator, processes, ENGINES[engine]

    run.start_accelerator = asked


def _exit_process(code: int) -> NoReturn:
    """As the interpreter would, which here has the agent's frames below."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
