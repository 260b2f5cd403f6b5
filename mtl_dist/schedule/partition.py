"""The cut of a global batch among processes and micro-steps: like lengths together, like work for every process."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from mtl_dist.errors import UserError


def micro_steps_for(batch_size: int, world_size: int, micro_batch_size: int | None, accumulation: int) -> int:
    """Forward passes of a process per optimizer step: `accumulation`, or more where `micro_batch_size` asks for more.

    Raises UserError when `batch_size` has less than one example for each of them.
    """
    _require_rows(batch_size, world_size, accumulation)
    if micro_batch_size is None:
        return accumulation
    micro_steps = max(accumulation, -(-batch_size // (world_size * micro_batch_size)))
    if batch_size < world_size * micro_steps:
        raise UserError(
            f"micro_batch_size: {micro_batch_size} is too small for {batch_size} examples in {world_size} processes,"
            " which would not all have one in every micro-step; at least 2"
        )
    return micro_steps


def partition_batch(
    lengths: np.ndarray, world_size: int, micro_steps: int, micro_batch_size: int | None
) -> list[list[np.ndarray]]:
    """Positions in the global batch of each part, as [micro_step][rank], int64; together they are the whole batch.

    `lengths` are the tokens of its examples, [B], longest first, each at least 1. A part is a stretch of them, padded
    to its first, and costs its rows times that length. The costliest part costs as little as stretches allow. Parts of
    one micro-step have like cost, for engines whose ranks meet in each; the costlier go to the ranks with less so far,
    for engines whose ranks meet only at the end of the step.

    Raises UserError when there are fewer examples than parts, or more than `micro_batch_size` can hold.
    """
    tokens = lengths.tolist()
    _require_rows(len(tokens), world_size, micro_steps)
    most = len(tokens) if micro_batch_size is None else micro_batch_size
    needed = -(-len(tokens) // (world_size * micro_steps))
    if needed > most:
        raise UserError(
            f"micro_batch_size: {most} is too small for {len(tokens)} examples in {world_size} processes x"
            f" {micro_steps} micro-steps; at least {needed}"
        )
    if world_size * micro_steps == 1:
        return [[np.arange(len(tokens))]]
    loads = [0] * world_size
    start = 0
    micro_batches = []
    for parts in range(world_size * micro_steps, 0, -world_size):
        # Cutting anew what is left, instead of once, spreads the slack of the last parts over all later micro-steps.
        stretches = _best_stretches(tokens, start, parts, most)[:world_size]
        start = stretches[-1].stop
        stretches.sort(key=lambda stretch: _cost(tokens, stretch), reverse=True)
        ranks = sorted(range(world_size), key=lambda rank: loads[rank])
        of_ranks = dict(zip(ranks, stretches, strict=True))
        loads = [loads[rank] + _cost(tokens, of_ranks[rank]) for rank in range(world_size)]
        micro_batches.append([np.arange(of_ranks[rank].start, of_ranks[rank].stop) for rank in range(world_size)])
    return micro_batches


def _require_rows(rows: int, world_size: int, micro_steps: int) -> None:
    if rows < world_size * micro_steps:
        raise UserError(
            f"batch_size: {rows} is too small for {world_size} processes x {micro_steps} micro-steps;"
            f" at least {world_size * micro_steps}, one example for each"
        )


def _cost(tokens: Sequence[int], stretch: range) -> int:
    return len(stretch) * tokens[stretch.start]


def _best_stretches(tokens: Sequence[int], start: int, parts: int, most: int) -> list[range]:
    """Cuts tokens[start:] into `parts` stretches of at most `most` rows so that the costliest costs least."""
    costs = range(tokens[start], tokens[start] * (len(tokens) - start) + 1)

    def suffices(cost: int) -> bool:
        return _stretches(tokens, start, parts, most, cost)[-1].stop == len(tokens)

    return _stretches(tokens, start, parts, most, costs[bisect_left(costs, True, key=suffices)])


def _stretches(tokens: Sequence[int], start: int, parts: int, most: int, cost: int) -> list[range]:
    """`parts` stretches from `start` on, each as long as `cost`, `most` and a row for each later one allow."""
    stretches = []
    for later in reversed(range(parts)):
        stop = start + min(cost // tokens[start], most, len(tokens) - start - later)
        stretches.append(range(start, stop))
        start = stop
    return stretches
