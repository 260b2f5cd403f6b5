"""Start-up time, memory and step time as a function of the number of rows, with a tiny encoder.

`python -m benchmarks.large_data [--rows N...] [--format parquet|json] [--steps N] [--starts N]` writes files of each
size to a temporary folder, prepares the data and trains in a process of its own, and again with the token cache that
the first start left. Times exclude Python's imports. Anonymous memory cannot be reclaimed under pressure; pages of
mapped files can.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtl_dist.config.load import parse
from mtl_dist.train_state import TrainState
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.utils.in_process import setup_here
from tests.utils.tiny import TOPICS, WORDS, tiny_encoder

CHUNK = 10**5
"""Rows generated at a time."""
TEST_ROWS, WARM_UP = 1000, 50
BYTES_A_ROW = 600
"""Disk space for the files, their columns as strings while they are tokenized, and the tokens."""
CHILD = "--child"


def tables(rows: int, seed: int) -> Iterator[pa.Table]:
    """Tables of short texts of 2 to 16 known words, with string labels."""
    source = np.random.default_rng(seed)
    phrases = pa.array([" ".join(source.choice(WORDS, source.integers(1, 9))) for _ in range(CHUNK // 10)])
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        first, second = (phrases.take(pa.array(source.integers(len(phrases), size=count))) for _ in range(2))
        labels = pa.array(TOPICS).take(pa.array(source.integers(len(TOPICS), size=count)))
        yield pa.table({"text": pc.binary_join_element_wise(first, second, " "), "label": labels})


def write(path: Path, rows: int, seed: int) -> str:
    """Writes a parquet or json file, depending on its suffix; returns the path."""
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, pa.schema({"text": pa.string(), "label": pa.string()})) as writer:
            for table in tables(rows, seed):
                writer.write_table(table)
    else:
        with path.open("w", encoding="utf-8") as file:
            for table in tables(rows, seed):
                file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
    return str(path)


def make(folder: Path, rows: int, kind: str) -> Path:
    """Writes a recipe with encoder and data files into `folder`; returns its path."""
    folder.mkdir()
    files = {
        "train": write(folder / f"train.{kind}", rows, seed=0),
        "test": write(folder / f"test.{kind}", TEST_ROWS, seed=1),
    }
    recipe = {
        "output_dir": str(folder / "run"),
        "batch_size": 16,
        "model": {"encoder": str(tiny_encoder(folder / "encoder", layers=1))},
        "tasks": {"topic": {"path": kind, "data_files": files}},
        "data": {"max_length": 32, "cache_dir": str(folder / "cache")},
        "phases": [{"name": "all", "train": ["all"], "steps": 10**6}],
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def child(recipe: str, steps: int) -> None:
    """Starts and trains; prints the figures as JSON."""
    before = memory("self")["RssAnon"]
    start = time.perf_counter()
    setup = setup_here(parse(["--config", recipe]).recipe)
    trainer = LayerwiseLearningRateTrainer(setup, TrainState())
    phase = trainer.schedule.phase_at(0)
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    started = time.perf_counter()
    times: list[float] = []
    for step in range(WARM_UP + steps):
        begin = time.perf_counter()
        trainer.training_step(step)
        times.append(time.perf_counter() - begin)
    figures = {"start": started - start + times[0], "step": statistics.median(times[WARM_UP:]), "imports_anon": before}
    print(json.dumps(figures | {"peak": memory("self")["VmHWM"]}))


def memory(process: int | str) -> dict[str, int]:
    """The sizes in /proc/<process>/status, in bytes."""
    lines = [line.split() for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()]
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def measured(recipe: Path, steps: int) -> dict[str, float]:
    """Runs `child` in a process of its own; adds the peak of its anonymous memory to the figures."""
    command = [sys.executable, "-m", "benchmarks.large_data", CHILD, str(recipe), "--steps", str(steps)]
    # One thread: several would mostly wait for each other with a tiny encoder.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    anonymous = 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            try:
                anonymous = max(anonymous, memory(process.pid).get("RssAnon", 0))
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.02)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found | {"anon": anonymous}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def figures_of(folder: Path, kind: str, first: dict[str, float], later: list[dict[str, float]]) -> dict[str, float]:
    """All figures of one size; the input has seconds and bytes."""
    again = {name: statistics.median(of[name] for of in later) for name in first}
    return {
        "first start [s]": first["start"],
        "  peak resident [MB]": first["peak"] / 1e6,
        "  peak anonymous [MB]": first["anon"] / 1e6,
        "later start [s]": again["start"],
        "  peak resident [MB] ": again["peak"] / 1e6,
        "  peak anonymous [MB] ": again["anon"] / 1e6,
        "  step [ms]": again["step"] * 1e3,
        "anonymous after imports [MB]": again["imports_anon"] / 1e6,
        "files on disk [MB]": sum(path.stat().st_size for path in folder.glob(f"*.{kind}")) / 1e6,
        "tokens on disk [MB]": size_of(folder / "cache") / 1e6,
    }


def print_table(results: dict[int, dict[str, float]]) -> None:
    smallest = next(iter(results.values()))
    print(f"{'rows':<32}" + "".join(f"{rows:>22,}" for rows in results))
    for name in smallest:
        cells = [f"{of[name]:.2f} ({of[name] / smallest[name]:.2f} x)" for of in results.values()]
        print(f"{name:<32}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**6, 10**7], help="sizes, smallest first")
    parser.add_argument(
        "--format", choices=("parquet", "json"), default="parquet", help="format of the files (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=300, help="timed steps per start (%(default)s)")
    parser.add_argument("--starts", type=int, default=3, help="starts after the first, whose median counts")
    parser.add_argument(CHILD, metavar="RECIPE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.steps)
        return
    with tempfile.TemporaryDirectory(prefix="large_data-") as scratch:
        free, needed = shutil.disk_usage(scratch).free, sum(options.rows) * BYTES_A_ROW
        if free < needed:
            raise SystemExit(f"{scratch} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed")
        recipes = {rows: make(Path(scratch) / str(rows), rows, options.format) for rows in options.rows}
        first = {rows: measured(recipe, options.steps) for rows, recipe in recipes.items()}
        # In alternation, so that a busy machine slows all sizes alike.
        rounds = [{rows: measured(of, options.steps) for rows, of in recipes.items()} for _ in range(options.starts)]
        print_table(
            {
                rows: figures_of(recipe.parent, options.format, first[rows], [of[rows] for of in rounds])
                for rows, recipe in recipes.items()
            }
        )


if __name__ == "__main__":
    main()
