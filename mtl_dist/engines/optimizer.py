"""AdamW over all parameters of a run, in parameter groups by unit.

One optimizer lives from the first step to the last: it keeps the state of every parameter across phases, and a
parameter without a gradient (frozen, or of a head whose task is absent from the global batch) is changed neither by
momentum nor by weight decay.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mtl_dist.config.recipe import OptimizerConfig


def build_optimizer(
    model: nn.Module, unit_parameters: Mapping[str, Sequence[str]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW over the groups of `parameter_groups`, with frozen parameters in their groups from the start."""
    return adamw(parameter_groups(model, unit_parameters, config), config)


def parameter_groups(
    model: nn.Module, unit_parameters: Mapping[str, Sequence[str]], config: OptimizerConfig
) -> list[dict[str, Any]]:
    """One or two groups for each unit: matrices with weight decay; biases and normalisation weights without.

    `unit_parameters` are parameter names by unit. Each group has its unit's name under `unit`.
    """
    parameters = dict(model.named_parameters())
    groups = []
    for unit, names in unit_parameters.items():
        for decays in (True, False):
            members = [parameters[name] for name in names if (parameters[name].ndim > 1) == decays]
            if members:
                decay = config.weight_decay if decays else 0.0
                groups.append({"params": members, "unit": unit, "weight_decay": decay})
    return groups


def adamw(groups: Sequence[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over some or all of the groups of `parameter_groups`."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, rates: Mapping[str, float]) -> None:
    """Sets each group's learning rate to its unit's; 0 for units that are not in `rates`, which are frozen."""
    for group in optimizer.param_groups:
        group["lr"] = rates.get(group["unit"], 0.0)


class ParameterGroups:
    """The parameter groups of an AdamW that are trainable in a phase, joined where learning rate and decay are equal.

    The fused AdamW launches its kernels once for each group, so fewer groups make a step faster. Which group a
    parameter belongs to does not change its update.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer` is from `build_optimizer`; its `param_groups` are managed from here on."""
        self._optimizer = optimizer
        self._all = list(optimizer.param_groups)
        self._selected = self._all
        self._joined: tuple[int, ...] = ()
        """For each selected group, the index of the first one with its learning rate and decay."""

    def select(self, units: Collection[str]) -> None:
        """Restricts the optimizer's step to `units`; the optimizer keeps the state of all parameters."""
        self._selected = self._optimizer.param_groups = [group for group in self._all if group["unit"] in units]
        self._joined = ()

    def parameters(self) -> list[nn.Parameter]:
        """All selected parameters, in an order that does not depend on learning rates."""
        return [parameter for group in self._selected for parameter in group["params"]]

    def by_unit(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Unit and parameters of each selected group; a unit may have two groups."""
        return ((group["unit"], group["params"]) for group in self._selected)

    def parameters_of(self, units: Collection[str]) -> list[nn.Parameter]:
        """Parameters of those of `units` that are selected."""
        return [parameter for group in self._selected if group["unit"] in units for parameter in group["params"]]

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Sets the learning rate of each selected unit, and joins groups anew if other ones are equal now."""
        firsts: dict[tuple[float, float], int] = {}
        keys = [(rates[group["unit"]], group["weight_decay"]) for group in self._selected]
        joined = tuple(firsts.setdefault(key, index) for index, key in enumerate(keys))
        if joined != self._joined:
            self._joined = joined
            self._optimizer.param_groups = [self._join(first) for first in firsts.values()]
        set_rates(self._optimizer, rates)

    def _join(self, first: int) -> dict[str, Any]:
        """The selected group `first` with the parameters of all groups that are joined to it."""
        groups = [group for group, index in zip(self._selected, self._joined, strict=True) if index == first]
        parameters = [parameter for group in groups for parameter in group["params"]]
        return {**self._selected[first], "params": parameters}
