"""What of the encoder's frozen lower part is kept, decided before training from the schedule and the plan alone.

A *level* is a place in the encoder: level k, from 1 on, is what enters block k; level `num_blocks` is the sentence
vector. While nothing below a level trains, what a text gives there stays the same, and a phase that trains from that
level up need not compute it again. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtl_dist.config.recipe import CacheConfig
from mtl_dist.schedule.phases import Phase, Schedule
from mtl_dist.schedule.sampler import TaskBalancedSampler

WORTHWHILE = 0.1
"""Part of a level's computing that must be saved for `cache.mode=auto` to keep it."""
WORTHWHILE_ON_GPU = 0.5
"""The same of hidden states on a GPU, which computes faster."""
READ_FAST = 16 << 20
"""Bytes of states in a forward up to which a GPU's host keeps or reads them in less than half the time in which they
are computed (`python -m benchmarks.activation_cache --gpu`, H100: at most 0.44 up to 16 MB, and up to 2.7 beyond)."""
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Span:
    """Phases through which a level stays the same. All forwards in them pass through it or read it."""

    level: int
    first: int
    """Index of the first phase."""
    last: int
    """Index of the last phase that trains from this level up."""
    uses: tuple[int, ...]
    """Indices of the phases that train from this level up, and so read it."""


@dataclass(frozen=True)
class CacheAllocation:
    """A span that is kept, and the bytes that it may take on each machine."""

    span: Span
    capacity: int


@dataclass(frozen=True)
class Texts:
    """How much there is to keep, over the training rows of all tasks."""

    count: int
    """Unlike texts."""
    tokens: int
    """Tokens of all unlike texts."""
    by_task: Mapping[str, int]
    """Unlike texts of each task."""


def level_of(phase: Phase, num_blocks: int) -> int:
    """The level from which `phase` trains upwards; 0 where it trains the first block or the embeddings."""
    if "embeddings" in phase.units:
        return 0
    blocks = [int(unit.removeprefix("blocks.")) for unit in phase.units if unit.startswith("blocks.")]
    return min(blocks, default=num_blocks)


def spans_of(schedule: Schedule, num_blocks: int) -> list[Span]:
    """All spans of a run, in the order in which they are first read."""
    levels = [level_of(phase, num_blocks) for phase in schedule.phases]
    spans = []
    for level in {level for level in levels if level > 0}:
        for run in _runs([of_phase >= level for of_phase in levels]):
            uses = tuple(index for index in run if levels[index] == level)
            if uses:
                spans.append(Span(level, run.start, uses[-1], uses))
    return sorted(spans, key=lambda span: span.uses[0])


def _runs(flags: Sequence[bool]) -> list[range]:
    """The longest stretches of true flags."""
    starts = [i for i, flag in enumerate(flags) if flag and (i == 0 or not flags[i - 1])]
    stops = [i + 1 for i, flag in enumerate(flags) if flag and (i + 1 == len(flags) or not flags[i + 1])]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]


def hopeless(
    config: CacheConfig, schedule: Schedule, plan: TaskBalancedSampler, rows: Mapping[str, int], width: int
) -> str | None:
    """Why `auto` keeps nothing, where that is plain before the texts are counted, which takes time and memory.

    `rows` are those of each task, taken to be unlike within it; `width` as for `provide`.
    """
    if config.mode != "auto":
        return None
    room, most = config.budget_gb * GIB, max(rows.values())
    if WORTHWHILE * most * width > room:
        return f"cache: off: cache.budget_gb holds less than {WORTHWHILE:.0%} of {most} rows' sentence vectors"
    draws = plan.draws(0, schedule.total_steps)
    # Of n tasks with the same texts, each drawn for a part p of them, (n - 1) p / 2 of the reads find a text again.
    if len(rows) * max(draws[task] / rows[task] for task in rows) < 2 * WORTHWHILE:
        return f"cache: off: {sum(draws.values())} draws from {sum(rows.values())} rows come to few texts again"
    return None


def provide(
    config: CacheConfig,
    schedule: Schedule,
    num_blocks: int,
    plan: TaskBalancedSampler,
    texts: Texts,
    width: int,
    gpu_rows: float | None = None,
) -> tuple[list[CacheAllocation], list[str]]:
    """What is kept, and a line on each span for the person who watches.

    `width` is the bytes of a token's hidden state, which are those of a sentence vector; `gpu_rows` are the rows of a
    forward on a GPU.

    The budget goes to the spans in the order in which they are read. `auto` leaves out what would save little. On a GPU
    hidden states have to save more, and those of a forward must not be more than its host reads fast.
    """
    if config.mode == "never":
        return [], []
    spans = spans_of(schedule, num_blocks)
    saved = {span: saved_part(span, schedule, plan, texts) for span in spans}
    on_gpu = {span for span in spans if gpu_rows is not None and span.level < num_blocks}
    least = {span: WORTHWHILE_ON_GPU if span in on_gpu else WORTHWHILE for span in spans}
    of_forward = (gpu_rows or 0) * width * texts.tokens / texts.count
    slow = on_gpu if config.mode == "auto" and of_forward > READ_FAST else set()
    wanted = {span for span in spans if config.mode == "always" or (span not in slow and saved[span] >= least[span])}
    # What is computed for a higher level on the way serves the lower one too.
    wanted |= {span for span in spans if any(span.level > one.level and _meet(span, one) for one in wanted)} - slow
    provisions, lines = [], []
    left = int(config.budget_gb * GIB)
    for span in spans:
        what = "sentence vectors" if span.level == num_blocks else f"states before block {span.level}"
        where = f"{what} for {', '.join(schedule.phases[index].name for index in span.uses)}"
        need = width * (texts.count if span.level == num_blocks else texts.tokens)
        capacity = min(need, left)
        saves = saved[span] * capacity / need
        if span in slow:
            lines.append(
                f"cache: no {where}: a GPU computes {of_forward / MIB:.0f} MiB of them, a forward's, about as fast as"
                " its host reads them (cache.mode=always keeps them)"
            )
        elif span not in wanted or (config.mode == "auto" and saves < least[span] <= saved[span]):
            lines.append(f"cache: no {where}: would save {saves:.0%} of computing them (cache.mode=always keeps them)")
        else:
            room = f"up to {capacity / MIB:.1f} of {need / MIB:.1f} MiB"
            lines.append(f"cache: {where}: {room}, saves about {saves:.0%} of computing them")
            provisions.append(CacheAllocation(span, capacity))
            left -= capacity
    return provisions, lines


def _meet(span: Span, other: Span) -> bool:
    """Whether `span` is read in a phase of `other`."""
    return any(other.first <= index <= other.last for index in span.uses)


def saved_part(span: Span, schedule: Schedule, plan: TaskBalancedSampler, texts: Texts) -> float:
    """The part of a span's reads that need no computing, at least; with room for all of it."""
    before = _most_texts(schedule.phases[span.first].start, schedule.phases[span.uses[0]].start, plan, texts)
    after = _most_texts(schedule.phases[span.first].start, schedule.phases[span.last].stop, plan, texts)
    reads = sum(
        sum(plan.draws(schedule.phases[index].start, schedule.phases[index].stop).values()) for index in span.uses
    )
    return 1 - min(reads, after - before) / reads


def _most_texts(start: int, stop: int, plan: TaskBalancedSampler, texts: Texts) -> int:
    """Unlike texts drawn in these steps, at most."""
    draws = plan.draws(start, stop)
    return min(texts.count, sum(min(draws[task], of_task) for task, of_task in texts.by_task.items()))
