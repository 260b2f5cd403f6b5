"""AdamW's state under DeepSpeed ZeRO: this rank's flat shard for each parameter group, across phases."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.state import ADAMW_STATE
from mtl_dist.engines.zero_layout import FlatLayout


class FlatOptimizerState:
    """This rank's shards of AdamW's state, kept while DeepSpeed is set up anew for another phase.

    The parameter groups are those of `parameter_groups`. Their members never change, so that a shard can be
    handed from one set-up to the next as it is. DeepSpeed gives each group one flat parameter, this rank's shard, for
    which the optimizer keeps its state.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        names: Mapping[nn.Parameter, str],
        processes: ProcessGroup,
        stage: int,
    ) -> None:
        """`names` are by parameter. Called before DeepSpeed shards the parameters: their shapes have to be whole."""
        self._processes = processes
        self.members = [[names[parameter] for parameter in group["params"]] for group in groups]
        """Names of the parameters of each group."""
        self._layouts = [
            FlatLayout(tuple(parameter.shape for parameter in group["params"]), processes.world_size, stage == 3)
            for group in groups
        ]
        self._states: list[dict[str, Tensor]] = [{} for _ in groups]
        """State of each group by key of ADAMW_STATE; empty if it has never been updated."""

    def collect(self, optimizer: torch.optim.Optimizer, flat_parameters: Mapping[int, nn.Parameter]) -> None:
        """Takes over the state that `optimizer` has made; `flat_parameters` are by index of the group."""
        for index, flat in flat_parameters.items():
            self._states[index] = optimizer.state.get(flat, {})

    def restore(self, optimizer: torch.optim.Optimizer, flat_parameters: Mapping[int, nn.Parameter]) -> None:
        """Hands the kept state to an optimizer that has been set up anew: the inverse of `collect`."""
        for index, flat in flat_parameters.items():
            assert flat.numel() == self._layouts[index].shard_size, "DeepSpeed shards a group in another layout"
            if self._states[index]:
                optimizer.state[flat] = self._states[index]

    def by_group(self) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """The first parameter's name and this rank's shards, for each group that has state."""
        return ((names[0], state) for names, state in zip(self.members, self._states, strict=True) if state)

    def unsharded(self) -> Iterator[tuple[str, Tensor]]:
        """Names `<key of ADAMW_STATE>/<parameter>` and whole tensors; all ranks iterate together."""
        for names, layout, state in zip(self.members, self._layouts, self._states, strict=True):
            if not state:
                continue
            step, *shards = (state[key] for key in ADAMW_STATE)
            whole = [layout.unshard(self._all_gather(shard)) for shard in shards]
            for name, *tensors in zip(names, *whole, strict=True):
                for key, tensor in zip(ADAMW_STATE, (step.clone(), *tensors), strict=True):
                    yield f"{key}/{name}", tensor

    def _all_gather(self, shard: Tensor) -> Tensor:
        """Shards of all ranks, [world_size, shard_size]."""
        shards = shard.new_empty(self._processes.world_size, len(shard))
        dist.all_gather(list(shards), shard)
        return shards

    def load(self, optimizer_state: Mapping[str, Tensor], device: torch.device) -> None:
        """Keeps this rank's shards of whole tensors, named as by `unsharded`; groups that are not in it have none."""
        step_key, *moment_keys = ADAMW_STATE
        for index, (names, layout) in enumerate(zip(self.members, self._layouts, strict=True)):
            self._states[index] = {}
            if f"{step_key}/{names[0]}" in optimizer_state:
                self._states[index][step_key] = optimizer_state[f"{step_key}/{names[0]}"].to(device)
                for key in moment_keys:
                    shards = layout.shard([optimizer_state[f"{key}/{name}"] for name in names])
                    self._states[index][key] = shards[self._processes.rank].to(device, copy=True)
