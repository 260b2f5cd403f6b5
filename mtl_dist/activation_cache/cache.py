"""What the encoder's frozen lower part gives for each text: computed once, and read while nothing below it trains.

Training reads it text by text from memory that the processes of a machine share; evaluation, whose batches are always
the same, batch by batch. A text's states come from the group that `prefix_ledger` puts it in, so that they are the same
bits whoever computes them, and when: also after a restart, which begins with nothing kept.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtl_dist.activation_cache.groups import ComputeGroups, DistinctTexts
from mtl_dist.activation_cache.policy import GIB, CacheAllocation, TextCounts, allocate, find_spans, reason_to_skip
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

Parts = Sequence[Sequence[np.ndarray]]
"""Positions in a global batch of each part, [micro-step][rank]."""


class ActivationCache:
    """Knows, at each step, from which depth the model's forward may begin. Every rank calls its methods alike."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        data: DataBundle,
        plan: TaskBalancedSampler,
        schedule: Schedule,
        micro_steps: int,
        say: Callable[[str], None],
    ) -> None:
        """`schedule` as planned. `say` takes a line on each thing that is kept, or is not."""
        self._engine = engine
        self._data = data
        self._plan = plan
        self._schedule = schedule
        self._cut = lambda lengths: partition_batch(
            lengths, engine.processes.world_size, micro_steps, recipe.micro_batch_size
        )
        self._rows = recipe.batch_size / engine.processes.world_size / micro_steps
        """Of a forward."""
        self._folder = None if recipe.cache.folder is None else Path(recipe.cache.folder)
        self._num_blocks = engine.model.layout.num_blocks
        self._stores: list[ActivationStore] = []
        self._current: ActivationStore | None = None
        self._allocations: list[CacheAllocation] = []
        self._evaluated: dict[tuple[str, str, int], dict[int, Tensor]] = {}
        self._left = 0
        """Bytes that this process may still use for evaluation."""
        self.reads = 0
        """Texts that training has asked for."""
        self.computed = 0
        """Texts that this process has computed for training."""
        if recipe.cache.mode != "never" and find_spans(schedule, self._num_blocks):
            self._allocate(recipe, say)

    def _allocate(self, recipe: Recipe, say: Callable[[str], None]) -> None:
        processes = self._engine.processes
        depths = sorted({span.depth for span in find_spans(self._schedule, self._num_blocks)})
        some = self._data.batch("train", np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
        with self._engine.evaluating():
            states = self._engine.run_prefix(depths, some.to(self._engine.device))
        self._types = {depth: tensor.dtype for depth, tensor in states.items()}
        self._hidden_size = states[depths[0]].shape[-1]
        width = self._hidden_size * max(dtype.itemsize for dtype in self._types.values())
        splits = {task: source.splits["train"] for task, source in self._data.tasks.items()}
        rows = {task: len(split.lengths) for task, split in splits.items()}
        reason = reason_to_skip(recipe.cache, self._schedule, self._plan, rows, width)
        if reason is not None:
            say(reason)
            return
        self._ids = DistinctTexts(
            {task: split.hashes for task, split in splits.items()},
            {task: split.lengths for task, split in splits.items()},
        )
        texts = TextCounts(len(self._ids.lengths), int(self._ids.lengths.sum(dtype=np.int64)), self._ids.counts_by_task)
        self._allocations, lines = allocate(
            recipe.cache,
            self._schedule,
            self._num_blocks,
            self._plan,
            texts,
            width,
            None if self._engine.device.type == "cpu" else self._rows,
        )
        for line in lines:
            say(line)
        firsts = processes.all_gather(processes.rank - processes.local_rank)
        mine = [rank for rank, first in enumerate(firsts) if first == firsts[processes.rank]]
        self._ranks = range(mine[0], mine[-1] + 1)
        left = recipe.cache.budget_gb * GIB - sum(allocation.capacity for allocation in self._allocations)
        self._left = int(left / len(mine)) if self._allocations else 0

    def enter_phase(self, phase: Phase, train_state: TrainState) -> None:
        """Drops what has come to its end, and makes room for what begins. `phase` is the one that trains next."""
        names = [one.name for one in self._schedule.phases]
        index = names.index(phase.name)
        wanted = [one for one in self._allocations if one.span.first <= index <= one.span.last]
        starts = {one.span: self._start_of(one, train_state) for one in wanted}
        kept = [store for store in self._stores if starts.get(store.span) == store.compute_groups.start]
        self._stores = kept
        have = {store.span for store in kept}
        for one in wanted:
            if one.span not in have:
                self._stores.append(self._new_store(one, starts[one.span]))
        self._current = next((store for store in self._stores if index in store.span.uses), None)
        depths = {store.depth for store in kept}
        for states in self._evaluated.values():
            for depth in states.keys() - depths:
                self._left += states.pop(depth).nbytes

    def _start_of(self, allocation: CacheAllocation, train_state: TrainState) -> int:
        """The step from which a span's states are what they are.

        Where its lower part has trained before, going back behind the span's start changes them.
        """
        first = allocation.span.first
        start = self._schedule.with_early_stops(train_state.stops).phases[first].start
        for back_to, lost_to in train_state.rollbacks:
            if first > 0 and back_to < start <= lost_to:
                start = lost_to
        return start

    def _new_store(self, allocation: CacheAllocation, start: int) -> ActivationStore:
        # Spans that begin at one step have the same groups, and one computing serves them all.
        known_groups = {store.compute_groups.start: store.compute_groups for store in self._stores}
        compute_groups = known_groups.get(start) or ComputeGroups(self._ids, self._ranks, start)
        depth = allocation.span.depth
        tokens = np.ones_like(self._ids.lengths) if depth == self._num_blocks else self._ids.lengths
        widths = tokens.astype(np.int64) * self._hidden_size
        return ActivationStore(
            allocation, compute_groups, widths, self._types[depth], self._engine.processes, self._folder
        )

    def prefix_for_micro_step(self, batch: GlobalBatch, parts: Parts, micro_step: int) -> PrefixState | None:
        """What the lower part gives for this rank's rows of a micro-step, computed where it is not kept.

        None where nothing is kept in this phase. Called for each micro-step of each step, in order.
        """
        store = self._current
        if store is None:
            return None
        if micro_step == 0:
            self._next_step(batch, parts)
        positions = parts[micro_step][self._engine.processes.rank]
        task_ids, rows = batch.task_ids[positions], batch.rows[positions]
        texts = self._ids.numbers(task_ids, rows)
        placed, has = store.has_slot(texts), store.is_cached(texts)
        missing = texts[placed & ~has]
        numbers = np.unique(store.compute_groups.group_of[missing]) if len(missing) else ()
        groups = [store.compute_groups.groups[number] for number in numbers]
        self._keep_together(len(groups) + (not placed.all()))
        for group in groups:
            states = self._compute(self._depths_with(store), group.task_ids, group.rows)
            for one in self._stores:
                if one.depth in states:
                    one.write(group.texts, states[one.depth])
        width = () if store.depth == self._num_blocks else (int(batch.lengths[positions].max()),)
        states = store.read(texts[placed], (*width, self._hidden_size))
        if not placed.all():
            states = self._with_rest(store.depth, states, placed, task_ids, rows)
        self.reads += len(texts)
        return PrefixState(store.depth, to_device(states, self._engine.device))

    def _next_step(self, batch: GlobalBatch, parts: Parts) -> None:
        for store in self._stores:
            compute_groups = store.compute_groups  # which several may share
            for step in range(compute_groups.next_step, batch.step):  # before a restart
                earlier = self._plan.batch(step)
                compute_groups.add_step(earlier, self._cut(earlier.lengths))
            if compute_groups.next_step == batch.step:
                compute_groups.add_step(batch, parts)
        for store in self._stores:
            store.next_step()

    def _depths_with(self, store: ActivationStore) -> list[int]:
        """The depths at which one computing of a group serves."""
        return [
            one.depth for one in self._stores if one.compute_groups is store.compute_groups and one.depth <= store.depth
        ]

    def _with_rest(
        self, depth: int, states: Tensor, placed: np.ndarray, task_ids: np.ndarray, rows: np.ndarray
    ) -> Tensor:
        """`states`, of the rows that are `placed`, joined by those of the others, which are computed each time."""
        rest = self._compute([depth], task_ids[~placed], rows[~placed])[depth].cpu()
        whole = torch.zeros(len(placed), *states.shape[1:], dtype=states.dtype)
        whole[torch.from_numpy(placed)] = states
        if rest.dim() == 3:
            whole[torch.from_numpy(~placed), : rest.shape[1]] = rest
        else:
            whole[torch.from_numpy(~placed)] = rest
        return whole

    def _compute(self, depths: Sequence[int], task_ids: np.ndarray, rows: np.ndarray) -> dict[int, Tensor]:
        self.computed += len(rows)
        return self._engine.run_prefix(depths, self._data.batch("train", task_ids, rows).to(self._engine.device))

    def _keep_together(self, forwards: int) -> None:
        """Goes along with the forwards of ranks that have more of them to do, where all must make each together."""
        if not self._engine.forward_is_collective or self._current is None:
            return
        some = np.zeros(1, dtype=np.int64)
        for _ in range(max(self._engine.processes.all_gather(forwards)) - forwards):
            batch = self._data.batch("train", some, some).to(self._engine.device)
            self._engine.run_prefix([self._current.depth], batch)

    def prefix_for_evaluation(self, split: str, task: str, index: int, batch: Batch) -> PrefixState | None:
        """As `prefix_for_micro_step`, for the `index`-th batch of an evaluation, which is on the device."""
        if self._current is None:
            return None
        depth = self._current.depth
        kept = self._evaluated.get((split, task, index), {})
        found = depth in kept
        if self._engine.forward_is_collective:
            found = all(self._engine.processes.all_gather(found))
        if not found:
            depths = [store.depth for store in self._stores if store.depth <= depth]
            states = self._engine.run_prefix(depths, batch)
            fresh = {one: states[one].cpu() for one in depths if one not in kept}
            size = sum(tensor.nbytes for tensor in fresh.values())
            if size <= self._left:
                self._left -= size
                self._evaluated[split, task, index] = kept | fresh
            return PrefixState(depth, states[depth])
        return PrefixState(depth, to_device(kept[depth], self._engine.device))
