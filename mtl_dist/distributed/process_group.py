"""What the processes of a run say to each other outside of the training step: small objects, errors, agreement."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mtl_dist.errors import TrainingError, UserError

T = TypeVar("T")

# Others wait while one process tokenises, which may take hours; a process that dies ends the rest through its launcher.
CONTROL_TIMEOUT = timedelta(hours=24)


class AsyncMax:
    """The greatest wish of all ranks, agreed without waiting: what is cast in one round is the outcome of the next.

    Every rank casts, the same number of times. The exchange of a round goes on behind the work until the next one.
    """

    def __init__(self, group: Any) -> None:
        """`group`: a gloo group that nothing else uses; None for one process, whose wish is the outcome at once."""
        self._group = group
        self._pending: tuple[Any, torch.Tensor] | None = None

    def reduce(self, wish: int) -> int:
        """The outcome of the round before; 0 in the first."""
        if self._group is None:
            return wish
        outcome = 0
        if self._pending is not None:
            work, wishes = self._pending
            work.wait()
            outcome = int(wishes)
        wishes = torch.tensor(wish)
        self._pending = dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._group, async_op=True), wishes
        return outcome


class ProcessGroup:
    """The processes of this run and where this one stands among them.

    Messages go over a gloo group of their own, so that they work beside any engine and never wait for a device.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._group: Any = None
        if world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)

    def async_max(self) -> AsyncMax:
        """A new one. Every rank calls this."""
        several = self.world_size > 1
        return AsyncMax(dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if several else None)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.local_rank == 0

    def all_gather(self, value: T) -> list[T]:
        """The value of every rank, in rank order. `value` is small and picklable."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """Does `work` on every rank; where one fails with an error of ours, all raise the first one in rank order.

        Without this, the ranks that did not fail would wait for the one that did.
        """
        result: Any = None
        error: UserError | TrainingError | None = None
        try:
            result = work()
        except (UserError, TrainingError) as caught:
            error = caught
        for first in self.all_gather(error):
            if first is not None:
                raise first
        return result

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
        """Does `work` on the first rank alone; every rank calls this, and raises what it raises of ours."""
        self.together(lambda: work() if self.is_main else None)
