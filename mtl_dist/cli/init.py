"""`mtl-dist init`: a commented recipe for one or more tables."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mtl_dist.cli.imports import importing_models
from mtl_dist.resources import IS_CHECKOUT, ROOT


def init(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="Tables: CSV, TSV, JSON, JSON lines, parquet, arrow; compressed too.",
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="The recipe; by default FILE's name with .yaml in this folder."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Text column; twice for a pair. By default found.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Label column; one for each task. By default found.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="ENCODER", help="Folder or hub name; by default one that is on this machine.")
    ] = None,
) -> None:
    """Look at tables and write a commented recipe for them."""
    with importing_models():
        from mtl_dist.inspection.new_recipe import Options, propose
    from mtl_dist.io import write_text_atomically

    found = propose(files, Options(to, text or (), label or (), encoder, encoder_folders()))
    print("\n".join(found.lines))
    write_text_atomically(found.path, found.text)
    print(f"written to {found.path}; look at the data with: mtl-dist data {shlex.quote(str(found.path))}")
    print(f"train with: mtl-dist train {shlex.quote(str(found.path))}")


def encoder_folders() -> list[Path]:
    """Where `mtl-dist quickstart` and `make setup` put an encoder: here, in a folder here, or in the repository."""
    here = [Path("assets/quickstart/encoder"), Path("assets/encoder"), *sorted(Path().glob("*/assets/encoder"))]
    return [*here, *([ROOT / "assets" / "quickstart" / "encoder"] if IS_CHECKOUT else [])]
