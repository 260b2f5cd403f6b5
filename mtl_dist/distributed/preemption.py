"""Signals that ask a run to stop, and the ranks' agreement on what to do between two steps.

SIGTERM, SIGINT and SIGUSR1 ask. Before training there is nothing to save, and the process ends at once. While it
trains, the request waits until the ranks agree on it, and save. A second signal ends the process at once, always.

Python runs a signal's handler between two of its own instructions, which a rank that waits for another may not reach
for hours. So a thread reads signals from the file descriptor to which the interpreter's C code writes them.
Imports no torch, so that the first moment of a process is covered.
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
"""Signals this close together are one request: a terminal's Ctrl-C reaches a process directly and by its launcher."""


class StopRequest:
    """Whether this process has been asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The one that asked."""
        self._since = 0.0
        self._waits = False
        self._code: int | None = None
        self._lock = threading.Lock()

    @property
    def made(self) -> bool:
        return self.signal is not None

    def listen(self) -> None:
        """From here on, signals are requests. Called once, in the main thread."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for one in SIGNALS:
            signal.signal(one, lambda *_: None)  # else there would be nothing to write
        threading.Thread(target=self._read, args=(reader,), daemon=True, name="signals").start()

    def end_with(self, code: int) -> None:
        """From here on, a signal that ends this process ends it with the exit code that it has found out for itself."""
        with self._lock:
            self._code = code

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what ends by itself once a request is made: inside, the first one ends nothing."""
        with self._lock:
            self._waits = True
        try:
            yield
        finally:
            with self._lock:
                self._waits = False

    def _read(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number in SIGNALS:
                    self._take(signal.Signals(number))

    def _take(self, request: signal.Signals) -> None:
        with self._lock:
            first = self.signal is None
            if first:
                self.signal, self._since = request, time.monotonic()
            same = not first and time.monotonic() - self._since < ONE_REQUEST_SECONDS
            if self._waits and (first or same):
                return
            if self._code is not None:
                record_exit_code(self._code)
                os._exit(self._code)
            if same:
                return
            if os.environ.get("RANK", "0") == "0":
                print(f"stopped by {request.name}; the same command goes on", file=sys.stderr, flush=True)
            record_exit_code(Interrupted.exit_code)
            os._exit(Interrupted.exit_code)
