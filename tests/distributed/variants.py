"""Variants of one run, carried out one after another among the same processes by worker.py."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.launching import forked
from tests.utils.tiny import tiny_recipe_file


@dataclass(frozen=True)
class Variant:
    """A way to run the recipe."""

    accumulation: int = 1
    overrides: tuple[str, ...] = ()
    engine: str = "data parallel"
    """A name of ENGINES in worker.py."""
    without: str | None = None
    """What is taken out of the engine; see BREAKS in worker.py."""


Errors = dict[tuple[int, str], list[str | None]]
"""By number of processes and name of the variant: for each rank the error that ended it, or None."""


def run_variants(root: Path, on_world: Mapping[int, Mapping[str, Variant]], common: Sequence[str]) -> Errors:
    """Runs the tiny recipe in each variant on the numbers of processes that it is for.

    A run is left in `root / <number of processes> / <name>`; all have the overrides `common`.
    """
    recipe = tiny_recipe_file(root)
    errors: Errors = {}
    for world, variants in on_world.items():
        jobs = [
            {
                "arguments": ["--config", str(recipe), f"output_dir={root / str(world) / name}", *common, *v.overrides],
                "accumulation": v.accumulation,
                "engine": v.engine,
                "without": v.without,
            }
            for name, v in variants.items()
        ]
        file = root / f"jobs{world}.json"
        file.write_text(json.dumps(jobs))
        forked("tests/distributed/worker.py", str(file), processes=world, logs=root / f"logs{world}")
        by_rank = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(world)]
        errors |= {(world, name): list(ended) for name, *ended in zip(variants, *by_rank, strict=True)}
    return errors
