"""AdamW over all parameters of the run, in parameter groups by unit.

One optimizer lives from the first step to the last: moments survive a thaw, and a parameter without a gradient
(frozen, or of a head whose task is absent from the global batch) is touched neither by momentum nor by decay.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mtl_dist.config.recipe import OptimizerConfig


def build_optimizer(
    model: nn.Module, unit_parameters: Mapping[str, Sequence[str]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW with up to two groups a unit: matrices with weight decay; biases and normalisation weights without.

    Each group carries `unit`, by which `set_rates` finds it. Frozen parameters belong to their groups from the start.
    """
    return adamw(parameter_groups(model, unit_parameters, config), config)


def parameter_groups(
    model: nn.Module, unit_parameters: Mapping[str, Sequence[str]], config: OptimizerConfig
) -> list[dict[str, Any]]:
    """The groups of `build_optimizer`, while each parameter still has its shape."""
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
    """AdamW over `groups`, some or all of those of `parameter_groups`."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, rates: Mapping[str, float]) -> None:
    """Gives each group its unit's rate; groups of frozen units get 0, though nothing of theirs has a gradient."""
    for group in optimizer.param_groups:
        group["lr"] = rates.get(group["unit"], 0.0)


class ParameterGroups:
    """The groups of an AdamW that train now. Units of one rate are joined: each group is a call in every step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer` as from `build_optimizer`."""
        self._optimizer = optimizer
        self._every = list(optimizer.param_groups)
        self._chosen = self._every
        self._joined: tuple[int, ...] = ()
        """For each chosen group, the first one of its rate and decay."""

    def choose(self, units: Collection[str]) -> None:
        """Only `units` train from here on; the optimizer keeps the moments of all."""
        self._chosen = self._optimizer.param_groups = [group for group in self._every if group["unit"] in units]
        self._joined = ()

    def parameters(self) -> list[nn.Parameter]:
        """All that train, in an order that does not depend on rates."""
        return [parameter for group in self._chosen for parameter in group["params"]]

    def by_unit(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Units that train, each once or twice, with parameters of theirs."""
        return ((group["unit"], group["params"]) for group in self._chosen)

    def parameters_of(self, units: Collection[str]) -> list[nn.Parameter]:
        """Those of some of the units that train."""
        return [parameter for group in self._chosen if group["unit"] in units for parameter in group["params"]]

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Gives each unit its rate."""
        firsts: dict[tuple[float, float], int] = {}
        keys = [(rates[group["unit"]], group["weight_decay"]) for group in self._chosen]
        joined = tuple(firsts.setdefault(key, index) for index, key in enumerate(keys))
        if joined != self._joined:
            self._joined = joined
            self._optimizer.param_groups = [
                {
                    **self._chosen[first],
                    "params": [
                        parameter
                        for group, its_first in zip(self._chosen, joined, strict=True)
                        if its_first == first
                        for parameter in group["params"]
                    ],
                }
                for first in firsts.values()
            ]
        set_rates(self._optimizer, rates)
