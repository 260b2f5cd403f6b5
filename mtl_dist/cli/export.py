"""`mtl-dist export`: a run's model as a folder that loads without mtl_dist."""

from pathlib import Path
from typing import Annotated

import typer

from mtl_dist.cli.imports import importing_models


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="Folder of a finished run.")],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="Folder to write, which must be new or empty.")
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help='Task whose classifier `transformers.pipeline("text-classification", DIR)` loads.'
        ),
    ] = None,
    sentence_transformers: Annotated[
        bool, typer.Option("--sentence-transformers", help="The encoder, for sentence-transformers.")
    ] = False,
    with_code: Annotated[
        bool,
        typer.Option("--with-code", help="Bring a class as code, for encoders that no class of transformers fits."),
    ] = False,
) -> None:
    """Write a folder that loads without mtl_dist."""
    with importing_models():
        from mtl_dist.inference.export import export_run

    difference = export_run(run, folder, task=task, sentence_transformers=sentence_transformers, with_code=with_code)
    print(f"{folder} is written; loaded again, it differs from the run by at most {difference:.1e}")
