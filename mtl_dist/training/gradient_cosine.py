"""How far the tasks pull the shared encoder in one direction: the cosine between their gradients, now and then.

Of the uppermost unit of the encoder that trains, whose gradient a backward reaches first (as GradNorm takes its norms,
Chen et al. 2018, arXiv:1711.02257): a task then costs a backward through one block, not through all of them. It is
taken from the graph of the training step itself by `torch.autograd.grad`, which leaves gradients, hooks and random
numbers alone, so that the run stays the same to the bit.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from mtl_dist.engines.base import Engine


def uppermost_unit(units: Sequence[str]) -> str | None:
    """Of the encoder's, which stand in the order of its forward; None where only heads train."""
    return next((unit for unit in reversed(units) if not unit.startswith("heads.")), None)


class TaskGradients:
    """Of one step: each task's gradient, sum_over_ranks over micro-steps and, when it is asked for, over ranks."""

    def __init__(self, engine: Engine, tasks: Sequence[str]) -> None:
        """`tasks` have rows in the global batch."""
        self._engine = engine
        self._tasks = tasks
        unit = uppermost_unit(engine.units)
        names = [] if unit is None else engine.model.unit_parameters()[unit]
        parameters = dict(engine.model.named_parameters())
        self._parameters = [parameters[name] for name in names]
        self._sums: list[Tensor] = []

    def add(self, losses: Sequence[Tensor]) -> None:
        """Of a micro-step, before its backward: this rank's part of each task's mean loss."""
        if not self._parameters:
            return
        found = [self._gradient(loss) for loss in losses]
        self._sums = [sum_ + one for sum_, one in zip(self._sums, found, strict=True)] if self._sums else found

    def _gradient(self, loss: Tensor) -> Tensor:
        parts = torch.autograd.grad(
            loss, self._parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in parts])

    def cosines(self) -> dict[str, float]:
        """By `<task>/<other>`; empty where no two can be compared. Every rank calls this and gets the same."""
        if not self._sums:
            return {}
        whole = dict(zip(self._tasks, self._engine.sum_over_ranks(torch.stack(self._sums)).double(), strict=True))
        return {f"{one}/{other}": _cosine(whole[one], whole[other]) for one, other in combinations(self._tasks, 2)}


def _cosine(one: Tensor, other: Tensor) -> float:
    """NaN where one of them is zero."""
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms else math.nan
