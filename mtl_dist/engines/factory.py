"""The engine that a launch requests. The only module that knows all engines."""

import os
from collections.abc import Callable
from functools import partial

from accelerate import Accelerator
from accelerate.utils import DistributedType

from mtl_dist.config.recipe import OptimizerConfig, Recipe
from mtl_dist.distributed.launch_request import LaunchRequest
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.base import Engine
from mtl_dist.engines.ddp import DataParallel
from mtl_dist.engines.fsdp2 import FullySharded
from mtl_dist.errors import UserError
from mtl_dist.models.multitask import MultitaskTransformer

EngineClass = Callable[[Accelerator, ProcessGroup, MultitaskTransformer, OptimizerConfig], Engine]


def engine_class_of(request: LaunchRequest, recipe: Recipe, device_type: str) -> EngineClass:
    """The class of the requested engine, with its own settings bound. Raises UserError if it cannot run `recipe`."""
    if request.engine in (DistributedType.FSDP, DistributedType.DEEPSPEED) and (
        recipe.tracking.gradient_cosine_every_steps is not None
    ):
        raise UserError(
            "tracking.gradient_cosine_every_steps: needs the whole of a block on every rank, which FSDP2 and DeepSpeed"
            " share out; set null, or use one process or DDP"
        )
    match request.engine:
        case DistributedType.FSDP:
            reshard = request.settings.get("fsdp_reshard_after_forward", True)
            return partial(FullySharded, reshard_after_forward=reshard)
        case DistributedType.DEEPSPEED:
            return zero_class(request.settings["zero_stage"], recipe, device_type)
        case _:
            return DataParallel


def zero_class(stage: int, recipe: Recipe, device_type: str) -> EngineClass:
    """The class of a ZeRO engine of `stage`. Raises UserError if DeepSpeed cannot run `recipe`."""
    if recipe.model.dtype != "float32":
        raise UserError(
            f"model.dtype: DeepSpeed keeps weights and optimizer state in float32, not {recipe.model.dtype};"
            " use float32, or one process, DDP or FSDP2"
        )
    if device_type == "cpu":  # otherwise DeepSpeed takes a GPU if there is one
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Imported here because DeepSpeed is an optional dependency, and slow to import.
    from mtl_dist.engines.zero import ZeroRedundancy

    return partial(ZeroRedundancy, stage=stage)
