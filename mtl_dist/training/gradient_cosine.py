"""Cosine similarity of the tasks' gradients in the shared encoder, sampled every so many steps.

The gradients are those of the uppermost trainable unit of the encoder, which the backward pass reaches first, so that a
task costs a backward pass through one block only (GradNorm takes its norms there: Chen et al. 2018, arXiv:1711.02257).
They are computed from the graph of the training step by `torch.autograd.grad`, which leaves gradients, hooks and random
state alone, so that the run stays the same bit for bit.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from mtl_dist.engines.base import Engine


def uppermost_unit(units: Sequence[str]) -> str | None:
    """Returns the last of the encoder's `units` in forward order; None where only heads are trained."""
    return next((unit for unit in reversed(units) if not unit.startswith("heads.")), None)


class TaskGradients:
    """Gradients of one step by task, summed over micro-steps, and over ranks when the cosines are computed."""

    def __init__(self, engine: Engine, tasks: Sequence[str]) -> None:
        """`tasks` are those with rows in the global batch."""
        self._engine = engine
        self._tasks = tasks
        unit = uppermost_unit(engine.units)
        names = [] if unit is None else engine.model.unit_parameters()[unit]
        parameters = dict(engine.model.named_parameters())
        self._parameters = [parameters[name] for name in names]
        self._sums: list[Tensor] = []

    def add(self, losses: Sequence[Tensor]) -> None:
        """Adds a micro-step, before its backward pass; `losses` are this rank's shares of the tasks' mean losses."""
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
        """Returns the cosines by `<task>/<other>`, the same on every rank; empty where no two tasks can be compared."""
        if not self._sums:
            return {}
        whole = dict(zip(self._tasks, self._engine.sum_over_ranks(torch.stack(self._sums)).double(), strict=True))
        return {f"{one}/{other}": _cosine(whole[one], whole[other]) for one, other in combinations(self._tasks, 2)}


def _cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of two vectors; NaN where one of them is zero."""
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms else math.nan
