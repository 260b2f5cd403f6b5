"""`mtl-dist report`: one HTML page on a run, or on several compared."""

from pathlib import Path
from typing import Annotated

import typer

from mtl_dist.errors import UserError
from mtl_dist.run_layout import REPORT

COMPARISON = "comparison.html"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", show_default=False, help="Output folders of runs.")],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"The page; by default RUN/{REPORT}, for several runs {COMPARISON} in this folder."
        ),
    ] = None,
) -> None:
    """Write an HTML page on a run, or one that compares several."""
    print(f"written to {write_report(runs, to)}")


def write_report(runs: list[Path], to: Path | None = None) -> Path:
    """Writes the page of one run, or one that compares several; returns its path.

    Raises UserError, and TrainingError where the disk is full.
    """
    from mtl_dist.io import write_text_atomically
    from mtl_dist.report.page import page_of_run, page_of_runs
    from mtl_dist.report.records import read_run
    from mtl_dist.run_files import check_output

    records = [read_run(folder) for folder in runs]
    several = len(records) > 1
    path = to or (Path(COMPARISON) if several else records[0].folder / REPORT)
    if not path.parent.is_dir():
        raise UserError(f"--to: {path.parent} is no folder")
    if path.is_dir():
        raise UserError(f"--to: {path} is a folder; name a file in it")
    for record in records:
        check_output("--to", path, (), record.folder, allowed=REPORT)
    write_text_atomically(path, page_of_runs(records) if several else page_of_run(records[0]))
    return path
