"""Variants of one run, which worker.py carries out one after another on the same processes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.distributed.launching import forked
from tests.utils.tiny import tiny_recipe_file


@dataclass(frozen=True)
class Variant:
    """Settings of one run of the recipe."""

    accumulation: int = 1
    overrides: tuple[str, ...] = ()
    engine: str = "data parallel"
    """Name in ENGINES of worker.py."""
    without: str | None = None
    """Mechanism that is disabled in the engine: a name in BREAKS of worker.py."""


Errors = dict[tuple[int, str], list[str | None]]
"""Error that ended each rank, or None, by number of processes and name of the variant."""


def run_variants(
    root: Path,
    on_world: Mapping[int, Mapping[str, Variant]],
    common: Sequence[str],
    recipe_file: Callable[[Path], Path] = tiny_recipe_file,
) -> Errors:
    """Runs a recipe in each variant on its numbers of processes; `common` are overrides of all of them.

    `recipe_file` writes the recipe into a folder. The run folder is `root / <number of processes> / <name>`.
    """
    recipe = recipe_file(root)
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
