"""Which states of the frozen layers are cached: decided before training, from the schedule and the sampler alone.

A *prefix depth* is a place in the encoder: depth k, from 1 on, is the input of block k, and depth `num_blocks` is the
sentence vector. While no layer below a depth is trained, the states of a text at that depth stay the same, and a phase
that trains from that depth on need not compute them again. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtl_dist.config.recipe import CacheConfig
from mtl_dist.schedule.phases import Phase, Schedule
from mtl_dist.schedule.sampler import TaskBalancedSampler

MIN_SAVED_FRACTION = 0.1
"""Least fraction of the computation of a span that `cache.mode=auto` caches it for."""
GPU_MIN_SAVED_FRACTION = 0.5
"""The same for hidden states on a GPU, where computing is cheaper."""
GPU_MAX_FORWARD_BYTES = 16 << 20
"""Greatest size of the hidden states of a forward pass on a GPU that `cache.mode=auto` caches. Up to this size, writing
or reading them takes less than half the time of computing them (`python -m benchmarks.activation_cache --gpu`, H100: at
most 0.44 up to 16 MB, and up to 2.7 beyond)."""
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Span:
    """Consecutive phases in which the states at one depth stay the same and every forward pass needs them."""

    depth: int
    first: int
    """Index of the first phase."""
    last: int
    """Index of the last phase that trains from this depth on."""
    uses: tuple[int, ...]
    """Indices of the phases that train from this depth on, and so read its states."""


@dataclass(frozen=True)
class CacheAllocation:
    """A span to cache, and its capacity in bytes on each machine."""

    span: Span
    capacity: int


@dataclass(frozen=True)
class TextCounts:
    """Size of the training rows of all example sets, each distinct text counted once."""

    count: int
    """Number of distinct texts."""
    tokens: int
    """Number of tokens of all distinct texts."""
    by_pool: Mapping[str, int]
    """Number of distinct texts of each row pool."""


def prefix_depth(phase: Phase, num_blocks: int) -> int:
    """The depth from which `phase` trains on; 0 if it trains the first block or the embeddings."""
    if "embeddings" in phase.units:
        return 0
    blocks = [int(unit.removeprefix("blocks.")) for unit in phase.units if unit.startswith("blocks.")]
    return min(blocks, default=num_blocks)


def find_spans(schedule: Schedule, num_blocks: int) -> list[Span]:
    """All spans of a schedule, in the order in which they are first read."""
    depths = [prefix_depth(phase, num_blocks) for phase in schedule.phases]
    spans = []
    for depth in {depth for depth in depths if depth > 0}:
        for run in _runs([of_phase >= depth for of_phase in depths]):
            uses = tuple(index for index in run if depths[index] == depth)
            if uses:
                spans.append(Span(depth, run.start, uses[-1], uses))
    return sorted(spans, key=lambda span: span.uses[0])


def _runs(flags: Sequence[bool]) -> list[range]:
    """The maximal ranges of consecutive true flags."""
    starts = [i for i, flag in enumerate(flags) if flag and (i == 0 or not flags[i - 1])]
    stops = [i + 1 for i, flag in enumerate(flags) if flag and (i + 1 == len(flags) or not flags[i + 1])]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]


def reason_not_to_count_texts(
    config: CacheConfig, schedule: Schedule, sampler: TaskBalancedSampler, rows: Mapping[str, int], width: int
) -> str | None:
    """Why `cache.mode=auto` caches nothing, if that is certain before distinct texts are counted; None if it is not.

    Counting takes time and memory. `rows` is the number of rows of each pool, which are taken to be distinct within a
    pool; `width` as for `choose_what_to_cache`.
    """
    if config.mode != "auto":
        return None
    room, most = config.budget_gb * GIB, max(rows.values())
    if MIN_SAVED_FRACTION * most * width > room:
        return f"cache: off: cache.budget_gb holds less than {MIN_SAVED_FRACTION:.0%} of {most} rows' sentence vectors"
    draws = sampler.draws(0, schedule.total_steps)
    # If n pools share their texts and each draws a fraction p of them, a fraction (n - 1) p / 2 of the reads are hits.
    if len(rows) * max(draws[pool] / rows[pool] for pool in rows) < 2 * MIN_SAVED_FRACTION:
        return f"cache: off: {sum(draws.values())} draws from {sum(rows.values())} rows come to few texts again"
    return None


def choose_what_to_cache(
    config: CacheConfig,
    schedule: Schedule,
    num_blocks: int,
    sampler: TaskBalancedSampler,
    texts: TextCounts,
    width: int,
    gpu_rows: float | None = None,
) -> tuple[list[CacheAllocation], list[str]]:
    """Divides the budget among the spans, in the order in which they are read; returns also a log line on each span.

    `width` is the size in bytes of a token's hidden state and of a sentence vector; `gpu_rows` is the number of rows of
    a forward pass, if on a GPU. `cache.mode=auto` skips a span that would save little, and on a GPU also hidden states
    that the host does not read faster than the GPU computes them.
    """
    if config.mode == "never":
        return [], []
    spans = find_spans(schedule, num_blocks)
    on_gpu = {span for span in spans if gpu_rows is not None and span.depth < num_blocks}
    forward_bytes = (gpu_rows or 0) * width * texts.tokens / texts.count
    slow = on_gpu if config.mode == "auto" and forward_bytes > GPU_MAX_FORWARD_BYTES else set()
    saved = {span: saved_fraction(span, schedule, sampler, texts) for span in spans}
    least = {span: GPU_MIN_SAVED_FRACTION if span in on_gpu else MIN_SAVED_FRACTION for span in spans}
    worthwhile = {span for span in spans if config.mode == "always" or saved[span] >= least[span]} - slow
    # States at a smaller depth are cached on the way, while those at a greater depth are computed for the cache.
    worthwhile |= {one for one in spans if any(one.depth > other.depth and _meet(one, other) for other in worthwhile)}
    allocations, lines = [], []
    left = int(config.budget_gb * GIB)
    for span in spans:
        where = _describe(span, schedule, num_blocks)
        need = width * (texts.count if span.depth == num_blocks else texts.tokens)
        capacity = min(need, left)
        saves = saved[span] * capacity / need
        skip = None
        if span in slow:
            size = f"{forward_bytes / MIB:.0f} MiB"
            skip = f"a GPU computes {size} of them, a forward's, about as fast as its host reads them"
        elif span not in worthwhile or (config.mode == "auto" and saves < least[span] <= saved[span]):
            skip = f"would save {saves:.0%} of computing them"
        if skip is not None:
            lines.append(f"cache: no {where}: {skip} (cache.mode=always keeps them)")
            continue
        room = f"up to {capacity / MIB:.1f} of {need / MIB:.1f} MiB"
        lines.append(f"cache: {where}: {room}, saves about {saves:.0%} of computing them")
        allocations.append(CacheAllocation(span, capacity))
        left -= capacity
    return allocations, lines


def _describe(span: Span, schedule: Schedule, num_blocks: int) -> str:
    """Describes for a log line what a span caches and which phases read it."""
    what = "sentence vectors" if span.depth == num_blocks else f"states before block {span.depth}"
    return f"{what} for {', '.join(schedule.phases[index].name for index in span.uses)}"


def _meet(span: Span, other: Span) -> bool:
    """Whether `span` is read in a phase of `other`."""
    return any(other.first <= index <= other.last for index in span.uses)


def saved_fraction(span: Span, schedule: Schedule, sampler: TaskBalancedSampler, texts: TextCounts) -> float:
    """Lower bound of the fraction of a span's reads that need no computation, with room for all of its states."""
    phases = schedule.phases
    start = phases[span.first].start
    before = _max_distinct(start, phases[span.uses[0]].start, sampler, texts)
    after = _max_distinct(start, phases[span.last].stop, sampler, texts)
    reads = sum(sum(sampler.draws(phases[index].start, phases[index].stop).values()) for index in span.uses)
    return 1 - min(reads, after - before) / reads


def _max_distinct(start: int, stop: int, sampler: TaskBalancedSampler, texts: TextCounts) -> int:
    """Upper bound of the number of distinct texts drawn in steps `start` to `stop` - 1."""
    draws = sampler.draws(start, stop)
    return min(texts.count, sum(min(draws[pool], of_pool) for pool, of_pool in texts.by_pool.items()))
