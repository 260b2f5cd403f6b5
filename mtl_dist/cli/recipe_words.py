"""Positional words of a command that takes a recipe."""

from collections.abc import Iterable
from pathlib import Path
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
    """The arguments of `launch/train.py` for `words`.

    Words without `=`, and those that name a file, are recipes; the others are overrides.
    """
    files, overrides = [], []
    for word in words:
        if "=" in word and not Path(word).is_file():
            overrides.append(word)
        else:
            files += ["--config", word]
    return [*files, *overrides]
