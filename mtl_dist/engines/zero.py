"""DeepSpeed ZeRO: the ranks share out moments (stage 1), gradients too (2), parameters too (3).

Rajbhandari et al. 2020, arXiv:1910.02054. DeepSpeed flattens each group of its optimizer, and holds what requires a
gradient when it is set up, for good. Therefore it is set up anew at each phase boundary. A group here is one unit's
matrices, or the rest of that unit. So its members never change, and a rank's part of its moments can be kept from one
set-up to the next as it is.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from accelerate import Accelerator
from deepspeed.runtime.zero.partition_parameters import GatheredParameters
from torch import Tensor, nn
from torch.nn.functional import pad

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.base import ADAMW_STATE, Engine
from mtl_dist.engines.optimizer import adamw, set_rates
from mtl_dist.models.multitask import MultitaskTransformer

# For inference with a split model; on a CPU it would be compiled at the first start, and a compiler be needed.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's own calls

PERSISTENCE_THRESHOLD: int = 100_000
"""DeepSpeed's own: stage 3 keeps parameters of fewer elements whole on every rank."""


class _Autocasting(nn.Module):
    """Calls a model under autocast. DeepSpeed switches off one that begins outside of it."""

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        super().__init__()
        self.accelerator = accelerator
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        with self.accelerator.autocast():
            return self.model(*inputs)


