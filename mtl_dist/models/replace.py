"""Replacing modules of a model by faster or smaller ones, without a change to its parameters, their names or order."""

import copy
from collections.abc import Callable

from torch import nn

_CONTAINERS = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
"""Attributes of a module that `share_state` copies, so that what is registered later belongs to one module only."""


def replace_modules(root: nn.Module, convert: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replaces every module below `root` for which `convert` returns another one, at each place that registers it.

    `convert` returns None for a module that stays. It is called once for each module, so that a module that several
    parents share is replaced by one that they share. Raises ValueError where `root` itself would have to be replaced,
    which only its owner can do.
    """
    if convert(root) is not None:
        raise ValueError(f"{type(root).__name__} is replaced in a module that holds it, not by itself")
    replacements = {module: convert(module) for module in list(root.modules())[1:]}
    for parent in [root, *replacements]:
        for name, child in parent._modules.items():
            replacement = None if child is None else replacements[child]
            if replacement is not None:
                parent._modules[name] = replacement


def share_state(source: nn.Module, target: nn.Module) -> None:
    """Gives `target` the parameters, buffers, hooks, training mode and settings of `source`.

    The class of `target` is derived from that of `source`. Parameters and buffers are the same tensors, so that
    optimizers and checkpoints notice no change; hooks are in the same dictionaries, so that their handles remove them.
    """
    vars(target).update(vars(source))
    for name in _CONTAINERS:
        vars(target)[name] = copy.copy(vars(source)[name])
