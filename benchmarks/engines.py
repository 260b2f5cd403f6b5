"""Differences between every engine and one process: losses by phase, and the final parameters.

`python -m benchmarks.engines [--steps N]` trains a tiny encoder without dropout through three phases that unfreeze it:
on every engine, with mixed and with one-task batches, with 1 and 2 gradient-accumulation steps, in float32 and in
float64. A cell is the largest relative difference of a step's loss in that phase from the run of one process without
accumulation. "parameters" is the norm of the difference of the final parameters over their norm.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

PHASES = ("heads", "upper", "all")
ENGINES = {
    "1 process": (1, "data parallel"),
    "DDP 2": (2, "data parallel"),
    "DDP 4": (4, "data parallel"),
    "FSDP2 2": (2, "fsdp2"),
    "ZeRO-1 2": (2, "zero1"),
    "ZeRO-2 2": (2, "zero2"),
    "ZeRO-3 2": (2, "zero3"),
}
"""Number of processes, and the engine's name in tests/distributed/worker.py."""


@dataclass(frozen=True)
class Cell:
    """Configuration of one run."""

    engine: str
    batches: str
    accumulation: int
    dtype: str
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / f"{self.engine}, {self.batches}, {self.accumulation}, {self.dtype}"

    @property
    def reference(self) -> "Cell":
        return Cell("1 process", self.batches, 1, self.dtype, self.root)

    def job(self, recipe: list[str]) -> dict[str, Any]:
        settings = [f"model.dtype={self.dtype}", f"sampling.batches={self.batches}", f"output_dir={self.folder}"]
        engine = ENGINES[self.engine][1]
        return {"arguments": recipe + settings, "accumulation": self.accumulation, "engine": engine, "without": None}

    def steps(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [line for line in lines if "train/loss" in line]

    def differences(self) -> list[float]:
        """Largest relative loss difference of each phase, then the relative difference of the parameters."""
        pairs = list(zip(self.steps(), self.reference.steps(), strict=True))
        assert all(ours["plan/digest"] == theirs["plan/digest"] for ours, theirs in pairs), "other samples"
        by_phase = [
            max(abs(ours["train/loss"] / theirs["train/loss"] - 1) for ours, theirs in pairs if ours["phase"] == phase)
            for phase in PHASES
        ]
        ours, theirs = (
            _flat(load_file(cell.folder / "model" / "model.safetensors")) for cell in (self, self.reference)
        )
        return [*by_phase, float((ours - theirs).norm() / theirs.norm())]


def _flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def run_all(cells: list[Cell], recipe: list[str], root: Path) -> dict[Cell, str | None]:
    """Runs all cells; maps each to the reason why it was refused, or to None."""
    from tests.distributed.launching import launched

    ended = {}
    for world in sorted({ENGINES[cell.engine][0] for cell in cells}):
        ours = [cell for cell in cells if ENGINES[cell.engine][0] == world]
        file = root / f"jobs{world}"
        file.write_text(json.dumps([cell.job(recipe) for cell in ours]))
        launched("tests/distributed/worker.py", str(file), processes=world)
        ended |= dict(zip(ours, json.loads(Path(f"{file}.0").read_text()), strict=True))
    return ended


def rows(ended: dict[Cell, str | None]) -> Iterator[tuple[str, ...]]:
    for cell, refused in ended.items():
        name = (cell.dtype, cell.engine, cell.batches, str(cell.accumulation))
        yield (*name, f"refused: {refused}") if refused else (*name, *(f"{it:.1e}" for it in cell.differences()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares every engine with one process.")
    parser.add_argument("--steps", type=int, default=10, help="steps of each phase (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ |= {"MTL_DIST_CACHE": str(root / "cache"), "HF_HUB_OFFLINE": "1"}
        from tests.utils.tiny import tiny_recipe_file

        lengths = [f"phases.{index}.steps={options.steps}" for index in range(len(PHASES))]
        recipe = ["--config", str(tiny_recipe_file(root)), "batch_size=26", "optimizer.lr=2e-4", *lengths]
        kinds = product(("float32", "float64"), ENGINES, ("mixed", "one_task"), (1, 2))
        cells = [Cell(engine, batches, accumulation, dtype, root) for dtype, engine, batches, accumulation in kinds]
        ended = run_all(cells, recipe, root)
        header = ("dtype", "engine", "batches", "accumulation", *PHASES, "parameters")
        for row in (header, *sorted(rows(ended), key=lambda row: (row[0], list(ENGINES).index(row[1])))):
            print("  ".join(f"{word:<12}" for word in row).rstrip())


if __name__ == "__main__":
    main()
