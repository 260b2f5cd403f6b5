"""Partition of a global batch among ranks and micro-steps: similar lengths together, similar work for every rank."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from mtl_dist.errors import UserError


def micro_steps_for(batch_size: int, world_size: int, micro_batch_size: int | None, accumulation: int) -> int:
    """Micro-steps of a process per optimizer step: `accumulation`, or more if `micro_batch_size` requires more.

    Raises UserError if `batch_size` has less than one example for each micro-step of each process.
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
    """Splits a global batch into parts, one for each micro-step and rank.

    `lengths` are the numbers of tokens of its examples, [B], longest first, each at least 1. Returns the positions of
    each part's examples in the batch as [micro_step][rank], [part's examples] int64; each position occurs once.

    A part is a range of consecutive examples, padded to the first of them; its cost is their number times that length.
    The highest cost of a part is as low as possible. Parts of one micro-step have similar cost, for engines whose ranks
    synchronise in each; those that cost more go to the ranks with less cost so far, for engines whose ranks synchronise
    only at the end of the step.

    Raises UserError if there are fewer examples than parts, or more than `micro_batch_size` allows.
    """
    tokens = lengths.tolist()
    _require_rows(len(tokens), world_size, micro_steps)
    most_rows = len(tokens) if micro_batch_size is None else micro_batch_size
    needed = -(-len(tokens) // (world_size * micro_steps))
    if needed > most_rows:
        raise UserError(
            f"micro_batch_size: {most_rows} is too small for {len(tokens)} examples in {world_size} processes x"
            f" {micro_steps} micro-steps; at least {needed}"
        )
    if world_size * micro_steps == 1:
        return [[np.arange(len(tokens))]]
    costs = [0] * world_size
    start = 0
    micro_batches = []
    for parts in range(world_size * micro_steps, 0, -world_size):
        # Splitting the rest anew for each micro-step spreads the slack of the last parts over all later micro-steps.
        ranges = _best_ranges(tokens, start, parts, most_rows)[:world_size]
        start = ranges[-1].stop
        ranges.sort(key=lambda rows: _cost(tokens, rows), reverse=True)
        ranks = sorted(range(world_size), key=lambda rank: costs[rank])
        by_rank = dict(zip(ranks, ranges, strict=True))
        costs = [costs[rank] + _cost(tokens, by_rank[rank]) for rank in range(world_size)]
        micro_batches.append([np.arange(by_rank[rank].start, by_rank[rank].stop) for rank in range(world_size)])
    return micro_batches


def _require_rows(rows: int, world_size: int, micro_steps: int) -> None:
    if rows < world_size * micro_steps:
        raise UserError(
            f"batch_size: {rows} is too small for {world_size} processes x {micro_steps} micro-steps;"
            f" at least {world_size * micro_steps}, one example for each"
        )


def _cost(tokens: Sequence[int], rows: range) -> int:
    """Tokens of these rows after padding."""
    return len(rows) * tokens[rows.start]


def _best_ranges(tokens: Sequence[int], start: int, parts: int, most_rows: int) -> list[range]:
    """Splits tokens[start:] into `parts` ranges of at most `most_rows` rows with the lowest possible highest cost."""
    costs = range(tokens[start], tokens[start] * (len(tokens) - start) + 1)

    def suffices(cost: int) -> bool:
        return _longest_ranges(tokens, start, parts, most_rows, cost)[-1].stop == len(tokens)

    return _longest_ranges(tokens, start, parts, most_rows, costs[bisect_left(costs, True, key=suffices)])


def _longest_ranges(tokens: Sequence[int], start: int, parts: int, most_rows: int, cost: int) -> list[range]:
    """`parts` ranges from `start`, each as long as `cost`, `most_rows` and one row for each later range allow."""
    ranges = []
    for later in reversed(range(parts)):
        stop = start + min(cost // tokens[start], most_rows, len(tokens) - start - later)
        ranges.append(range(start, stop))
        start = stop
    return ranges
