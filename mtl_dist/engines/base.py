"""The interface of all engines: wrapping, the phase boundary, forward, backward and the optimizer step.

An engine is a way to run a model on the processes of a run. Every method is called by all ranks, in the same order.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.data.collate import Batch
from mtl_dist.device import is_async
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.optimizer import ParameterGroups, build_optimizer
from mtl_dist.engines.rank_comparison import check_optimizer, compare_ranks
from mtl_dist.engines.state import ModelState
from mtl_dist.models.frozen_linear import cache_frozen_casts
from mtl_dist.models.multitask import MultitaskTransformer, PrefixState


@dataclass(frozen=True)
class StepOutput:
    """Gradient norms of one optimizer step, before clipping and over all ranks."""

    grad_norm: Tensor
    """Norm of the whole gradient: a scalar, on any device."""
    unit_norms: Mapping[str, float] = field(default_factory=dict)
    """Norm of the gradient of each trainable unit that has rows in the batch; empty if it was not asked for."""


class Engine(ModelState, ABC):
    """A model with its optimizer on the processes of a run.

    `model` is the model itself; `model_wrapped` is what forward calls: the model, or DDP or DeepSpeed around it (the
    names of `transformers.Trainer`).
    """

    name: str
    forward_is_collective = False
    """Whether each forward has to be made by all ranks together, because no rank holds all parameters."""

    def __init__(
        self, accelerator: Accelerator, processes: ProcessGroup, model: MultitaskTransformer, config: OptimizerConfig
    ) -> None:
        super().__init__(processes, model)
        self.accelerator = accelerator
        self.device = accelerator.device
        self.config = config
        self.model = self.shard_model(model.to(self.device))
        if not self.forward_is_collective:
            cache_frozen_casts(self.model)
        self.model_wrapped: nn.Module = self.model
        self.units: tuple[str, ...] = ()
        """Units that are trainable in the current phase."""
        self.optimizer = build_optimizer(self.model, self.model.unit_parameters(), config)
        self._parameter_groups = ParameterGroups(self.optimizer)
        self.dtype = self.model.sentence_transformer.encoder.dtype
        """Data type of weights and logits."""
        self._autocast = nullcontext if accelerator.mixed_precision == "no" else accelerator.autocast

    # Steps that engines override

    def shard_model(self, model: MultitaskTransformer) -> MultitaskTransformer:
        """Shards the model's parameters, in place, if this engine does."""
        return model

    @abstractmethod
    def wrap(self) -> None:
        """Makes `model_wrapped` exchange the gradients of the parameters that are trainable now."""

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Context of a micro-step's forward and backward; ranks exchange gradients in the last micro-step only."""

    def reshard_parameters(self) -> None:
        """Frees parameters that forwards without a backward have gathered."""

    def sum_over_shards(self, sums: Tensor) -> Tensor:
        """Sums over whole gradients, from sums over the shards that this rank holds."""
        return sums

    # The phase boundary

    def enter_phase(self, name: str, units: Sequence[str]) -> None:
        """Makes exactly `units` trainable, and wraps the model for them.

        Optimizer state is kept: parameters that trained before keep theirs, those that are unfrozen for the first time
        have none yet. Raises TrainingError on all ranks, naming the first difference, if ranks differ in weights or
        in the trainable set, or if the optimizer lacks a trainable parameter or has lost state.
        """
        when = f"start of phase {name!r}"
        self.units = tuple(units)
        self._set_trainable()
        # Before wrapping, which may broadcast the main process's weights and so hide a difference.
        self.check_equal(when)
        before = self.local_optimizer_state_digests()
        self.wrap()
        with self.processes.raise_together():
            check_optimizer(self, when, before)

    def _set_trainable(self) -> None:
        by_unit = self.model.unit_parameters()
        trainable = {parameter for unit in self.units for parameter in by_unit[unit]}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trainable)
            parameter.grad = None
        self._select_parameter_groups()

    def _select_parameter_groups(self) -> None:
        """Restricts the optimizer's step to the trainable units; it keeps the state of all."""
        self._parameter_groups.select(self.units)

    def check_equal(self, when: str) -> None:
        """Compares the model among ranks; raises TrainingError on all of them where it differs (`compare_ranks`)."""
        compare_ranks(self, when)

    def check_replicas(self, when: str) -> None:
        """`check_equal` for what every rank holds a whole copy of; gathers nothing."""
        if self.processes.world_size > 1:
            self.check_equal(when)

    # Forward and backward

    def train_mode(self) -> None:
        """Puts trainable units into train mode and frozen ones into eval mode, in which they have no dropout."""
        self.model_wrapped.train()  # wrappers
        self.model.train_units(self.units)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context of forwards that need no gradient: eval mode inside, `train_mode` afterwards."""
        self.model_wrapped.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.reshard_parameters()
            self.train_mode()

    def logits(self, batch: Batch, prefix: PrefixState | None = None) -> dict[str, Tensor]:
        """Logits [rows of the task, num_labels] of every task, in the type of the weights also under autocast.

        The encoder's layers below `prefix`, as from `run_prefix`, are not computed again.
        """
        with self._autocast():
            logits = self.model_wrapped(batch.input_ids, batch.attention_mask, batch.rows, batch.token_type_ids, prefix)
        return {task: values.to(self.dtype) for task, values in logits.items()}

    def run_prefix(self, depths: Sequence[int], batch: Batch) -> dict[int, Tensor]:
        """States at each of the prefix `depths`; see `MultitaskTransformer.run_prefix`."""
        with self._autocast():
            states = self.model.run_prefix(depths, batch.input_ids, batch.attention_mask, batch.token_type_ids)
        self.reshard_parameters()
        return states

    def backward(self, loss: Tensor) -> None:
        """Accumulates this rank's share of the global batch's gradient; ranks end up with the sum of all shares."""
        # Engines average over ranks, whereas our shares are parts of one mean already.
        (loss * self.processes.world_size if self.processes.world_size > 1 else loss).backward()

    # The optimizer step

    def step(self, rates: Mapping[str, float], absent: Sequence[str], with_unit_norms: bool = False) -> StepOutput:
        """Clips and applies the gradient, then clears it.

        `rates` are learning rates by unit. `absent` are the units without a row in the global batch, which are heads
        of other tasks; they are left untouched, by weight decay too. Nothing is applied if the norm is not finite.
        `with_unit_norms`, the same on all ranks, takes the norm of each unit's gradient. Without it the host does not
        wait for an asynchronous device, except in DeepSpeed.
        """
        self._drop_gradients(absent)
        unit_norms = self._norms_by_unit(absent) if with_unit_norms else {}
        norm = self._clip()
        self._parameter_groups.set_rates(rates)
        self._apply(norm)
        self._decay_unused_rows(rates, norm)
        self.optimizer.zero_grad(set_to_none=True)
        return StepOutput(norm, unit_norms)

    def _drop_gradients(self, units: Sequence[str]) -> None:
        """Clears the zero gradients of heads without rows, which were in the graph because DDP waits for all heads."""
        for parameter in self._parameter_groups.parameters_of(units):
            parameter.grad = None

    def _norms_by_unit(self, absent: Sequence[str]) -> dict[str, float]:
        """Gradient norm of each trainable unit that is not in `absent`; the same on all ranks."""
        gradients: dict[str, list[Tensor]] = {unit: [] for unit in self.units if unit not in absent}
        for unit, parameters in self._parameter_groups.by_unit():
            found = [self.local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
            if found:
                gradients[unit] += found
        if not gradients:
            return {}
        zero = torch.zeros((), device=self.device)
        norms = [nn.utils.get_total_norm(found) if found else zero for found in gradients.values()]
        squares = self.sum_over_shards(torch.stack(norms).double().square())
        return dict(zip(gradients, squares.sqrt().tolist(), strict=True))

    def _clip(self) -> Tensor:
        """Clips the gradient to `max_grad_norm` in place; returns its norm before."""
        parameters = self._parameter_groups.parameters()
        norm = self.unshard(nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None]))
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        return norm

    def _apply(self, norm: Tensor) -> None:
        """Updates the parameters, unless `norm` is not finite."""
        if is_async(norm.device):
            # AdamW checks on the device, as it does for torch's gradient scaler; the host does not know the norm yet.
            optimizer: Any = self.optimizer  # found_inf is not in its type
            optimizer.found_inf = norm.isfinite().logical_not().float()
            optimizer.step()
        elif math.isfinite(norm):
            self.optimizer.step()

    def _decay_unused_rows(self, rates: Mapping[str, float], norm: Tensor) -> None:
        """Applies the update's weight decay to unused rows of token embeddings, which the optimizer lacks."""
        if "embeddings" in rates:
            self.trimmed_embeddings.decay(1 - rates["embeddings"] * self.config.weight_decay, norm)

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """All-reduces `tensor` in place, and returns it."""
        if self.processes.world_size > 1:
            dist.all_reduce(tensor)
        return tensor
