"""Environment of all tests, set before other imports: no network, and caches in a temporary folder."""

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the variables of the main process
    _caches = tempfile.TemporaryDirectory(prefix="mtl_dist-tests-")
    os.environ |= {
        "HF_HOME": f"{_caches.name}/huggingface",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # with tiny matrices, threads cost more time than they save
        "MTL_DIST_CACHE": f"{_caches.name}/mtl_dist",
        "WANDB_MODE": "offline",
    }
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(autouse=True)
def stop_wandb_service() -> Iterator[None]:
    """Stops W&B's service after each test, because child processes of later tests would use it."""
    yield
    if "WANDB_SERVICE" in os.environ:
        sys.modules["wandb"].teardown()
