"""`mtl-dist push`: uploads a model to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from mtl_dist.cli.imports import importing_models


def push(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN|DIR", show_default=False, help="Folder of a finished run, or one from `export`."),
    ],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", show_default=False, help="Repository, made where there is none.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private where it is new.")] = False,
) -> None:
    """Upload a model with its card to the Hugging Face hub."""
    with importing_models():
        from mtl_dist.inference.push_to_hub import push_model

    pushed = push_model(folder, repo, private=private)
    print(f"{pushed.folder} is at {pushed.url}")
