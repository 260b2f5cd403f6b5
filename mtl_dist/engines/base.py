"""All that differs between ways of running: wrapping, exchange of gradients, the phase boundary, gathering of state.

`Engine` is the interface and what all have in common; `DataParallel` is one process, or several with the whole model
each. Every method is called by every rank, in the same order.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.data.collate import Batch
from mtl_dist.device import is_async
from mtl_dist.distributed.consistency import combined_digest, quick_digest, require_equal, tensor_digest
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.optimizer import ParameterGroups, build_optimizer
from mtl_dist.errors import TrainingError
from mtl_dist.models.frozen_linear import cache_frozen_casts
from mtl_dist.models.multitask import MultitaskTransformer, PrefixState
from mtl_dist.models.vocab_trimming import TrimmedEmbeddings

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for a parameter."""


class Engine(ABC):
    """A model with its optimizer on the processes of a run.

    `model` is the model itself; `model_wrapped` is what forward calls: the model, or DDP or DeepSpeed around it
    (the names of `transformers.Trainer`).
    """

    name: str
    forward_is_collective = False
    """Whether every forward is made by all ranks together, because none has all parameters."""

    def __init__(
        self, accelerator: Accelerator, processes: ProcessGroup, model: MultitaskTransformer, config: OptimizerConfig
    ) -> None:
        self.accelerator = accelerator
        self.processes = processes
        self.device = accelerator.device
        self.config = config
        self._tables = TrimmedEmbeddings(model)
        self.parameter_templates = self._tables.meta_like(model)
        """A tensor without content like each of `weights`."""
        self.model = self.shard_model(model.to(self.device))
        if not self.forward_is_collective:
            cache_frozen_casts(self.model)
        self.model_wrapped: nn.Module = self.model
        self.units: tuple[str, ...] = ()
        self.unit_norms: dict[str, float] = {}
        """Norm of each unit's gradient before clipping, of the last step that was to look closely."""
        self.optimizer = build_optimizer(self.model, self.model.unit_parameters(), config)
        self._parameter_groups = ParameterGroups(self.optimizer)
        self.dtype = self.model.sentence_transformer.encoder.dtype
        """Of the weights, and of logits."""
        self._autocast = nullcontext if accelerator.mixed_precision == "no" else accelerator.autocast

    # Where the engines differ

    def shard_model(self, model: MultitaskTransformer) -> MultitaskTransformer:
        """The model with its parameters as this engine keeps them."""
        return model

    @abstractmethod
    def wrap(self) -> None:
        """Makes `model` exchange the gradients of what is trainable now."""

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-step: gradients are exchanged in the last one only."""

    def reshard_parameters(self) -> None:  # noqa: B027 - most engines have nothing to do here
        """Leaves parameters as this engine keeps them, after forwards that no backward followed."""

    def unshard(self, tensor: Tensor) -> Tensor:
        """All of a parameter, a gradient or a moment, of which this rank may hold a part."""
        return tensor

    def local_shard(self, tensor: Tensor) -> Tensor:
        """What this rank holds of a parameter or a moment, as a plain tensor."""
        return tensor

    def shard_like(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """This rank's part of a whole `tensor`, as it keeps that of `parameter`."""
        return tensor.to(parameter.device)

    # The phase boundary

    def enter_phase(self, name: str, units: Sequence[str]) -> None:
        """Makes exactly `units` trainable.

        Checks that the ranks agree on them and on their state, that the optimizer has all that trains now, and that it
        has its moments from before: what trained keeps them, what thaws for the first time has none. Raises
        TrainingError on every rank, naming the first difference, where it is not so.
        """
        when = f"start of phase {name!r}"
        self.units = tuple(units)
        self._set_trainable()
        # Before wrapping, in which the first rank's weights might paper over a difference.
        self.check_equal(when)
        before = self._local_state_digests()
        self.wrap()
        self.processes.together(lambda: self._check_optimizer(when, before))

    def _set_trainable(self) -> None:
        by_unit = self.model.unit_parameters()
        trainable = {parameter for unit in self.units for parameter in by_unit[unit]}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trainable)
            parameter.grad = None
        self._choose_groups()

    def _choose_groups(self) -> None:
        """The optimizer looks at what trains; it keeps the moments of all."""
        self._parameter_groups.choose(self.units)

    def check_equal(self, when: str) -> None:
        """Compares trainable set and parameters among the ranks, and what else they hold alike.

        Raises TrainingError on every rank where they differ.
        """
        trainable = {
            f"the trainable set ({name})": str(parameter.requires_grad)
            for name, parameter in self.model.named_parameters()
        }
        parameters = {f"parameter {name}": quick_digest(name, tensor) for name, tensor in self._whole_parameters()}
        digests = trainable | parameters | self._tables.digests() | self._replicated_state_digests()
        require_equal(self.processes, when, digests)

    def check_replicas(self, when: str) -> None:
        """As `check_equal`, of what every rank holds a whole copy of; nothing is gathered for it."""
        if self.processes.world_size > 1:
            self.check_equal(when)

    def _replicated_state_digests(self) -> dict[str, str]:
        """Digests of moments that every rank should have alike, by what they are called in a message."""
        return {}

    def _check_optimizer(self, when: str, before: Mapping[str, str]) -> None:
        """Raises TrainingError where the optimizer is not the one this phase needs; `before` as in enter_phase."""
        where = f"{when}: rank {self.processes.rank}"
        known = self._optimized()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and name not in known:
                raise TrainingError(f"{where}: {name} is to train, and the optimizer does not have it")
        after = self._local_state_digests()
        for name in sorted({**before, **after}):
            if before.get(name) != after.get(name):
                raise TrainingError(f"{where}: the moments of {name} are not those from before")

    def _optimized(self) -> set[str]:
        """Names of the parameters that the optimizer's step would change."""
        held = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        return {name for name, parameter in self.model.named_parameters() if parameter in held}

    def _local_state_digests(self) -> dict[str, str]:
        """A digest of this rank's part of each parameter's moments, by name; those without are left out."""
        states = {name: self.optimizer.state.get(parameter) for name, parameter in self.model.named_parameters()}
        return {name: self._state_digest(name, state) for name, state in states.items() if state}

    def _state_digest(self, name: str, state: Mapping[str, Tensor]) -> str:
        return combined_digest({key: quick_digest(name, self.local_shard(state[key])) for key in ADAMW_STATE})

    # The training step

    def train_mode(self) -> None:
        """Trainable units in train mode, frozen ones in eval mode: a frozen module has no dropout."""
        self.model_wrapped.train()  # wrappers
        self.model.train_units(self.units)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around forwards that need no gradient: eval mode; afterwards as before."""
        self.model_wrapped.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.reshard_parameters()
            self.train_mode()

    def logits(self, batch: Batch, prefix: PrefixState | None = None) -> dict[str, Tensor]:
        """Logits [its rows, num_labels] of every task, in the weights' type whatever precision they come from.

        `prefix`, as from `run_prefix`, is not computed again.
        """
        with self._autocast():
            logits = self.model_wrapped(batch.input_ids, batch.attention_mask, batch.rows, batch.token_type_ids, prefix)
        return {task: values.to(self.dtype) for task, values in logits.items()}

    def run_prefix(self, depths: Sequence[int], batch: Batch) -> dict[int, Tensor]:
        """States at each of the prefix `depths`; see `MultitaskTransformer.run_prefix`."""
        with self._autocast():
            states = self.model.run_prefix(depths, batch.input_ids, batch.attention_mask, batch.token_type_ids)
        self.reshard_parameters()
        return states

    def backward(self, loss: Tensor) -> None:
        """Adds this rank's share of the global batch's gradient. The shares' sum is what the ranks hold afterwards."""
        # The engines divide by the number of ranks; our shares are parts of one mean already.
        (loss * self.processes.world_size if self.processes.world_size > 1 else loss).backward()

    def step(self, rates: Mapping[str, float], absent: Sequence[str], with_unit_norms: bool = False) -> Tensor:
        """Clips and applies the gradient, and clears it; returns its norm before clipping, no dimensions, anywhere.

        `rates` are by unit. The units in `absent` have no row in the global batch and are left untouched. Nothing is
        applied where the norm is not finite. With `with_unit_norms`, which every rank gives alike, `unit_norms` are
        taken; without it a device that works behind the host is not waited for, except by DeepSpeed.
        """
        self._drop_gradients(absent)
        if with_unit_norms:
            self.unit_norms = self._norms_by_unit(absent)
        norm = self._clip()
        self._parameter_groups.set_rates(rates)
        self._apply(norm)
        self._decay_set_aside(rates, norm)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _decay_set_aside(self, rates: Mapping[str, float], norm: Tensor) -> None:
        """After an update: the rows of token vectors that no text uses, of which the optimizer knows nothing."""
        if "embeddings" in rates:
            self._tables.decay(1 - rates["embeddings"] * self.config.weight_decay, norm)

    def _apply(self, norm: Tensor) -> None:
        """The update, unless `norm` is not finite."""
        if is_async(norm.device):
            # AdamW looks by itself, as it does for torch's gradient scaler: the host does not know the norm yet.
            optimizer: Any = self.optimizer  # whose type does not say it
            optimizer.found_inf = norm.isfinite().logical_not().float()
            optimizer.step()
        elif math.isfinite(norm):
            self.optimizer.step()

    def _drop_gradients(self, units: Sequence[str]) -> None:
        """Heads without rows took part all the same, because all ranks wait for every parameter."""
        for parameter in self._parameter_groups.parameters_of(units):
            parameter.grad = None

    def _norms_by_unit(self, absent: Sequence[str]) -> dict[str, float]:
        """Of the trainable units without those in `absent`. The same on every rank; nothing is changed."""
        gradients: dict[str, list[Tensor]] = {unit: [] for unit in self.units if unit not in absent}
        for unit, parameters in self._parameter_groups.by_unit():
            found = [self.local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
            if found:
                gradients[unit] += found
        if not gradients:
            return {}
        zero = torch.zeros((), device=self.device)
        norms = [nn.utils.get_total_norm(found) if found else zero for found in gradients.values()]
        squares = self.sum_over_shards(torch.stack(norms).double().square())
        return dict(zip(gradients, squares.sqrt().tolist(), strict=True))

    def sum_over_shards(self, sums: Tensor) -> Tensor:
        """Sums over whole gradients, of sums over what this rank holds of them."""
        return sums

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's `tensor`, which is changed."""
        if self.processes.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def _clip(self) -> Tensor:
        """Clips the gradient to `max_grad_norm` in place; returns its norm before."""
        parameters = self._parameter_groups.parameters()
        norm = self.unshard(nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None]))
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        return norm

    # State, whole and by name

    def parameter_digests(self) -> dict[str, str]:
        """SHA-256 of each parameter, sorted by name."""
        return self._digests(self._whole_parameters())

    def optimizer_state_digests(self) -> dict[str, str]:
        """SHA-256 of each moment, sorted by `<moment>/<parameter>`."""
        return self._digests(self._whole_optimizer_state())

    def _digests(self, tensors: Iterator[tuple[str, Tensor]]) -> dict[str, str]:
        digests = {name: tensor_digest(name, self._tables.expand(name, tensor.cpu())) for name, tensor in tensors}
        return dict(sorted(digests.items()))

    def weights(self) -> dict[str, Tensor]:
        """Every parameter by name, on the CPU of the first rank; empty on the others."""
        return self._gathered(self._whole_parameters())

    def optimizer_state(self) -> dict[str, Tensor]:
        """Every moment as `<moment>/<parameter>`, on the CPU of the first rank; empty on the others.

        With them goes how far the token vectors that no text uses have decayed.
        """
        moments = self._gathered(self._whole_optimizer_state())
        return moments | self._tables.decay_state() if self.processes.is_main else moments

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Puts weights and moments, named as by `weights` and `moments`, in place of those here.

        A phase is entered next. Raises UserError on every rank where they are of another encoder's run.
        """
        self.processes.together(lambda: self._tables.require_same_unused_rows(weights, moments))
        self._load_weights(self._tables.select_used_rows(weights))
        self._load_optimizer_state(self._tables.select_used_rows(moments))
        self._tables.load_decay_state(moments)

    @torch.no_grad()
    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.shard_like(weights[name], parameter))

    def _load_optimizer_state(self, moments: Mapping[str, Tensor]) -> None:
        self.optimizer.state.clear()
        for name, parameter in self.model.named_parameters():
            if f"{ADAMW_STATE[0]}/{name}" in moments:
                step, *rest = (moments[f"{key}/{name}"] for key in ADAMW_STATE)
                parts = [step.to(parameter.device), *(self.shard_like(moment, parameter) for moment in rest)]
                self.optimizer.state[parameter] = dict(zip(ADAMW_STATE, parts, strict=True))

    def _gathered(self, tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        kept = {}
        for name, tensor in tensors:  # one by one, so that no device holds a second model
            if self.processes.is_main:
                kept[name] = self._tables.expand(name, tensor.cpu()).contiguous()
        return kept

    def _whole_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            yield name, self.unshard(parameter.detach())

    def _whole_optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            if parameter in self.optimizer.state:
                for key in ADAMW_STATE:
                    yield f"{key}/{name}", self.unshard(self.optimizer.state[parameter][key])
