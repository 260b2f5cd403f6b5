"""Injection of NaN or infinite losses and gradients into some training steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtl_dist.data.collate import Batch
from mtl_dist.engines.base import Engine
from mtl_dist.models.multitask import PrefixState
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer

NAN = float("nan")


def nonfinite_loss(logits: Tensor, value: float = NAN) -> Tensor:
    """Makes the loss `value`."""
    return logits * value


def nonfinite_gradient(logits: Tensor, value: float) -> Tensor:
    """Makes a gradient `value` in the backward pass and leaves the loss unchanged."""
    logits.register_hook(lambda gradient: gradient + value)
    return logits


def inject_nonfinite(
    steps: range, fault: Callable[[Tensor], Tensor] = nonfinite_loss, put: Callable[[Any, str, Any], None] = setattr
) -> None:
    """Passes the logits of each task through `fault` in these training steps, counted from 0.

    `put` replaces the methods: permanently by default; pass `setattr` of a MonkeyPatch to undo it after a test.
    """
    training_step, logits = LayerwiseLearningRateTrainer.training_step, Engine.logits
    at = -1

    def in_step(self: LayerwiseLearningRateTrainer, step: int) -> StepResult:
        nonlocal at
        at = step
        return training_step(self, step)

    def with_fault(self: Engine, batch: Batch, prefix: PrefixState | None = None) -> dict[str, Tensor]:
        result = logits(self, batch, prefix)
        if at not in steps or not torch.is_grad_enabled():
            return result
        return {task: fault(one) for task, one in result.items()}

    put(LayerwiseLearningRateTrainer, "training_step", in_step)
    put(Engine, "logits", with_fault)
