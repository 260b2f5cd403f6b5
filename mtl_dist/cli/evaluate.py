"""`mtl-dist evaluate`: figures of a finished run's model on its test split or on other labelled data."""

from pathlib import Path
from typing import Annotated

import typer

from mtl_dist.cli.imports import importing_models


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="Folder of a finished run.")],
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="One task; by default all, or those of a recipe under --data.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help=".json(l), .csv or .parquet with texts and labels, or a recipe whose tasks name test rows; by default"
            " the run's own test split.",
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Text column of FILE; twice for a pair.")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="Label column of FILE.")] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures there too, as JSON.")] = None,
) -> None:
    """Print accuracy, macro-F1, loss and confusion matrix."""
    with importing_models():
        from mtl_dist.inference.evaluate import evaluate_run

    evaluation = evaluate_run(run, task=task, data=data, text=text, label=label, to=to)
    print(evaluation.as_text())
    if to is not None:
        evaluation.write_json(to)
