"""Campaign `wandb`: whatever fails in W&B, the run has the same bits, exit code 0 and all metrics in metrics.jsonl."""

import functools
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from mtl_dist.tracking import tracker as tracking
from mtl_dist.tracking import wandb_backend as wandb_run
from mtl_dist.tracking.tables import FinalTables
from tests.faults.campaign import Campaign, Outcome
from tests.faults.fork_server import TIMEOUT, ForkServer, Hook
from tests.faults.killing import outcome_of
from tests.faults.runs import LaunchConfig, Runs
from tests.faults.wandb_server import Server, closed_port

SECONDS = 8.0
"""Seconds that a run waits for W&B at its start and at its end."""
KEY = "0" * 40


@dataclass(frozen=True)
class Fault:
    """One way in which W&B fails."""

    server: Callable[[], Server | None]
    """Starts the server; returns None if nothing listens at its address."""
    mid_run: Callable[[Server], None] | None = None
    """Applied to the server in the middle of the run, once it has received metrics."""
    key: str = KEY
    hook: Callable[[int], Hook] | None = None
    """Returns a hook that injects the fault into the run at the metrics line with this number."""


def stop_answering(server: Server) -> None:
    server.mute = True


def fail(server: Server) -> None:
    server.status = 500


def refuse_key(server: Server) -> None:
    server.status = 401


def shorten_timeouts() -> None:
    """Hook: the run waits only SECONDS for W&B."""
    wandb_run.WANDB_START_SECONDS = wandb_run.WANDB_FINISH_SECONDS = SECONDS


def at_line(line: int, action: Hook) -> None:
    """Hook: calls `action` before line number `line`, counted from 1, is logged."""
    shorten_timeouts()
    log, lines = tracking.Tracker.log, 0

    @functools.wraps(log)
    def watched(
        self: tracking.Tracker,
        step: int,
        phase: str,
        values: Mapping[str, tracking.Value],
        tables: Callable[[], FinalTables] | None = None,
    ) -> None:
        nonlocal lines
        lines += 1
        if lines == line and self._group.is_main:
            action()
        log(self, step, phase, values, tables)

    tracking.Tracker.log = watched


def kill_service() -> None:
    """Kills the service process that W&B starts for a run."""
    found = [child for child in psutil.Process().children(recursive=True) if "wandb-core" in " ".join(child.cmdline())]
    assert found, "W&B has no process of its own"
    for child in found:
        child.send_signal(signal.SIGKILL)
        child.wait()


def wait_in_the_middle(reached: Path, injected: Path) -> None:
    """Waits, after creating `reached`, until the driver has injected its fault and created `injected`."""
    reached.touch()
    while not injected.exists():
        time.sleep(0.01)


def kill_service_at(line: int) -> Hook:
    return partial(at_line, line, kill_service)


FAULTS = {
    "nobody listens": Fault(lambda: None),
    "service killed": Fault(Server, hook=kill_service_at),
    "cut off": Fault(Server, Server.cut_off),
    "malformed key": Fault(Server, key="none"),
    "never answers": Fault(partial(Server, mute=True)),
    "answers slowly": Fault(partial(Server, delay=1.0)),
    "refuses the key": Fault(partial(Server, status=401)),
    "fails": Fault(partial(Server, status=500)),
    "goes mute": Fault(Server, stop_answering),
    "begins to fail": Fault(Server, fail),
    "withdraws the key": Fault(Server, refuse_key),
}


def wandb(rng: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """Injects every fault in turn, those in mid-run at a random line, on one process and on two."""
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder, without=without)
        for number in range(count):
            name = list(FAULTS)[number % len(FAULTS)]
            fault = FAULTS[name]
            config, line = LaunchConfig(rng.choice((1, 2))), rng.randint(2, 24)
            problem = run_with_fault(runs, config, f"run {number}", fault, line)
            where = f"line {line}" if fault.mid_run or fault.hook else "from the start"
            yield outcome_of(runs, f"{name}, {config}", where, f"run {number}", problem)


def run_with_fault(runs: Runs, config: LaunchConfig, name: str, fault: Fault, line: int) -> str:
    """Carries out a run with the fault; describes what is wrong with the run, "" if nothing is."""
    reached, injected = runs.folder / f"{name} reached", runs.folder / f"{name} injected"
    with _serving(fault) as server:
        url = server.url if server is not None else f"http://127.0.0.1:{closed_port()}"
        environment = {"WANDB_MODE": "online", "WANDB_API_KEY": fault.key, "WANDB_BASE_URL": url}
        hook = _hook(fault, line, reached, injected)
        job = runs.start(config, name, hook, "tracking.wandb=true", **environment)
        try:
            if fault.mid_run is not None and server is not None:
                _wait_for(lambda: reached.exists() and server.streamed > 0)
                fault.mid_run(server)
                injected.touch()
            codes = job.wait()
        except TimeoutError as error:
            job.kill()
            return f"hangs: {error}: {job.output()}"
    if set(codes) != {0}:
        return f"exit codes {codes}: {job.output()}"
    return _find_leftovers(url) or runs.difference(config, name)


def _hook(fault: Fault, line: int, reached: Path, injected: Path) -> Hook:
    if fault.hook is not None:
        return fault.hook(line)
    if fault.mid_run is not None:
        return partial(at_line, line, partial(wait_in_the_middle, reached, injected))
    return shorten_timeouts


def _wait_for(condition: Callable[[], bool]) -> None:
    """Waits until `condition` is true; raises TimeoutError after the time limit of a run."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the run has not reached the line, or W&B has sent nothing")
        time.sleep(0.01)


def _find_leftovers(url: str) -> str:
    """Describes processes of W&B that still exist after the run with this server; "" if all end in time."""
    deadline = time.monotonic() + TIMEOUT
    while found := [one for one in psutil.process_iter() if _environment(one).get("WANDB_BASE_URL") == url]:
        if time.monotonic() > deadline:
            return f"processes are left: {found}"
        time.sleep(0.05)
    return ""


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


@contextmanager
def _serving(fault: Fault) -> Iterator[Server | None]:
    server = fault.server()
    try:
        yield server
    finally:
        if server is not None and not server.gone:
            server.cut_off()


WANDB = Campaign(20, wandb)
