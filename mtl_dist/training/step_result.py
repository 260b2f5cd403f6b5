"""Figures of one optimizer step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mtl_dist.device import AsyncScalar
from mtl_dist.schedule.sampler import GlobalBatch


@dataclass(frozen=True)
class StepResult:
    """Figures of one optimizer step."""

    batch: GlobalBatch
    losses: Tensor
    """This rank's share of each task's mean loss over the global batch, [num_tasks], in the recipe's order."""
    norm: AsyncScalar
    """Norm of the whole gradient before clipping."""
    computed: int
    """Tokens that all ranks have computed, padding included."""
    unit_norms: Mapping[str, float] = field(default_factory=dict)
    """Norm of each unit's gradient before clipping, in steps that are logged."""
    cosines: Mapping[str, float] = field(default_factory=dict)
    """Cosines between the tasks' gradients, by `<task>/<other>`, in steps where they are compared."""

    @property
    def gradient_norm(self) -> float:
        """`norm` as a number; waits for the device."""
        return self.norm.value
