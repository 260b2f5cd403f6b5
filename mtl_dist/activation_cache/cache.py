"""Caches the states of the encoder's frozen layers: computed once per text, read while no layer below is trained.

Training reads states by text from memory that the processes of a machine share; evaluation, whose batches are always
the same, by batch. Every text is computed in its compute group (see `groups`), so that its states have the same bits
whichever rank computes them and when, also in a run that resumes, whose cache starts empty.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtl_dist.activation_cache.groups import ComputeGroups, DistinctTexts
from mtl_dist.activation_cache.policy import (
    GIB,
    CacheAllocation,
    TextCounts,
    choose_what_to_cache,
    find_spans,
    reason_not_to_count_texts,
)
from mtl_dist.activation_cache.store import ActivationStore
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.collate import Batch
from mtl_dist.data.dataset import DataBundle
from mtl_dist.device import to_device
from mtl_dist.engines.base import Engine
from mtl_dist.models.multitask import PrefixState
from mtl_dist.schedule.partition import partition_batch
from mtl_dist.schedule.phases import Phase, Schedule
from mtl_dist.schedule.sampler import GlobalBatch, TaskBalancedSampler
from mtl_dist.train_state import TrainState

logger = logging.getLogger(__name__)

Parts = Sequence[Sequence[np.ndarray]]
"""Partition of a global batch: positions in it, indexed by [micro-step][rank]."""


class ActivationCache:
    """Provides the states from which forward passes start, where these are cached. All ranks make the same calls."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        data: DataBundle,
        sampler: TaskBalancedSampler,
        schedule: Schedule,
        micro_steps: int,
    ) -> None:
        """`schedule` is the one before early stopping. Logs one line for each span, whether it is cached or not."""
        self._engine = engine
        self._data = data
        self._sampler = sampler
        self._schedule = schedule
        self._partition = lambda lengths: partition_batch(
            lengths, engine.processes.world_size, micro_steps, recipe.micro_batch_size
        )
        self._rows_per_forward = recipe.batch_size / engine.processes.world_size / micro_steps
        self._folder = None if recipe.cache.folder is None else Path(recipe.cache.folder)
        self._num_blocks = engine.model.layout.num_blocks
        self._allocations: list[CacheAllocation] = []
        self._dtypes: dict[int, torch.dtype] = {}
        """Type of the states at each depth."""
        self._hidden_size = 0
        self._local_ranks = range(0)
        """Ranks of this machine."""
        self._stores: list[ActivationStore] = []
        self._current: ActivationStore | None = None
        """The store that the present phase reads."""
        self._evaluated: dict[tuple[str, str, int], dict[int, Tensor]] = {}
        """States by depth of each evaluation batch: split, example set, index."""
        self._bytes_left = 0
        """Bytes that this process may still use for evaluation batches."""
        self.reads = 0
        """Number of texts that training has read."""
        self.computed = 0
        """Number of texts that this process has computed for training."""
        if recipe.cache.mode != "never" and find_spans(schedule, self._num_blocks):
            self._allocate(recipe)

    def _allocate(self, recipe: Recipe) -> None:
        """Decides which spans are cached, after a trial forward pass that shows the type and size of the states."""
        depths = sorted({span.depth for span in find_spans(self._schedule, self._num_blocks)})
        with self._engine.evaluating():
            states = self._engine.run_prefix(depths, self._any_row().to(self._engine.device))
        self._dtypes = {depth: tensor.dtype for depth, tensor in states.items()}
        self._hidden_size = states[depths[0]].shape[-1]
        width = self._hidden_size * max(dtype.itemsize for dtype in self._dtypes.values())
        rows = {pool.name: pool.size for pool in self._data.pools}
        reason = reason_not_to_count_texts(recipe.cache, self._schedule, self._sampler, rows, width)
        if reason is not None:
            logger.info(reason)
            return
        splits = [one.splits["train"] for one in self._data.sets]
        names = [one.name for one in self._data.sets]
        set_of_pool = [names.index(pool.examples.name) for pool in self._data.pools]
        self._texts = DistinctTexts([one.hashes for one in splits], [one.lengths for one in splits], set_of_pool)
        lengths = self._texts.lengths
        by_pool = {pool.name: self._texts.count(index, pool.rows) for index, pool in enumerate(self._data.pools)}
        counts = TextCounts(len(lengths), int(lengths.sum(dtype=np.int64)), by_pool)
        gpu_rows = None if self._engine.device.type == "cpu" else self._rows_per_forward
        self._allocations, lines = choose_what_to_cache(
            recipe.cache, self._schedule, self._num_blocks, self._sampler, counts, width, gpu_rows
        )
        for line in lines:
            logger.info(line)
        group = self._engine.processes
        first_ranks = group.all_gather(group.rank - group.local_rank)
        local = [rank for rank, first in enumerate(first_ranks) if first == first_ranks[group.rank]]
        self._local_ranks = range(local[0], local[-1] + 1)
        left = recipe.cache.budget_gb * GIB - sum(allocation.capacity for allocation in self._allocations)
        self._bytes_left = int(left / len(local)) if self._allocations else 0

    def enter_phase(self, phase: Phase, train_state: TrainState) -> None:
        """Frees the stores of spans that have ended and creates those of spans that begin, before `phase` trains."""
        names = [one.name for one in self._schedule.phases]
        index = names.index(phase.name)
        wanted = [one for one in self._allocations if one.span.first <= index <= one.span.last]
        starts = {one.span: self._start_of(one, train_state) for one in wanted}
        kept = [store for store in self._stores if starts.get(store.span) == store.compute_groups.start]
        self._stores = kept
        kept_spans = {store.span for store in kept}
        for one in wanted:
            if one.span not in kept_spans:
                self._stores.append(self._new_store(one, starts[one.span]))
        self._current = next((store for store in self._stores if index in store.span.uses), None)
        depths = {store.depth for store in kept}
        for states in self._evaluated.values():
            for depth in states.keys() - depths:
                self._bytes_left += states.pop(depth).nbytes

    def _start_of(self, allocation: CacheAllocation, train_state: TrainState) -> int:
        """The step from which the states of a span stay the same.

        If layers below it were trained before the span, a rollback to a step before its start changes the states.
        """
        first = allocation.span.first
        start = self._schedule.with_early_stops(train_state.stops).phases[first].start
        for back_to, lost_to in train_state.rollbacks:
            if first > 0 and back_to < start <= lost_to:
                start = lost_to
        return start

    def _new_store(self, allocation: CacheAllocation, start: int) -> ActivationStore:
        # Spans that begin at the same step have the same compute groups, so that one forward pass serves all of them.
        known = {store.compute_groups.start: store.compute_groups for store in self._stores}
        compute_groups = known.get(start) or ComputeGroups(self._texts, self._local_ranks, start)
        depth, lengths = allocation.span.depth, self._texts.lengths
        tokens = np.ones_like(lengths) if depth == self._num_blocks else lengths
        widths = tokens.astype(np.int64) * self._hidden_size
        group = self._engine.processes
        return ActivationStore(allocation, compute_groups, widths, self._dtypes[depth], group, self._folder)

    def prefix_for_micro_step(self, batch: GlobalBatch, parts: Parts, micro_step: int) -> PrefixState | None:
        """States of this rank's rows of a micro-step; those that are not cached are computed.

        None if nothing is cached in this phase. Must be called for each micro-step of each step, in order.
        """
        store = self._current
        if store is None:
            return None
        if micro_step == 0:
            self._begin_step(batch, parts)
        positions = parts[micro_step][self._engine.processes.rank]
        pool_ids, rows = batch.pool_ids[positions], batch.rows[positions]
        texts = self._texts.numbers(pool_ids, rows)
        has_slot = store.has_slot(texts)
        self._compute_missing(store, texts[has_slot & ~store.is_cached(texts)], bool((~has_slot).any()))
        padded = () if store.depth == self._num_blocks else (int(batch.lengths[positions].max()),)
        states = store.read(texts[has_slot], (*padded, self._hidden_size))
        if not has_slot.all():
            states = self._with_uncached(store.depth, states, has_slot, pool_ids, rows)
        self.reads += len(texts)
        return PrefixState(store.depth, to_device(states, self._engine.device))

    def _begin_step(self, batch: GlobalBatch, parts: Parts) -> None:
        for store in self._stores:
            compute_groups = store.compute_groups  # several stores may share it
            for step in range(compute_groups.next_step, batch.step):  # steps before the run was resumed
                earlier = self._sampler.batch(step)
                compute_groups.add_step(earlier, self._partition(earlier.lengths))
            if compute_groups.next_step == batch.step:
                compute_groups.add_step(batch, parts)
        for store in self._stores:
            store.next_step()

    def _compute_missing(self, store: ActivationStore, missing: np.ndarray, one_more: bool) -> None:
        """Computes and writes the compute groups of the `missing` texts; `one_more`: a forward pass follows."""
        compute_groups = store.compute_groups
        numbers = np.unique(compute_groups.group_of[missing]) if len(missing) else ()
        groups = [compute_groups.groups[number] for number in numbers]
        self._match_forward_passes(len(groups) + one_more)
        # One forward pass serves all stores with the same groups up to this depth.
        depths = [
            one.depth for one in self._stores if one.compute_groups is compute_groups and one.depth <= store.depth
        ]
        for group in groups:
            states = self._compute(depths, group.pool_ids, group.rows)
            for one in self._stores:
                if one.depth in states:
                    one.write(group.texts, states[one.depth])

    def _with_uncached(
        self, depth: int, states: Tensor, has_slot: np.ndarray, pool_ids: np.ndarray, rows: np.ndarray
    ) -> Tensor:
        """Joins the `states` of rows that have slots with those of the other rows, which are computed each time."""
        rest = self._compute([depth], pool_ids[~has_slot], rows[~has_slot])[depth].cpu()
        joined = torch.zeros(len(has_slot), *states.shape[1:], dtype=states.dtype)
        joined[torch.from_numpy(has_slot)] = states
        if rest.dim() == 3:
            joined[torch.from_numpy(~has_slot), : rest.shape[1]] = rest
        else:
            joined[torch.from_numpy(~has_slot)] = rest
        return joined

    def _compute(self, depths: Sequence[int], pool_ids: np.ndarray, rows: np.ndarray) -> dict[int, Tensor]:
        self.computed += len(rows)
        return self._engine.run_prefix(depths, self._data.training_batch(pool_ids, rows).to(self._engine.device))

    def _any_row(self) -> Batch:
        return self._data.training_batch(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))

    def _match_forward_passes(self, needed: int) -> None:
        """On an engine whose ranks make every forward pass together, makes as many as the rank that needs most."""
        if not self._engine.forward_is_collective or self._current is None:
            return
        for _ in range(max(self._engine.processes.all_gather(needed)) - needed):
            self._engine.run_prefix([self._current.depth], self._any_row().to(self._engine.device))

    def prefix_for_evaluation(self, split: str, examples: str, index: int, batch: Batch) -> PrefixState | None:
        """States of the `index`-th evaluation batch of the example set named `examples`; None if nothing is cached.

        `batch` is on the device.
        """
        if self._current is None:
            return None
        depth = self._current.depth
        cached = self._evaluated.get((split, examples, index), {})
        is_cached = depth in cached
        if self._engine.forward_is_collective:
            is_cached = all(self._engine.processes.all_gather(is_cached))
        if is_cached:
            return PrefixState(depth, to_device(cached[depth], self._engine.device))
        depths = [store.depth for store in self._stores if store.depth <= depth]
        states = self._engine.run_prefix(depths, batch)
        fresh = {one: states[one].cpu() for one in depths if one not in cached}
        size = sum(tensor.nbytes for tensor in fresh.values())
        if size <= self._bytes_left:
            self._bytes_left -= size
            self._evaluated[split, examples, index] = cached | fresh
        return PrefixState(depth, states[depth])
