"""DeepSpeed ZeRO: ranks shard optimizer state (stage 1), gradients too (stage 2), and parameters too (stage 3).

Rajbhandari et al. 2020, arXiv:1910.02054. DeepSpeed flattens each parameter group, and trains only parameters that
required a gradient when it was initialized. Therefore it is initialized anew at each phase boundary. A parameter group
is one unit's matrices, or the rest of that unit: its members never change, so that a rank's shard of the optimizer
state is handed from one initialization to the next as it is.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from torch import Tensor, nn

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.base import Engine, StepOutput
from mtl_dist.engines.optimizer import adamw, set_rates
from mtl_dist.engines.zero_state import FlatOptimizerState
from mtl_dist.models.multitask import MultitaskTransformer

# An op for inference with a sharded model. On a CPU it would be compiled at the first start, which needs a compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's own calls

PERSISTENCE_THRESHOLD: int = 100_000
"""Elements below which stage 3 keeps a parameter whole on every rank; DeepSpeed's default."""


class _Autocasting(nn.Module):
    """Calls a model under autocast. DeepSpeed disables an autocast context that begins outside of its engine."""

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        super().__init__()
        self.accelerator = accelerator
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        with self.accelerator.autocast():
            return self.model(*inputs)


class ZeroRedundancy(Engine):
    """A model under DeepSpeed at one stage of ZeRO, with weights in float32; bf16 comes from autocast."""

    def __init__(
        self,
        accelerator: Accelerator,
        processes: ProcessGroup,
        model: MultitaskTransformer,
        config: OptimizerConfig,
        stage: int,
    ) -> None:
        self.forward_is_collective = stage == 3  # before the base class, which reads it
        super().__init__(accelerator, processes, model, config)
        self.name = f"zero{stage}"
        self._stage = stage
        self._groups = [dict(group) for group in self.optimizer.param_groups]
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        self._flat_state = FlatOptimizerState(self._groups, names, processes, stage)
        self._flat_parameters: dict[int, nn.Parameter] = {}
        """This rank's shard of each parameter group that is trainable, by the group's index."""
        self._absent: frozenset[str] = frozenset()
        """Units that the current step leaves untouched."""
        self._group_norms: list[Tensor] = []
        """Gradient norm of each parameter group in the current step, in the order of `_flat_parameters`."""
        self._autocasting = _Autocasting(accelerator, self.model)
        self.model_wrapped = self._autocasting
        self._deepspeed: Any = None

    # The phase boundary

    def wrap(self) -> None:
        # DeepSpeed cannot be initialized with nothing to train; the last one still gathers stage 3's parameters.
        if self.units:
            self._destroy_deepspeed()
            self._initialize_deepspeed()

    def _select_parameter_groups(self) -> None:
        """Does nothing: `_initialize_deepspeed` makes an optimizer of the trainable groups."""

    def _initialize_deepspeed(self) -> None:
        groups = [(index, group) for index, group in enumerate(self._groups) if group["unit"] in self.units]
        self.optimizer = adamw([dict(group) for _, group in groups], self.config)
        self.optimizer.register_step_pre_hook(self._drop_absent_gradients)
        self._deepspeed, *_ = deepspeed.initialize(
            model=self._autocasting,
            optimizer=self.optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,  # required, and used for DeepSpeed's throughput figures only
                "managed_gradient_accumulation": False,  # `step` is called when all micro-steps are done
                "gradient_clipping": self.config.max_grad_norm or 0.0,
                "zero_optimization": {
                    "stage": self._stage,
                    "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD,
                    "sub_group_size": 10**15,  # never splits a group
                },
            },
            dist_init_required=False,
        )
        self.model_wrapped = self._deepspeed
        zero: Any = self._deepspeed.optimizer
        flat = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        zero.get_grad_norm_direct = self._recording(zero.get_grad_norm_direct)
        self._flat_parameters = {index: parameter for (index, _), parameter in zip(groups, flat, strict=True)}
        self._flat_state.restore(self.optimizer, self._flat_parameters)

    def _destroy_deepspeed(self) -> None:
        """Removes DeepSpeed from the model, except that stage 3's parameters stay sharded."""
        self._flat_state.collect(self.optimizer, self._flat_parameters)
        self._flat_parameters = {}
        self.model_wrapped = self._autocasting
        if self._deepspeed is not None:
            self._finish_prefetches()
            # Otherwise the old engine stays alive, and active, in the hooks of modules and parameters.
            self._deepspeed.module_forward_pre_hook.remove()
            self._deepspeed.module_forward_post_hook.remove()
            self._deepspeed.destroy()
            self._deepspeed = None

    def check_replicas(self, when: str) -> None:
        if self._stage < 3:  # in stage 3 ranks hold different shards, of which there are no replicas
            super().check_replicas(when)

    # Forward, backward and the optimizer step

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._deepspeed.backward(loss * self.processes.world_size)

    def step(self, rates: Mapping[str, float], absent: Sequence[str], with_unit_norms: bool = False) -> StepOutput:
        set_rates(self.optimizer, rates)
        self._absent = frozenset(absent)
        self._group_norms.clear()
        self._deepspeed.step()  # clips; applies nothing if the norm is not finite
        unit_norms = self._norms_by_unit(absent) if with_unit_norms else {}
        overflow = self._deepspeed.optimizer.overflow
        norm = torch.tensor(math.inf if overflow else float(self._deepspeed.get_global_grad_norm()))
        self._decay_unused_rows(rates, norm)
        return StepOutput(norm, unit_norms)

    def _drop_absent_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Runs before the optimizer's step, and keeps it from changing units that are absent from the batch."""
        for group in optimizer.param_groups:
            if group["unit"] in self._absent:
                for flat in group["params"]:
                    flat.grad = None

    def _recording(self, grad_norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wraps DeepSpeed's norm of a group over all ranks, before clipping, so that each result is recorded."""

        def recorded(*args: Any, **kwargs: Any) -> Tensor:
            self._group_norms.append(grad_norm(*args, **kwargs))
            return self._group_norms[-1]

        return recorded

    def _norms_by_unit(self, absent: Sequence[str]) -> dict[str, float]:
        """NaN for all units if the gradient is not finite: DeepSpeed then stops before it has computed every norm."""
        units = [self._groups[index]["unit"] for index in self._flat_parameters]
        norms = [float(norm) for norm in self._group_norms]
        if len(norms) != len(units) or min(norms) < 0:  # DeepSpeed returns -1 for a norm that is not finite
            norms = [math.nan] * len(units)
        by_unit: dict[str, list[float]] = {}
        for unit, norm in zip(units, norms, strict=True):
            by_unit.setdefault(unit, []).append(norm)
        return {unit: math.hypot(*norms) for unit, norms in by_unit.items() if unit not in absent}

    # Weights and optimizer state by name

    def _gathering(self, parameter: nn.Parameter, source_rank: int | None = None) -> AbstractContextManager[None]:
        """Makes a parameter whole on every rank inside; afterwards all have what `source_rank` wrote into it."""
        if self._stage < 3:
            return nullcontext()
        return GatheredParameters([parameter], modifier_rank=source_rank)

    def _finish_prefetches(self) -> None:
        """Waits for parameters that stage 3 has begun to gather ahead of their use, and shards them again.

        Gathered by name meanwhile, they would stay registered as in flight, and the next forward pass would fail.
        """
        if self._stage == 3 and self._deepspeed is not None:
            self._deepspeed.optimizer.empty_partition_cache()

    def unsharded_parameters(self) -> Iterator[tuple[str, Tensor]]:
        self._finish_prefetches()
        for name, parameter in self.model.named_parameters():
            with self._gathering(parameter):
                yield name, parameter.detach()

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self._destroy_deepspeed()
        for name, parameter in self.model.named_parameters():
            with self._gathering(parameter, source_rank=0):
                parameter.copy_(weights[name])

    def unsharded_optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        self._flat_state.collect(self.optimizer, self._flat_parameters)
        return self._flat_state.unsharded()

    def load_optimizer_state(self, optimizer_state: Mapping[str, Tensor]) -> None:
        self._flat_state.load(optimizer_state, self.device)

    def local_optimizer_state_digests(self) -> dict[str, str]:
        """Digest of this rank's shard of each group's optimizer state, by the name of its first parameter."""
        self._flat_state.collect(self.optimizer, self._flat_parameters)
        return {name: self.local_state_digest(name, state) for name, state in self._flat_state.by_group()}

    def updated_parameters(self) -> set[str]:
        return {name for index in self._flat_parameters for name in self._flat_state.members[index]}
