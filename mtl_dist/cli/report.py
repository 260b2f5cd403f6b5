"""Command `python -m mtl_dist report RUN ... [--to FILE]`: writes the HTML report of one run or of several."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mtl_dist.errors import UserError
from mtl_dist.io import write_text_atomically
from mtl_dist.report.page import page_of_run, page_of_runs
from mtl_dist.report.records import read_run
from mtl_dist.run_layout import REPORT

COMPARISON = "comparison.html"
"""Default name of the page that compares runs, in the current folder."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}")


def main(arguments: Sequence[str]) -> None:
    """Writes the page of one run, or one page that compares several.

    Raises UserError for a wrong argument or folder, TrainingError where the disk refuses the file.
    """
    parser = _Parser(prog="python -m mtl_dist report", description="One HTML page on a run, or on several compared.")
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's output_dir")
    parser.add_argument(
        "--to", metavar="FILE", type=Path, help=f"the page; without it RUN/{REPORT}, for several runs {COMPARISON} here"
    )
    options = parser.parse_args(arguments)
    runs = [read_run(folder) for folder in options.runs]
    several = len(runs) > 1
    path = options.to or (Path(COMPARISON) if several else runs[0].folder / REPORT)
    if not path.parent.is_dir():
        raise UserError(f"--to: {path.parent} is no folder")
    if path.is_dir():
        raise UserError(f"--to: {path} is a folder; name a file in it")
    write_text_atomically(path, page_of_runs(runs) if several else page_of_run(runs[0]))
    print(f"written to {path}")
