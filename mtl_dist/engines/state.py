"""Weights and optimizer state of a model by parameter name: gathering, loading and digests, whatever the sharding."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mtl_dist.distributed.consistency import combined_digest, quick_digest, tensor_digest
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.models.vocab_trimming import TrimmedEmbeddings

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
"""Tensors that AdamW keeps for each parameter: the number of its updates, the first and the second moment."""


class ModelState:
    """A model with its optimizer, whose state is gathered, loaded and digested by parameter name.

    Here every rank holds all of every tensor. Engines that shard tensors override `unshard`, `local_shard` and
    `shard_like`, or the methods that iterate over tensors. Every method is called by all ranks, in the same order.

    Gathered state is unsharded and has every row of the token embeddings, also those that `TrimmedEmbeddings` keeps
    outside of the model, so that a checkpoint fits any engine and any number of processes.
    """

    model: MultitaskTransformer
    """The model itself, without a wrapper around it."""
    optimizer: torch.optim.Optimizer

    def __init__(self, processes: ProcessGroup, model: MultitaskTransformer) -> None:
        self.processes = processes
        self.trimmed_embeddings = TrimmedEmbeddings(model)
        self.parameter_templates = self.trimmed_embeddings.meta_like(model)
        """Shape and type of each of `weights`, as tensors on the meta device."""

    # Sharding of one tensor

    def unshard(self, tensor: Tensor) -> Tensor:
        """The whole of a parameter, a gradient or an optimizer state tensor, of which this rank may hold a shard."""
        return tensor

    def local_shard(self, tensor: Tensor) -> Tensor:
        """This rank's shard of a parameter, a gradient or an optimizer state tensor, as a plain tensor."""
        return tensor

    def shard_like(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Shards the whole `tensor` as `parameter` is sharded, and moves it to that one's device."""
        return tensor.to(parameter.device)

    # Gathering and loading

    def weights(self) -> dict[str, Tensor]:
        """Every parameter by name, on the CPU of the main process; empty on other ranks."""
        return self._gather(self.unsharded_parameters())

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's state as `<key of ADAMW_STATE>/<parameter>`, on the CPU of the main process; empty on other ranks.

        Parameters that have not been updated yet have none. Contains `decay/<parameter>` too, the factor by which
        weight decay has scaled the unused rows of token embeddings.
        """
        state = self._gather(self.unsharded_optimizer_state())
        return state | self.trimmed_embeddings.decay_state() if self.processes.is_main else state

    def load(self, weights: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        """Replaces weights and optimizer state by those of a checkpoint, named as by the methods of these names.

        `enter_phase` has to follow. Raises UserError on all ranks if they belong to a run of another encoder.
        """
        with self.processes.raise_together():
            self.trimmed_embeddings.require_same_unused_rows(weights, optimizer_state)
        self.load_weights(self.trimmed_embeddings.select_used_rows(weights))
        self.load_optimizer_state(self.trimmed_embeddings.select_used_rows(optimizer_state))
        self.trimmed_embeddings.load_decay_state(optimizer_state)

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copies whole tensors, with the rows in use of trimmed embeddings, into the parameters."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.shard_like(weights[name], parameter))

    def load_optimizer_state(self, optimizer_state: Mapping[str, Tensor]) -> None:
        """Replaces the optimizer's state by whole tensors; parameters that are not in it have none afterwards."""
        self.optimizer.state.clear()
        for name, parameter in self.model.named_parameters():
            if f"{ADAMW_STATE[0]}/{name}" in optimizer_state:
                step, *averages = (optimizer_state[f"{key}/{name}"] for key in ADAMW_STATE)
                shards = [step.to(parameter.device), *(self.shard_like(average, parameter) for average in averages)]
                self.optimizer.state[parameter] = dict(zip(ADAMW_STATE, shards, strict=True))

    def unsharded_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and whole parameters, one by one, so that no device has to hold a second model."""
        for name, parameter in self.model.named_parameters():
            yield name, self.unshard(parameter.detach())

    def unsharded_optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """Names `<key of ADAMW_STATE>/<parameter>` and whole tensors, one by one."""
        for name, parameter in self.model.named_parameters():
            if parameter in self.optimizer.state:
                for key in ADAMW_STATE:
                    yield f"{key}/{name}", self.unshard(self.optimizer.state[parameter][key])

    def _gather(self, tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        gathered = {}
        for name, tensor in tensors:  # on all ranks, because each step of the iterator may be a collective
            if self.processes.is_main:
                gathered[name] = self.trimmed_embeddings.expand(name, tensor.cpu()).contiguous()
        return gathered

    # Digests

    def parameter_digests(self) -> dict[str, str]:
        """SHA-256 of each parameter, sorted by name."""
        return self._digests(self.unsharded_parameters())

    def optimizer_state_digests(self) -> dict[str, str]:
        """SHA-256 of each optimizer state tensor, sorted by `<key of ADAMW_STATE>/<parameter>`."""
        return self._digests(self.unsharded_optimizer_state())

    def _digests(self, tensors: Iterator[tuple[str, Tensor]]) -> dict[str, str]:
        digests = {
            name: tensor_digest(name, self.trimmed_embeddings.expand(name, tensor.cpu())) for name, tensor in tensors
        }
        return dict(sorted(digests.items()))

    def local_optimizer_state_digests(self) -> dict[str, str]:
        """Digest of this rank's shard of each parameter's optimizer state, by name; without those that have none."""
        states = {name: self.optimizer.state.get(parameter) for name, parameter in self.model.named_parameters()}
        return {name: self.local_state_digest(name, state) for name, state in states.items() if state}

    def local_state_digest(self, name: str, state: Mapping[str, Tensor]) -> str:
        """Digest of this rank's shards of the tensors of ADAMW_STATE in `state`."""
        return combined_digest({key: quick_digest(name, self.local_shard(state[key])) for key in ADAMW_STATE})

    def replicated_optimizer_state_digests(self) -> dict[str, str]:
        """Digests of the optimizer state that all ranks hold alike, by name; empty where it is sharded."""
        return {}

    def updated_parameters(self) -> set[str]:
        """Names of the parameters that the optimizer's step would update."""
        held = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        return {name for name, parameter in self.model.named_parameters() if parameter in held}
