"""FSDP2: ranks shard parameters, gradients and optimizer state (Zhao et al. 2023, arXiv:2304.11277).

Uses torch's own `fully_shard` on every device, because Accelerate does not set it up on CPUs.
"""

from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.base import Engine
from mtl_dist.models.multitask import MultitaskTransformer


class FullySharded(Engine):
    """Shards each encoder block by itself; embeddings and heads form one more FSDP unit, gathered for a whole forward.

    Parameters are unfrozen in place. Weights keep their own type, as on the other engines; bf16 comes from autocast.
    """

    name = "fsdp2"
    forward_is_collective = True

    def __init__(
        self,
        accelerator: Accelerator,
        processes: ProcessGroup,
        model: MultitaskTransformer,
        config: OptimizerConfig,
        reshard_after_forward: bool = True,
    ) -> None:
        """`reshard_after_forward`: free a block's gathered parameters between forward and backward."""
        self._reshard_after_forward = reshard_after_forward
        super().__init__(accelerator, processes, model, config)

    def shard_model(self, model: MultitaskTransformer) -> MultitaskTransformer:
        mesh = init_device_mesh(self.device.type, (self.processes.world_size,))
        modules = model.unit_modules()
        for unit in modules:
            if unit.startswith("blocks."):
                fully_shard(modules[unit][0], mesh=mesh, reshard_after_forward=self._reshard_after_forward)
        fully_shard(model, mesh=mesh)  # in place
        register_fsdp_forward_method(model, "run_prefix")
        return model

    def reshard_parameters(self) -> None:
        # Parameters gathered by a forward stay gathered until its backward. Until then `named_parameters` are not those
        # that the optimizer knows, and a parameter that is unfrozen meanwhile would silently be frozen again.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def wrap(self) -> None:
        """Does nothing: each backward looks at which parameters require a gradient then."""

    def check_replicas(self, when: str) -> None:
        """Does nothing: ranks hold different shards, of which there are no replicas."""

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def sum_over_shards(self, sums: Tensor) -> Tensor:
        return self.sum_over_ranks(sums)

    def unshard(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def local_shard(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def shard_like(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        assert isinstance(parameter, DTensor)
        # Every rank has the whole tensor and keeps its shard; nothing is communicated.
        return distribute_tensor(
            tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
