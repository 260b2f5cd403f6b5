"""`mtl-dist config`: a recipe with every key, or what each key means."""

from typing import Annotated

import typer

from mtl_dist.cli.recipe_words import METAVAR, recipe_arguments


def config(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar=METAVAR, show_default=False, help="As for `train`."),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key with its type, default and meaning.")] = False,
) -> None:
    """Print the recipe with every key, merged and checked."""
    if keys:
        from mtl_dist.config.help import recipe_help

        print(recipe_help())
        return
    from mtl_dist.config.load import parse, resolved_yaml

    print(resolved_yaml(parse(recipe_arguments(words or ())).recipe).rstrip())
