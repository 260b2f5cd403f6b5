"""Differences between the quickstart's losses on several processes and on one, and whether the samples are equal.

`python -m benchmarks.same_run [--processes N] [--recipe FILE] [key=value]...` trains twice, without dropout, and prints
for each phase the largest relative difference of a step's loss. The difference is rounding, and grows with the steps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SETTINGS = ("model.dropout=0", "model.encoder_dropout=0", "tracking.log_every_steps=1")


def train(recipe: str, overrides: list[str], folder: Path, processes: int) -> list[dict[str, Any]]:
    """The logged steps of one run."""
    config = "cpu.yaml" if processes == 1 else "multi_cpu.yaml"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}"),
        *("--num_processes", str(processes), "launch/train.py", "--config", recipe, f"output_dir={folder}"),
        *(*SETTINGS, *overrides),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "train/loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the losses of one process with those of several.")
    parser.add_argument("--processes", type=int, default=2, help="processes of the second run (%(default)s)")
    parser.add_argument("--recipe", default="recipes/quickstart.yaml", help="recipe file (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, as for launch/train.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        one, several = (
            train(options.recipe, options.overrides, Path(scratch) / str(processes), processes)
            for processes in (1, options.processes)
        )
    same = sum(a["plan/digest"] == b["plan/digest"] for a, b in zip(one, several, strict=True))
    differences = [abs(a["train/loss"] / b["train/loss"] - 1) for a, b in zip(one, several, strict=True)]
    print(f"1 process and {options.processes}: {same} of {len(one)} steps have the same samples")
    print(f"{'steps':<20}largest relative difference of the loss")
    print(f"{'first 50':<20}{max(differences[:50]):.1e}")
    for phase in dict.fromkeys(line["phase"] for line in one):
        steps = [index for index, line in enumerate(one) if line["phase"] == phase]
        label = f"{phase} ({steps[0] + 1}-{steps[-1] + 1})"
        print(f"{label:<20}{max(differences[step] for step in steps):.1e}")


if __name__ == "__main__":
    main()
