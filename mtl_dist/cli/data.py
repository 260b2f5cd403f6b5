"""`mtl-dist data`: the data of a recipe in figures."""

from pathlib import Path
from typing import Annotated

import typer

from mtl_dist.cli.imports import importing_models
from mtl_dist.cli.recipe_words import RecipeWords, recipe_arguments
from mtl_dist.errors import UserError


def data(
    words: RecipeWords,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures as an HTML page.")] = None,
) -> None:
    """Print rows, classes, lengths and leaks of a recipe's data."""
    from mtl_dist.config.load import parse

    recipe = parse(recipe_arguments(words)).recipe
    _check_page(html)
    with importing_models():
        from mtl_dist.data.dataset import prepare
        from mtl_dist.distributed.process_group import ProcessGroup
        from mtl_dist.inspection.data_figures import figures_of
        from mtl_dist.inspection.data_lines import data_lines
        from mtl_dist.inspection.data_page import data_page
        from mtl_dist.io import write_text_atomically
        from mtl_dist.models.limits import limits_of
        from mtl_dist.tracking.console import show_log_lines
        from mtl_dist.training.build import check_encoder

    show_log_lines(is_main=True)
    _, skeleton = check_encoder(recipe)
    figures = figures_of(recipe, prepare(recipe, ProcessGroup(), limits_of(skeleton)))
    print("\n".join(data_lines(figures)))
    if html is not None:
        write_text_atomically(html, data_page(_title(words), figures))
        print(f"written to {html}")


def _check_page(html: Path | None) -> None:
    """Raises UserError for a page that cannot be written."""
    if html is not None and html.is_dir():
        raise UserError(f"--html: {html} is a folder; name a file in it")
    if html is not None and not html.parent.is_dir():
        raise UserError(f"--html: {html.parent} is no folder")


def _title(words: list[str]) -> str:
    """Name of the first recipe file."""
    return next((Path(word).stem for word in words if Path(word).is_file()), "recipe")
