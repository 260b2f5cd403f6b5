"""Positional words of a command that takes a recipe."""

from collections.abc import Iterable
from typing import Annotated

import typer

METAVAR = "RECIPE|key=value"
RecipeWords = Annotated[
    list[str],
    typer.Argument(
        metavar=METAVAR,
        show_default=False,
        help="Recipe files, merged in this order, and values that replace theirs, e.g. optimizer.lr=3e-5.",
    ),
]


def recipe_arguments(words: Iterable[str]) -> list[str]:
    """The arguments of `launch/train.py` for `words`: those with `=` are overrides, the others recipe files."""
    files, overrides = [], []
    for word in words:
        if "=" in word:
            overrides.append(word)
        else:
            files += ["--config", word]
    return [*files, *overrides]
