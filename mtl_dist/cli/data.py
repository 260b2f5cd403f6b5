"""`mtl-dist data`: the data of a recipe in figures."""

from pathlib import Path
from typing import Annotated

import typer

from mtl_dist.cli.imports import importing_models
from mtl_dist.cli.recipe_words import RecipeWords, recipe_arguments


def data(
    words: RecipeWords,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures as an HTML page.")] = None,
) -> None:
    """Read a recipe's data as training does, and print what is in it."""
    from mtl_dist.config.load import parse
