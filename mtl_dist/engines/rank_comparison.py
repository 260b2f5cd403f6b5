"""Checks that all ranks hold the same model and that the optimizer is the one that a phase needs."""

from collections.abc import Mapping

from mtl_dist.distributed.consistency import quick_digest, require_equal
from mtl_dist.engines.state import ModelState
from mtl_dist.errors import TrainingError


def compare_ranks(state: ModelState, when: str) -> None:
    """Compares the trainable set, parameters, replicated optimizer state and unused token embeddings among ranks.

    Gathers parameters that are sharded. Raises TrainingError on all ranks, with `when` and the first difference.
    """
    trainable = {
        f"the trainable set ({name})": str(parameter.requires_grad)
        for name, parameter in state.model.named_parameters()
    }
    parameters = {f"parameter {name}": quick_digest(name, tensor) for name, tensor in state.unsharded_parameters()}
    optimizer = {
        f"optimizer state of {name}": digest for name, digest in state.replicated_optimizer_state_digests().items()
    }
    require_equal(state.processes, when, trainable | parameters | state.trimmed_embeddings.digests() | optimizer)


def check_optimizer(state: ModelState, when: str, before: Mapping[str, str]) -> None:
    """Checks that the optimizer holds every trainable parameter, and the state that it had before wrapping.

    `before` are `local_optimizer_state_digests` from then. Parameters that have just been unfrozen have no state yet.
    Raises TrainingError, on this rank alone.
    """
    where = f"{when}: rank {state.processes.rank}"
    updated = state.updated_parameters()
    for name, parameter in state.model.named_parameters():
        if parameter.requires_grad and name not in updated:
            raise TrainingError(f"{where}: {name} is to train, and the optimizer does not have it")
    after = state.local_optimizer_state_digests()
    for name in sorted({**before, **after}):
        if before.get(name) != after.get(name):
            raise TrainingError(f"{where}: the optimizer state of {name} is not the one from before")
