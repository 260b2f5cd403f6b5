"""Set before anything is imported: tests run without network and leave the user's caches alone."""

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share what the process that starts them has set
    _caches = tempfile.TemporaryDirectory(prefix="mtl_dist-tests-")
    os.environ |= {
        "HF_HOME": f"{_caches.name}/huggingface",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # tiny matrices: threads would wait for each other longer than they work
        "MTL_DIST_CACHE": f"{_caches.name}/mtl_dist",
        "WANDB_MODE": "offline",
    }
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(autouse=True)
def no_service_of_wandb_is_left() -> Iterator[None]:
    """W&B leaves its service to child processes by a variable: those of later tests would depend on this test's."""
    yield
    if "WANDB_SERVICE" in os.environ:
        sys.modules["wandb"].teardown()
