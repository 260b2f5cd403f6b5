"""What a run shows on the screen: its log lines, on the main process alone, and a progress bar."""

import logging
import sys
import time

from tqdm import tqdm

from mtl_dist.progress import LOG_LINE_SECONDS


class ConsoleHandler(logging.Handler):
    """Prints log lines to standard output without breaking a progress bar; a warning begins with `warning: `."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        tqdm.write(f"{prefix}{record.getMessage()}", file=sys.stdout)
        sys.stdout.flush()


def show_log_lines(is_main: bool) -> None:
    """Prints what the package logs at level INFO and above; ranks other than the main process print nothing."""
    logger = logging.getLogger("mtl_dist")
    logger.setLevel(logging.INFO)
    for handler in [one for one in logger.handlers if isinstance(one, ConsoleHandler)]:
        logger.removeHandler(handler)
    # Without any handler, logging would print warnings to standard error.
    logger.addHandler(ConsoleHandler() if is_main else logging.NullHandler())


class Console:
    """Lines for the person who watches; other ranks than 0 are silent."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks

    def say(self, line: str) -> None:
        if self.speaks:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


class Progress:
    """A bar on a terminal, a plain line now and then in a log."""

    def __init__(self, console: Console, total: int, start: int) -> None:
        self._console = console
        self._last = time.monotonic()
        self._logged: tuple[float, int] | None = None
        """The last loss that was logged, and the step whose it is."""
        # tqdm draws nothing where stderr is not a terminal.
        self._bar = tqdm(total=total, initial=start, unit="step", disable=not console.speaks or not sys.stderr.isatty())

    def advance(self, step: int, total: int, phase: str, loss: float | None) -> None:
        """Shows that `step` steps of `total` are done; `loss` is that of `step`, where it is logged."""
        if loss is not None:
            self._logged = loss, step
        text = phase
        if self._logged is not None:
            value, of_step = self._logged
            # Without its step, the same loss in several lines looks like a run that stands still.
            text += f"  loss {value:.4f}" + (f" at {of_step}" if of_step < step else "")
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.total = total
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last >= LOG_LINE_SECONDS or step == total:
            self._last = now
            self._console.say(f"step {step}/{total}  {text}")

    def close(self) -> None:
        self._bar.close()
