"""`mtl-dist predict`: labels and scores of one task for the texts of a file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mtl_dist.cli.imports import importing_models


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="Folder of a finished run.")],
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="Texts: .txt (one a line), .csv, .tsv, .jsonl, .json, .parquet or .arrow; - is standard input.",
        ),
    ],
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="One of the run's tasks; may be left out where there is one.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help=".jsonl or .csv; by default JSON lines on standard output.")
    ] = None,
    format: Annotated[
        Literal["csv", "json", "jsonl", "parquet", "arrow", "text"] | None,
        typer.Option(help="Format of FILE, where its name does not tell it."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Text column of FILE; twice for a pair.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Rows per forward pass.")] = 64,
) -> None:
    """Write label and scores of one task for every row of a file."""
    with importing_models():
        from mtl_dist.inference.predict import predict_file

    predict_file(run, file, task=task, to=to, format=format, text=text, batch_size=batch_size)
