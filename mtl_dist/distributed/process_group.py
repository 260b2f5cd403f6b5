"""Communication among the processes of a run outside of the training step: small objects, errors, maxima."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mtl_dist.errors import TrainingError, UserError

T = TypeVar("T")

# Ranks may wait for hours while one tokenizes; if a process dies, its launcher ends the others.
CONTROL_TIMEOUT = timedelta(hours=24)


class AsyncMax:
    """Greatest value over all ranks, one round late and therefore without waiting.

    Each call of `reduce` starts an asynchronous all-reduce and returns the result of the previous one. All ranks call
    it the same number of times.
    """

    def __init__(self, group: Any) -> None:
        """`group` is a gloo group that nothing else uses; with None, for one process, results are not late."""
        self._group = group
        self._pending: tuple[Any, torch.Tensor] | None = None

    def reduce(self, value: int) -> int:
        """Contributes `value` to this round; returns the greatest value of the previous round, 0 in the first."""
        if self._group is None:
            return value
        greatest = 0
        if self._pending is not None:
            work, values = self._pending
            work.wait()
            greatest = int(values)
        values = torch.tensor(value)
        self._pending = dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group, async_op=True), values
        return greatest


class ProcessGroup:
    """The processes of this run, and the rank of this one.

    Objects are exchanged over a gloo group of its own, which works beside any engine and never waits for a device.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._group: Any = None
        if world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)

    def async_max(self) -> AsyncMax:
        """A new AsyncMax with a group of its own. Every rank calls this."""
        several = self.world_size > 1
        return AsyncMax(dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if several else None)

    @property
    def is_main(self) -> bool:
        """Whether this is the main process: rank 0."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this is the first process on its machine."""
        return self.local_rank == 0

    def all_gather(self, value: T) -> list[T]:
        """The value of every rank, in rank order. `value` is small and picklable."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Raises on every rank the first error, in rank order, that any rank has raised inside.

        Without this, the ranks that did not fail would wait for the one that did. Every rank enters and leaves it.
        Covers UserError and TrainingError; any other exception is a defect and ends its own process.
        """
        error: UserError | TrainingError | None = None
        try:
            yield
        except (UserError, TrainingError) as caught:
            error = caught
        for first in self.all_gather(error):
            if first is not None:
                raise first

    def on_main_process(self, work: Callable[[], object]) -> None:
        """Calls `work` on the main process only, and raises its error on every rank. Every rank calls this."""
        with self.raise_together():
            if self.is_main:
                work()
