"""How commands import the modules that load torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mtl_dist.environment import CACHE_VARIABLE, cache_root, check_variables, prepare_home
from mtl_dist.startup import without_garbage_collection


@contextmanager
def importing_models() -> Iterator[None]:
    """For imports of modules that load and save models in this process alone. Raises UserError.

    What they cache is in the folder of MTL_DIST_CACHE where the home folder cannot be written.
    """
    check_variables()
    prepare_home(cache_root(None) if os.environ.get(CACHE_VARIABLE) else None)
    # DeepSpeed is not used here, but transformers imports it when it saves; it warns of a missing GPU otherwise.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with without_garbage_collection():
        yield
