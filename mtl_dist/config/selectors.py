"""Selectors: the words with which a recipe names units, the smallest things that can be frozen or unfrozen.

Units in canonical order are `embeddings`, `blocks.0` and up, `heads.<task>` in the recipe's order.
"""

import re
from collections.abc import Callable, Sequence

from mtl_dist.errors import UserError, did_you_mean

GRAMMAR = "heads, heads.<task>, blocks[i], blocks[a:b], embeddings, backbone, all"

_NUMBER = "-?[0-9]{1,4}"
_BLOCKS = re.compile(rf"blocks\[(?:(?P<index>{_NUMBER})|(?P<start>{_NUMBER})?:(?P<stop>{_NUMBER})?)\]")


def select(selectors: Sequence[str], tasks: Sequence[str], num_blocks: int, where: str) -> tuple[str, ...]:
    """Units named by `selectors`, in canonical order.

    Negative block numbers count from the top. Unlike a Python slice, `blocks[a:b]` with an end beyond the encoder is
    refused, not cut. Raises UserError, beginning with `where` (the recipe's key): syntax, a task or block that is not
    there, a range without blocks, two selectors that name the same unit.
    """
    blocks = [f"blocks.{index}" for index in range(num_blocks)]

    def blocks_of(selector: str, match: re.Match[str]) -> list[str]:
        index, start, stop = (None if text is None else int(text) for text in match.group("index", "start", "stop"))
        if any(n is not None and not -num_blocks <= n < num_blocks for n in (index, start)) or (
            stop is not None and not -num_blocks <= stop <= num_blocks
        ):
            raise UserError(f"{where}: {selector}: the encoder has {num_blocks} blocks, 0 to {num_blocks - 1}")
        named = blocks[start:stop] if index is None else [blocks[index]]
        if not named:
            raise UserError(f"{where}: {selector}: names no block; the encoder has {num_blocks}")
        return named

    named = _named(selectors, tasks, blocks, blocks_of, where)
    return tuple(unit for unit in ("embeddings", *blocks, *_heads(tasks)) if unit in named)


def check_selectors(selectors: Sequence[str], tasks: Sequence[str], where: str) -> None:
    """Raises UserError for what is wrong with any encoder: syntax, an unknown task, a sure overlap."""
    # How many blocks a range names is not known yet, so that each range stands for itself.
    ranges = [selector for selector in selectors if _BLOCKS.fullmatch(selector)]
    _named(selectors, tasks, ranges, lambda selector, _: [selector], where)


def _heads(tasks: Sequence[str]) -> list[str]:
    return [f"heads.{task}" for task in tasks]


def _named(
    selectors: Sequence[str],
    tasks: Sequence[str],
    blocks: Sequence[str],
    blocks_of: Callable[[str, re.Match[str]], Sequence[str]],
    where: str,
) -> dict[str, str]:
    """Unit -> the selector that names it; `blocks_of` resolves a blocks[...] selector among `blocks`."""
    heads = _heads(tasks)
    words = {
        "embeddings": ["embeddings"],
        "backbone": ["embeddings", *blocks],
        "heads": heads,
        "all": ["embeddings", *blocks, *heads],
    } | {head: [head] for head in heads}
    named: dict[str, str] = {}
    for selector in selectors:
        if match := _BLOCKS.fullmatch(selector):
            units = blocks_of(selector, match)
        elif selector in words:
            units = words[selector]
        elif selector.startswith("heads."):
            task = selector.removeprefix("heads.")
            raise UserError(f"{where}: no task {task!r}{did_you_mean(task, tasks)}")
        else:
            raise UserError(f"{where}: {selector!r} is not one of {GRAMMAR}")
        for unit in units:
            if unit in named:
                raise UserError(f"{where}: {named[unit]} and {selector} both name {unit}")
            named[unit] = selector
    return named
