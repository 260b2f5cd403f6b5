"""Progress of long work: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm import tqdm

LOG_LINE_SECONDS = 10.0
"""Least number of seconds between two progress lines in a log."""

Progress = Callable[[str, str, int], AbstractContextManager[Callable[[int], None]]]
"""A way of showing progress, called as `show_progress` is: label, unit and total."""


def print_to_stderr(line: str) -> None:
    """Prints a line to standard error at once."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def show_progress(
    label: str,
    unit: str,
    total: int | None,
    *,
    bar: bool | None = None,
    log: Callable[[str], None] = print_to_stderr,
    first_line: bool = False,
    last_line: bool = True,
) -> Iterator[Callable[[int], None]]:
    """Shows how much of the work inside is done; yields a function to be called with each number of units just done.

    With `bar`, shows a bar on standard error; without, passes a line such as `predict 300/500 rows` to `log` at most
    every LOG_LINE_SECONDS. By default, there is a bar where standard error is a terminal.

    `unit` is a plural. `total` is None where it is not known. `first_line` adds a line with the total before the work
    begins, `last_line` one when all of it is done.
    """
    done, last = 0, time.monotonic()
    bar = sys.stderr.isatty() if bar is None else bar
    of_total = "" if total is None else f"/{total}"
    with tqdm(total=total, desc=label, unit=unit.removesuffix("s"), disable=not bar) as drawn:
        if first_line and not bar:
            log(f"{label} {total} {unit}")

        def advance(more: int) -> None:
            nonlocal done, last
            done += more
            drawn.update(more)
            if not bar and (time.monotonic() - last >= LOG_LINE_SECONDS or (last_line and done == total)):
                last = time.monotonic()
                log(f"{label} {done}{of_total} {unit}")

        yield advance


@contextmanager
def no_progress(label: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows nothing, for work whose progress is of no interest."""
    yield lambda more: None