@dataclass(frozen=True)
class FlatLayout:
    """How DeepSpeed cuts the tensors of a group among the ranks, into one flat part for each."""

    shapes: tuple[torch.Size, ...]
    world_size: int
    by_tensor: bool
    """Stage 3 gives each rank a part of every tensor; the others lay all end to end, and cut that."""

    @property
    def width(self) -> int:
        """Elements of a rank's part."""
        return sum(self._widths)

    @property
    def _runs(self) -> list[int]:
        """Elements of each run that is cut by itself."""
        sizes = [shape.numel() for shape in self.shapes]
        return sizes if self.by_tensor else [sum(sizes)]

    @property
    def _widths(self) -> list[int]:
        """Elements of a rank's part of each run; zeros fill up the last rank's."""
        unit = 1 if self.by_tensor else 2  # DeepSpeed's alignment
        return [math.ceil(size / (unit * self.world_size)) * unit for size in self._runs]

    def shards(self, tensors: Sequence[Tensor]) -> Tensor:
        """The parts of all ranks, [world size, width]."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        runs = zip(flat.split(self._runs), self._widths, strict=True)
        cut = [pad(run, (0, width * self.world_size - len(run))).view(self.world_size, -1) for run, width in runs]
        return torch.cat(cut, dim=1)

    def tensors(self, shards: Tensor) -> list[Tensor]:
        """The inverse of `shards`."""
        runs = zip(shards.split(self._widths, dim=1), self._runs, strict=True)
        flat = torch.cat([run.flatten()[:size] for run, size in runs])
        sizes = [shape.numel() for shape in self.shapes]
        return [part.view(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]


class ZeroRedundancy(Engine):
    """A model under DeepSpeed at one stage of ZeRO, with weights in float32; bf16 is autocast's."""

    def __init__(
        self,
        accelerator: Accelerator,
        processes: ProcessGroup,
        model: MultitaskTransformer,
        config: OptimizerConfig,
        stage: int,
    ) -> None:
        self.forward_is_collective = stage == 3  # which is asked for on the way
        super().__init__(accelerator, processes, model, config)
        self.name = f"zero{stage}"
        self._stage = stage
        self._groups = [dict(group) for group in self.optimizer.param_groups]
        self._layouts = [
            FlatLayout(
                tuple(parameter.shape for parameter in group["params"]), processes.world_size, by_tensor=stage == 3
            )
            for group in self._groups
        ]
        self._kept: list[dict[str, Tensor]] = [{} for _ in self._groups]
        """By group, this rank's part of its moments; empty where it never trained."""
        self._flats: dict[int, nn.Parameter] = {}
        """By index of a group, this rank's part of its parameters, for which the optimizer keeps moments."""
        self._absent: frozenset[str] = frozenset()
        self._group_norms: list[Tensor] = []
        """Norm of each group's gradient in the step that is being made, in the order of `_flats`."""
        self._forward = _Autocasting(accelerator, self.model)
        self.model_wrapped = self._forward
        self._deepspeed: Any = None

    # The phase boundary

    def wrap(self) -> None:
        # With nothing to train DeepSpeed cannot be set up; what there is still gathers stage 3's parameters.
        if self.units:
            self._take_down()
            self._set_up()

    def _choose_groups(self) -> None:
        """Chosen by the set-up."""

    def _set_up(self) -> None:
        groups = [(index, group) for index, group in enumerate(self._groups) if group["unit"] in self.units]
        self.optimizer = adamw([dict(group) for _, group in groups], self.config)
        self.optimizer.register_step_pre_hook(self._leave_out_absent)
        self._deepspeed, *_ = deepspeed.initialize(
            model=self._forward,
            optimizer=self.optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,  # asked for, and used for its figures alone
                "managed_gradient_accumulation": False,  # `step` is called when all micro-steps are done
                "gradient_clipping": self.config.max_grad_norm or 0.0,
                "zero_optimization": {
                    "stage": self._stage,
                    "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD,
                    "sub_group_size": 10**15,  # never a group in two
                },
            },
            dist_init_required=False,
        )
        self.model_wrapped = self._deepspeed
        zero: Any = self._deepspeed.optimizer
        flats = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        zero.get_grad_norm_direct = self._noting(zero.get_grad_norm_direct)
        self._flats = {index: flat for (index, _), flat in zip(groups, flats, strict=True)}
        for index, flat in self._flats.items():
            assert flat.numel() == self._layouts[index].width, "DeepSpeed lays groups out in another way than we do"
            if self._kept[index]:
                self.optimizer.state[flat] = self._kept[index]

    def _take_down(self) -> None:
        """Leaves the model without DeepSpeed, except that stage 3's parameters stay shared out."""
        self._collect()
        self._flats = {}
        self.model_wrapped = self._forward
        if self._deepspeed is not None:
            # Else the old engine lives on, and acts, in the hooks of modules and parameters.
            self._deepspeed.module_forward_pre_hook.remove()
            self._deepspeed.module_forward_post_hook.remove()
            self._deepspeed.destroy()
            self._deepspeed = None

    def _collect(self) -> None:
        """Takes up the moments that the optimizer has made since the set-up."""
        for index, flat in self._flats.items():
            self._kept[index] = self.optimizer.state.get(flat, {})

    def _optimized(self) -> set[str]:
        trained = {parameter for index in self._flats for parameter in self._groups[index]["params"]}
        return {name for name, parameter in self.model.named_parameters() if parameter in trained}

    def _local_state_digests(self) -> dict[str, str]:
        """By the name of a group's first parameter."""
        self._collect()
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        firsts = [names[group["params"][0]] for group in self._groups]
        return {name: self._state_digest(name, state) for name, state in zip(firsts, self._kept, strict=True) if state}

    def check_replicas(self, when: str) -> None:
        if self._stage < 3:  # in stage 3 no rank holds what another one has
            super().check_replicas(when)

    # The training step

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._deepspeed.backward(loss * self.processes.world_size)

    def step(self, rates: Mapping[str, float], absent: Sequence[str], with_unit_norms: bool = False) -> Tensor:
        set_rates(self.optimizer, rates)
        self._absent = frozenset(absent)
        self._group_norms.clear()
        self._deepspeed.step()  # clips; applies nothing where the norm is not finite
        if with_unit_norms:
            self.unit_norms = self._norms_by_unit(absent)
        overflow = self._deepspeed.optimizer.overflow
        norm = torch.tensor(math.inf if overflow else float(self._deepspeed.get_global_grad_norm()))
        self._decay_set_aside(rates, norm)
        return norm

    def _noting(self, norm_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """DeepSpeed's norm of a group over all ranks, before clipping, kept when it makes it: later it is gone."""

        def noting(*arguments: Any, **named: Any) -> Tensor:
            self._group_norms.append(norm_of(*arguments, **named))
            return self._group_norms[-1]

        return noting

    def _norms_by_unit(self, absent: Sequence[str]) -> dict[str, float]:
        """NaN for all where the gradient is not finite: DeepSpeed then gives up before it has made every norm."""
        units = [self._groups[index]["unit"] for index in self._flats]
        norms = [float(norm) for norm in self._group_norms]
        if len(norms) != len(units) or min(norms) < 0:  # -1 stands for what is not finite
            norms = [math.nan] * len(units)
        of_units: dict[str, list[float]] = {}
        for unit, norm in zip(units, norms, strict=True):
            of_units.setdefault(unit, []).append(norm)
        return {unit: math.hypot(*found) for unit, found in of_units.items() if unit not in absent}

    def _leave_out_absent(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if group["unit"] in self._absent:
                for flat in group["params"]:
                    flat.grad = None

    # State, whole and by name

    def _gathering(self, parameter: nn.Parameter, writer: int | None = None) -> AbstractContextManager[None]:
        """Inside, a parameter is whole on every rank; afterwards all have what rank `writer` wrote into it."""
        if self._stage < 3:
            return nullcontext()
        return GatheredParameters([parameter], modifier_rank=writer)

    def _whole_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            with self._gathering(parameter):
                yield name, parameter.detach()

    @torch.no_grad()
    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self._take_down()
        for name, parameter in self.model.named_parameters():
            with self._gathering(parameter, writer=0):
                parameter.copy_(weights[name])

    def _whole_optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        self._collect()
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for group, layout, moments in zip(self._groups, self._layouts, self._kept, strict=True):
            if not moments:
                continue
            step, *rest = (moments[key] for key in ADAMW_STATE)
            whole = [layout.tensors(self._all_shards(part)) for part in rest]
            for parameter, *tensors in zip(group["params"], *whole, strict=True):
                for key, tensor in zip(ADAMW_STATE, (step.clone(), *tensors), strict=True):
                    yield f"{key}/{names[parameter]}", tensor

    def _all_shards(self, shard: Tensor) -> Tensor:
        """Every rank's part, [world size, elements of a part]."""
        shards = shard.new_empty(self.processes.world_size, len(shard))
        dist.all_gather_single(shards.view(-1), shard)
        return shards

    def _load_optimizer_state(self, moments: Mapping[str, Tensor]) -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for index, (group, layout) in enumerate(zip(self._groups, self._layouts, strict=True)):
            members = [names[parameter] for parameter in group["params"]]
            self._kept[index] = {}
            if f"{ADAMW_STATE[0]}/{members[0]}" in moments:
                self._kept[index][ADAMW_STATE[0]] = moments[f"{ADAMW_STATE[0]}/{members[0]}"].to(self.device)
                for key in ADAMW_STATE[1:]:
                    shards = layout.shards([moments[f"{key}/{name}"] for name in members])
                    self._kept[index][key] = shards[self.processes.rank].to(self.device, copy=True)
