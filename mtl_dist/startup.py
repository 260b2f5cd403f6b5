"""Importing torch and the libraries on top of it, which takes most of a short command's time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keeps the garbage collector from scanning what is imported inside, which would take a third of a short command.

    Objects created inside are moved to the permanent generation (`gc.freeze`); the collector works as before
    afterwards. Does nothing if torch is imported already or the collector is off.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # interpreter shutdown skips the imported objects too
        gc.enable()
