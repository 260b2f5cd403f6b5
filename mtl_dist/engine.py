"""All that differs between one process and several: wrapping, gradient synchronisation, the phase boundary.

Every method is called by every rank, in the same order.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl_dist.digests import require_equal, tensor_digests
from mtl_dist.model import MultitaskTransformer
from mtl_dist.processes import Processes


class Engine:
    """One process, or several that each hold the whole model and average their gradients (DDP).

    DDP's reducer holds only the parameters that required a gradient when it was built, so that what thaws later would
    train unsynchronised, in silence. Therefore the model is wrapped again at each phase boundary.
    """

    def __init__(self, accelerator: Accelerator, processes: Processes, model: MultitaskTransformer) -> None:
        self.accelerator = accelerator
        self.processes = processes
        self.raw = model.to(accelerator.device)
        self.model: nn.Module = self.raw
        self.units: tuple[str, ...] = ()
        # Micro-steps and the mean are ours; Accelerate would divide the loss once more.
        accelerator.gradient_accumulation_steps = 1

    @property
    def name(self) -> str:
        return "ddp" if self.processes.world_size > 1 else "single"

    def enter_phase(self, name: str, units: Sequence[str]) -> None:
        """Makes exactly `units` trainable, and checks that the ranks agree on them and on every parameter.

        Raises TrainingError on every rank, naming the first difference, where they do not.
        """
        self.units = tuple(units)
        by_unit = self.raw.unit_parameters()
        trainable = {parameter for unit in units for parameter in by_unit[unit]}
        for parameter_name, parameter in self.raw.named_parameters():
            parameter.requires_grad_(parameter_name in trainable)
            parameter.grad = None
        self.check_equal(f"start of phase {name!r}")
        self._rewrap()

    def check_equal(self, when: str) -> None:
        """Compares trainable set and parameters among the ranks; raises TrainingError where they differ."""
        trainable = {
            f"the trainable set ({name})": str(parameter.requires_grad)
            for name, parameter in self.raw.named_parameters()
        }
        parameters = tensor_digests(dict(self.raw.named_parameters()))
        require_equal(self.processes, when, trainable | {f"parameter {key}": parameters[key] for key in parameters})

    def _rewrap(self) -> None:
        raw = self.raw
        # Accelerate marks what it has prepared and hands it back as it was: take off its marks, and its autocast.
        if raw.__dict__.pop("_original_forward", None) is not None:
            raw.__dict__.pop("forward", None)
        raw.__dict__.pop("_is_accelerate_prepared", None)
        self.accelerator._models.clear()
        # With nothing trainable there is nothing to synchronise, and DDP refuses to wrap.
        self.model = self.accelerator.prepare_model(raw, evaluation_mode=not self.units)
        if self.units and self.processes.world_size > 1 and not isinstance(self.model, DistributedDataParallel):
            raise RuntimeError("Accelerate did not wrap the model for several processes")

    def train_mode(self) -> None:
        """Trainable units in train mode, frozen ones in eval mode: a frozen module has no dropout."""
        self.raw.train_units(self.units)

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model for forwards that need no gradient, in eval mode; afterwards as before."""
        self.raw.eval()
        with torch.no_grad():
            yield self.raw
        self.train_mode()

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-step: gradients are exchanged in the last one only."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Adds this rank's share of the global batch's gradient. The shares' sum is what the ranks hold afterwards."""
        # DDP divides by the world size; our shares are parts of one mean already.
        self.accelerator.backward(loss * self.processes.world_size)

    def drop_gradients(self, units: Sequence[str]) -> None:
        """Takes the gradients of `units` away, so that the optimizer leaves them untouched in this step.

        Heads absent from the global batch took part with no row at all, because DDP waits for every parameter.
        """
        parameters = dict(self.raw.named_parameters())
        by_unit = self.raw.unit_parameters()
        for unit in units:
            for name in by_unit[unit]:
                parameters[name].grad = None

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        """Norm of the whole gradient before clipping, a scalar; the gradient is clipped to `max_norm` in place."""
        gradients = [parameter.grad for parameter in self.raw.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            trainable = [parameter for parameter in self.raw.parameters() if parameter.requires_grad]
            nn.utils.clip_grads_with_norm_(trainable, max_norm, norm)
        return norm

    def parameter_digests(self) -> dict[str, str]:
        """SHA-256 of each parameter of this rank, sorted by name."""
        return tensor_digests(dict(self.raw.named_parameters()))
