"""How torch and what stands on it is imported: that is most of a command's start, and of its end."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Spares the garbage collector what is imported inside: looking through it takes a third of a short command."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor at the end, when all that is imported is given up at once
        gc.enable()
