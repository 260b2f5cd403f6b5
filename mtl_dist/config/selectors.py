"""Selectors: the syntax in which a recipe names units of the model.

A unit is the smallest set of parameters that can be frozen or unfrozen. In canonical order the units are `embeddings`,
`blocks.0` and up, and `heads.<task>` in the order of the recipe.
"""

import re
from collections.abc import Callable, Sequence

from mtl_dist.errors import UserError, did_you_mean

GRAMMAR = "heads, heads.<task>, blocks[i], blocks[a:b], embeddings, backbone, all"
"""All forms of a selector, for error messages."""

_NUMBER = "-?[0-9]{1,4}"
_BLOCKS = re.compile(rf"blocks\[(?:(?P<index>{_NUMBER})|(?P<start>{_NUMBER})?:(?P<stop>{_NUMBER})?)\]")


def select(selectors: Sequence[str], tasks: Sequence[str], num_blocks: int, where: str) -> tuple[str, ...]:
    """Units named by `selectors`, in canonical order.

    Negative block indices count from the top. Unlike a Python slice, `blocks[a:b]` with an end beyond the encoder is
    an error and not truncated. Raises UserError, beginning with `where` (the key in the recipe), for invalid syntax, an
    unknown task or block, an empty range, and two selectors that name the same unit.
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
    """Raises UserError for errors that no encoder can make valid: syntax, an unknown task, a certain overlap."""
    # The number of blocks is not known yet, so each range is treated as a unit of its own.
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
    """Unit -> the selector that names it; `blocks_of` resolves a `blocks[...]` selector to some of `blocks`."""
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
