"""One process, or several that each hold the whole model and average their gradients (DDP)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.base import Engine
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.models.vocab_trimming import PLACEHOLDER_TOKEN


class DataParallel(Engine):
    """One process, or several that each hold the whole model and average their gradients (DDP).

    DDP's reducer holds only the parameters that required a gradient when it was built, so that what thaws later would
    train unsynchronised, in silence. Therefore the model is wrapped again at each phase boundary.
    """

    def __init__(
        self, accelerator: Accelerator, processes: ProcessGroup, model: MultitaskTransformer, config: OptimizerConfig
    ) -> None:
        super().__init__(accelerator, processes, model, config)
        self.name = "ddp" if processes.world_size > 1 else "single"

    def wrap(self) -> None:
        self.model_wrapped = self.model
        # With nothing trainable there is nothing to exchange, and DDP refuses to wrap.
        if self.units and self.processes.world_size > 1:
            self.model_wrapped = DistributedDataParallel(
                self.model,
                device_ids=None if self.device.type == "cpu" else [self.device],
                forward_sync_buffers=False,
                init_sync=False,  # the ranks have just compared their parameters
                gradient_as_bucket_view=True,
            )
            self._lay_out_gradients()

    def _lay_out_gradients(self) -> None:
        """One backward of nothing, after which DDP keeps the layout of its buckets.

        It lays gradients out anew after its first backward. Among three ranks or more the order of a sum, and with it
        the rounding, depends on the layout, so that a run that goes on within a phase would differ in the last bits.
        """
        tokens = torch.full((1, 2), PLACEHOLDER_TOKEN, device=self.device)
        row = torch.zeros(1, dtype=torch.int64, device=self.device)
        logits = self.model_wrapped(tokens, torch.ones_like(tokens), dict.fromkeys(self.model.heads, row), None)
        torch.stack([one.sum() for one in logits.values()]).sum().mul(0).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _replicated_state_digests(self) -> dict[str, str]:
        return {f"moments of {name}": digest for name, digest in self._local_state_digests().items()}

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return (
            self.model_wrapped.no_sync()
            if isinstance(self.model_wrapped, DistributedDataParallel) and not last
            else nullcontext()
        )
