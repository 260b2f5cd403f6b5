"""Trains one shared encoder for several tasks, unfrozen in phases: the same run on any number of processes.

The names below are loaded when they are first used, so that importing a module of the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_dist.config.recipe import Recipe
    from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer

__version__ = "0.1.0"
__all__ = ["MultitaskTransformer", "Recipe", "SentenceTransformer", "__version__"]

_HOME = {
    "MultitaskTransformer": "mtl_dist.models.multitask",
    "Recipe": "mtl_dist.config.recipe",
    "SentenceTransformer": "mtl_dist.models.multitask",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
