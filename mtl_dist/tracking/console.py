"""Screen output of a run, on the main process alone: log lines and a progress bar."""

import logging
import sys
import time

from tqdm import tqdm

from mtl_dist.progress import LOG_LINE_SECONDS

logger = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Prints log lines to standard output without breaking a progress bar; a warning begins with `warning: `."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        tqdm.write(f"{prefix}{record.getMessage()}", file=sys.stdout)
        sys.stdout.flush()


def show_log_lines(is_main: bool) -> None:
    """Prints what the package logs at level INFO and above; ranks other than the main process print nothing."""
    package = logging.getLogger("mtl_dist")
    package.setLevel(logging.INFO)
    for handler in [one for one in package.handlers if isinstance(one, ConsoleHandler)]:
        package.removeHandler(handler)
    # Without any handler, logging would print warnings to standard error.
    package.addHandler(ConsoleHandler() if is_main else logging.NullHandler())


class TrainingProgress:
    """TrainingProgress of training: a bar on a terminal, otherwise a log line at most every LOG_LINE_SECONDS."""

    def __init__(self, is_main: bool, total: int, start: int) -> None:
        """`total` is the planned number of steps, `start` the number done; other ranks show nothing."""
        self._is_main = is_main
        self._last = time.monotonic()
        self._logged: tuple[float, int] | None = None
        """The last loss that was logged, and its step."""
        # tqdm draws nothing where stderr is not a terminal.
        self._bar = tqdm(total=total, initial=start, unit="step", disable=not is_main or not sys.stderr.isatty())

    def advance(self, step: int, total: int, phase: str, loss: float | None) -> None:
        """Shows that `step` of `total` steps are done; `loss` is the loss of `step`, None where it is not logged."""
        if loss is not None:
            self._logged = loss, step
        text = phase
        if self._logged is not None:
            value, of_step = self._logged
            # Without its step, the same loss in several lines looks like a run that makes no progress.
            text += f"  loss {value:.4f}" + (f" at {of_step}" if of_step < step else "")
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.total = total
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self._is_main and (now - self._last >= LOG_LINE_SECONDS or step == total):
            self._last = now
            logger.info(f"step {step}/{total}  {text}")

    def close(self) -> None:
        """Leaves the bar as it is on the terminal."""
        self._bar.close()
