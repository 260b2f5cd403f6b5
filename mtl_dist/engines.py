"""Which engine a launch asks for. The only module that knows them all."""

from collections.abc import Callable
from functools import partial

from accelerate import Accelerator
from accelerate.utils import DistributedType

from mtl_dist.engine import DataParallel, Engine
from mtl_dist.engine_fsdp2 import FullySharded
from mtl_dist.launch_guard import Asked
from mtl_dist.model import MultitaskTransformer
from mtl_dist.processes import Processes
from mtl_dist.recipe import OptimizerConfig

EngineClass = Callable[[Accelerator, Processes, MultitaskTransformer, OptimizerConfig], Engine]


def engine_class_of(asked: Asked) -> EngineClass:
    """What makes the engine that was asked for."""
    if asked.engine == DistributedType.FSDP:
        return partial(FullySharded, reshard_after_forward=asked.settings.get("fsdp_reshard_after_forward", True))
    return DataParallel
