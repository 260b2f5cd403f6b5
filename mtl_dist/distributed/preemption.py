"""Signals that ask a run to stop.

SIGTERM, SIGINT and SIGUSR1 are requests to stop. Before training there is nothing to save, and the process exits at
once. During training, the request waits until the ranks have agreed on it and have saved a checkpoint. A second signal
always ends the process at once.

Python runs a signal handler between two of its own instructions, which a rank that waits for another one in a
collective may not reach for hours. So signals are read by a thread, from the file descriptor to which the interpreter's
C code writes them. Imports no torch, so that signals are handled from the first moment of a process.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mtl_dist.distributed.exit_codes import record_exit_code
from mtl_dist.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ONE_REQUEST_SECONDS = 2.0
"""Signals this close together are one request: Ctrl-C reaches a process both directly and through its launcher."""


class StopRequest:
    """A request to stop that this process may have received."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The signal that made the request; None before."""
        self._received_at = 0.0
        self._deferred = False
        self._exit_code: int | None = None
        self._lock = threading.Lock()

    @property
    def made(self) -> bool:
        """Whether this process has been asked to stop."""
        return self.signal is not None

    def listen(self) -> None:
        """Starts to take signals as requests. Called once, in the main thread."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # without a handler, nothing is written to the descriptor
        threading.Thread(target=self._read, args=(reader,), daemon=True, name="signals").start()

    def end_with(self, code: int) -> None:
        """Makes a signal that ends this process end it with exit code `code`, which is settled by now."""
        with self._lock:
            self._exit_code = code

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which the first request does not end the process, because the code inside looks at `made`."""
        with self._lock:
            self._deferred = True
        try:
            yield
        finally:
            with self._lock:
                self._deferred = False

    def _read(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number in SIGNALS:
                    self._receive(signal.Signals(number))

    def _receive(self, received: signal.Signals) -> None:
        """Notes the first request; ends the process unless the request waits or repeats the first one."""
        with self._lock:
            first = self.signal is None
            if first:
                self.signal, self._received_at = received, time.monotonic()
            repeated = not first and time.monotonic() - self._received_at < ONE_REQUEST_SECONDS
            if self._deferred and (first or repeated):
                return
            if self._exit_code is not None:
                record_exit_code(self._exit_code)
                os._exit(self._exit_code)
            if repeated:
                return
            if os.environ.get("RANK", "0") == "0":
                print(f"stopped by {received.name}; the same command resumes it", file=sys.stderr, flush=True)
            record_exit_code(Interrupted.exit_code)
            os._exit(Interrupted.exit_code)
