"""Time of an epoch of labels for three tasks on the same rows: shared rows, compared with rows drawn per task.

`python -m benchmarks.sharing [--rounds N] [--schedule 1+1+1] [key=value]...` trains the quickstart's texts with their
domain, sentiment and length class, in bf16. An epoch of labels is that after which each task has seen each of its
labels once: a pass over the rows where they are shared, and one pass for each task where they are drawn per task.
Printed are seconds per epoch of labels and the ratio of the two, for each phase and in all, as median (minimum to
maximum) of runs in alternation.
"""

import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.training_runs import (
    SCHEDULES,
    Run,
    make_parser,
    recipe_arguments,
    recipe_overrides,
    run_mtl_dist,
    spread,
)
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe

SIDES = ("shared", "per_task")
"""Values of `sampling.rows`."""
LENGTHS = ("short", "medium", "long")
"""Classes of the third task: thirds of the texts by number of characters."""
AIM = 2.5


def write_table(path: Path, source: str, labels: dict[str, str]) -> None:
    """Writes the texts of the parquet file `source` with three labels; `labels` are its label columns by task."""
    table = pq.read_table(source)
    characters = cast(pa.ChunkedArray, pc.utf8_length(table["text"])).to_numpy()
    classes = np.searchsorted(np.quantile(characters, (1 / 3, 2 / 3)), characters)
    named = {task: table[column] for task, column in labels.items()}
    pq.write_table(pa.table({"text": table["text"], **named, "length": [LENGTHS[index] for index in classes]}), path)


def shared_recipe(folder: Path, recipe: Recipe) -> Path:
    """Writes the quickstart's `recipe` with one source for all tasks, and its table, into `folder`."""
    first = next(iter(recipe.tasks.values()))
    labels = {name: task.label for name, task in recipe.tasks.items()}
    files = {}
    for split, (file,) in first.data_files.items():
        files[split] = str(folder / f"{split}.parquet")
        write_table(Path(files[split]), file, labels)
    content = recipe.model_dump()
    content["sources"] = {"texts": {"path": "parquet", "data_files": files, "max_rows": first.max_rows}}
    content["tasks"] = {name: {"source": "texts", "label": name} for name in (*labels, "length")}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return path


def seconds_per_epoch(run: Run, epochs: dict[str, float]) -> dict[str, float]:
    """Seconds per epoch of labels in each phase that is trained for so many `epochs`, and in all of them together."""
    by_phase = {name: run.phases[name] / length for name, length in epochs.items()}
    return by_phase | {"in all": run.training / sum(epochs.values())}


def main() -> None:
    parser = make_parser(str(__doc__))
    parser.add_argument("--schedule", choices=SCHEDULES, default="1+1+1", help="epochs of each phase (%(default)s)")
    options = parser.parse_intermixed_args()
    recipe = parse(recipe_arguments(SCHEDULES[options.schedule], *recipe_overrides(options))).recipe
    epochs = {phase.name: phase.epochs or 0.0 for phase in recipe.phases}
    seconds: dict[str, dict[str, list[float]]] = {side: {} for side in SIDES}
    with TemporaryDirectory() as scratch:
        file = shared_recipe(Path(scratch), recipe)
        for round_ in range(options.rounds):
            for side in SIDES if round_ % 2 == 0 else reversed(SIDES):
                run = run_mtl_dist(
                    ["--config", str(file), f"sampling.rows={side}"], threads=options.threads, gpu=options.gpu
                )
                for phase, value in seconds_per_epoch(run, epochs).items():
                    seconds[side].setdefault(phase, []).append(value)
                print(f"round {round_ + 1}, {side}: {run.training:.1f} s of training", flush=True)
    shared, per_task = (seconds[side] for side in SIDES)
    for phase in shared:
        ratios = [alone / together for alone, together in zip(per_task[phase], shared[phase], strict=True)]
        aim = f"; aim {AIM}: {'met' if median(ratios) >= AIM else 'missed'}" if phase == "all" else ""
        print(
            f"{phase:<8}{spread(shared[phase])} s per epoch of labels with shared rows, {spread(per_task[phase])} s per"
            f" task; ratio {spread(ratios)}{aim}"
        )


if __name__ == "__main__":
    main()
