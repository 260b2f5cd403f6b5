"""Signals that ask a process to stop: real signals, sent to processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mtl_dist.distributed.preemption import SIGNALS

ROOT = Path(__file__).parents[3]
BEFORE = "stop.listen(); print('ready', flush=True); threading.Event().wait()"
TRAINING = """
stop.listen()
with stop.waiting():
    print('ready', flush=True)
    while not stop.made:
        time.sleep(0.01)
    print('request:', stop.signal.name, flush=True)
    sys.stdin.read()
print('ended by itself')
"""


@contextmanager
def process(code: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code`, and has printed that it is ready."""
    imports = "import sys, threading, time\nfrom mtl_dist.distributed.preemption import StopRequest"
    code = f"{imports}\nstop = StopRequest()\n{code}"
    pipe = subprocess.PIPE
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)} | environment
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        yield started
        started.kill()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_before_training_a_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    with process(BEFORE) as started:
        started.send_signal(number)
        _, printed = started.communicate(timeout=30)
    assert started.returncode == 75
    assert printed == f"stopped by {number.name}; the same command resumes it\n"


def test_only_rank_0_prints_a_message() -> None:
    with process(BEFORE, RANK="1") as started:
        started.terminate()
        _, printed = started.communicate(timeout=30)
    assert (started.returncode, printed) == (75, "")


def test_during_training_the_first_signal_is_a_request() -> None:
    with process(TRAINING) as started:
        started.terminate()
        assert started.stdout is not None
        assert started.stdout.readline() == "request: SIGTERM\n"
        assert started.communicate(timeout=30) == ("ended by itself\n", "")
    assert started.returncode == 0


def test_signals_close_together_are_one_request() -> None:
    with process(TRAINING) as started:
        for _ in range(3):
            started.send_signal(signal.SIGINT)
        assert started.stdout is not None
        assert started.stdout.readline() == "request: SIGINT\n"
        assert started.communicate(timeout=30)[0] == "ended by itself\n"


def test_a_second_signal_ends_the_process_at_once() -> None:
    at_once = "from mtl_dist.distributed import preemption; preemption.ONE_REQUEST_SECONDS = 0"
    with process(f"{at_once}\n{TRAINING}") as started:
        started.terminate()
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.readline()
        started.send_signal(signal.SIGINT)
        assert started.wait(timeout=30) == 75
        assert started.stderr.read() == "stopped by SIGINT; the same command resumes it\n"


@pytest.mark.parametrize("first_while_training", [True, False])
def test_after_the_run_a_signal_ends_the_process_with_the_runs_exit_code(first_while_training: bool) -> None:
    """The ranks do not exchange requests any more: if this one exited with 75, the others would not."""
    first = "os.kill(os.getpid(), 15)\n    while not stop.made: time.sleep(0.01)" if first_while_training else "pass"
    ended = f"""
import os
stop.listen()
with stop.waiting():
    {first}
    stop.end_with(0)
print('ready', flush=True)
threading.Event().wait()
"""
    with process(ended) as started:
        started.send_signal(signal.SIGUSR1)
        assert started.communicate(timeout=30) == ("", "")
    assert started.returncode == 0
