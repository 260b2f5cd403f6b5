"""Module that, on PYTHONPATH, slows down the steps of a run or makes one of its ranks crash, to interrupt jobs.

It changes nothing else of the run, so that the run can be compared with one that runs without this module.
"""

import importlib.abc
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SECONDS = float(os.environ.get("MTL_DIST_TEST_STEP_SECONDS", "0"))
CRASHES = os.environ.get("MTL_DIST_TEST_CRASHES", "none")
"""Rank that crashes in its third step, or "none"."""


class _Finder(importlib.abc.MetaPathFinder):
    """Import hook that patches the trainer as soon as its module is loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "mtl_dist.training.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        load = loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            _patch_trainer(module.LayerwiseLearningRateTrainer)

        loader.exec_module = load_and_patch
        return spec


def _patch_trainer(trainer: Any) -> None:
    training_step = trainer.training_step

    def step(self: Any, at: int) -> Any:
        time.sleep(SECONDS)
        if at >= 2 and os.environ.get("RANK", "0") == CRASHES:
            raise IndexError("a mistake of the program's")
        return training_step(self, at)

    trainer.training_step = step


sys.meta_path.insert(0, _Finder())
