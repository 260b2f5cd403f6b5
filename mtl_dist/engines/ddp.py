"""One process, or several processes that each hold the whole model and all-reduce their gradients (DDP)."""

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
    """One process, or several processes under `DistributedDataParallel`.

    DDP's reducer holds only the parameters that required a gradient when it was built, so that parameters unfrozen
    later would silently train without synchronisation. Therefore the model is wrapped again at each phase boundary.
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
            self._fix_bucket_layout()

    def _fix_bucket_layout(self) -> None:
        """Runs one backward of a zero loss, after which DDP keeps the layout of its gradient buckets.

        DDP rebuilds its buckets after the first backward. With three ranks or more the order of summation, and with it
        the rounding, depends on their layout: a run that is resumed within a phase would differ in the last bits.
        """
        tokens = torch.full((1, 2), PLACEHOLDER_TOKEN, device=self.device)
        row = torch.zeros(1, dtype=torch.int64, device=self.device)
        logits = self.model_wrapped(tokens, torch.ones_like(tokens), dict.fromkeys(self.model.heads, row), None)
        torch.stack([one.sum() for one in logits.values()]).sum().mul(0).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        wrapped = self.model_wrapped
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()

    def replicated_optimizer_state_digests(self) -> dict[str, str]:
        return self.local_optimizer_state_digests()
