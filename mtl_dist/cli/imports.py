"""How commands import the modules that load torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mtl_dist.startup import without_garbage_collection


@contextmanager
def importing_models() -> Iterator[None]:
    """For imports of modules that load and save models in this process alone."""
    # DeepSpeed is not used here, but transformers imports it when it saves; it warns of a missing GPU otherwise.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with without_garbage_collection():
        yield
