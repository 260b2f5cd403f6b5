"""Log lines of the package, by thread: `caplog` would mix those of ranks that are threads of one process."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class LinesByThread(logging.Handler):
    """Collects the log lines of the package, by the name of the thread that logged them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, list[str]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        assert record.levelno == logging.INFO
        self.lines[str(record.threadName)].append(record.getMessage())


@contextmanager
def log_lines() -> Iterator[dict[str, list[str]]]:
    """Yields the lines that the package logs inside, by thread."""
    logger, handler = logging.getLogger("mtl_dist"), LinesByThread()
    level = logger.level
    logger.setLevel("INFO")
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
