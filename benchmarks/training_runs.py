"""Training runs of the benchmarks, each in processes of its own: mtl_dist, or the HF Trainer on the same recipe.

Both record the same figures. `phases` holds seconds of training: from the first step's batch to the last step's update,
including reading rows, logging and filling the activation cache, excluding loading, tokenization, evaluation and
saving. `process` is the time of the whole command, `accelerate launch` included.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypedDict, Unpack

from benchmarks.generated_data import SIZES, make_quickstart
from tests.distributed.launching import LaunchOptions as Launch
from tests.distributed.launching import launched

PHASES = {"heads": "[heads]", "upper": '[heads, "blocks[-2:]"]', "all": "[all]"}
"""Trainable units of each phase: the heads, then also the upper third of six blocks, then everything."""
SCHEDULES = {"1+1+1": (1, 1, 1), "3+3+3": (3, 3, 3), "heads only": (10,)}
"""Epochs of each phase, in the order of PHASES. An epoch is as many examples as all tasks have training rows."""
QUICK = ("tasks.domain.max_rows=320", "tasks.sentiment.max_rows=320", "optimizer.warmup_steps=4")
"""Overrides of `--quick`, which tries out a benchmark; its output is not a figure."""
TIMEOUT = 4 * 3600.0


@dataclass(frozen=True)
class Run:
    """Times and results of one training run."""

    phases: dict[str, float]
    """Seconds of training by phase name."""
    process: float
    """Seconds from the start of the command to its end."""
    accuracy: dict[str, float]
    """Test accuracy by task."""
    summary: dict[str, Any]
    """Content of summary.json."""

    @property
    def training(self) -> float:
        """Seconds of training in all phases."""
        return sum(self.phases.values())


class How(TypedDict, total=False):
    """Options of a run; all have a default."""

    precision: str
    """Mixed precision of the launcher ("bf16")."""
    processes: int
    """Number of processes (1)."""
    threads: int
    """CPU threads of each process (2)."""
    gpu: bool
    """Run on the GPU rather than on the CPU (False)."""
    script: tuple[str, ...]
    """Script to launch, with arguments that precede the recipe's ("launch/train.py")."""


def recipe_arguments(epochs: Sequence[float], *overrides: str, first: int = 0) -> list[str]:
    """Arguments of launch/train.py for the quickstart, with `epochs` of consecutive PHASES from index `first`."""
    phases = [
        f"{{name: {name}, train: {train}, epochs: {length}}}"
        for (name, train), length in zip(list(PHASES.items())[first:], epochs, strict=False)
    ]
    bare = ("checkpoint.every_minutes=null",)
    return ["--config", "recipes/quickstart.yaml", f"phases=[{', '.join(phases)}]", *bare, *overrides]


def run_mtl_dist(arguments: Sequence[str], **how: Unpack[How]) -> Run:
    """Trains with mtl_dist."""
    processes = how.get("processes", 1)
    with TemporaryDirectory() as scratch:
        settings = [f"output_dir={scratch}/run", f"data.cache_dir={scratch}/cache"]
        script, *before = how.get("script", ("launch/train.py",))
        began = time.monotonic()
        launched(
            script,
            *(*before, *arguments, *settings),
            processes=processes,
            threads=how.get("threads", 2),
            **_config(how.get("gpu", False)),
            flags=("--mixed_precision", how.get("precision", "bf16"), "--main_process_port", "0"),
            timeout=TIMEOUT,
        )
        return _read(Path(scratch) / "run" / "summary.json", time.monotonic() - began)


def run_hf_trainer(side: str, arguments: Sequence[str], share: float = 1.0, **how: Unpack[How]) -> Run:
    """Trains with the HF Trainer, set up as `side` of hf_baseline.py.

    With a `share` below 1 each phase runs that share of its steps, and its seconds are scaled up accordingly;
    `accuracy` and `process` are then not comparable.
    """
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        gpu = how.get("gpu", False)
        before = ("--side", side, "--out", str(out), "--share", str(share), *(["--gpu"] if gpu else []))
        began = time.monotonic()
        settings = f"data.cache_dir={scratch}/cache"
        threads = how.get("threads", 2)
        launched(
            "benchmarks/hf_baseline.py", *before, *arguments, settings, threads=threads, timeout=TIMEOUT, **_config(gpu)
        )
        return _read(out / "summary.json", time.monotonic() - began)


def _config(gpu: bool) -> Launch:
    """Launch options that select the GPU."""
    return {"config": "gpu.yaml"} if gpu else {}


def _read(file: Path, process: float) -> Run:
    summary = json.loads(file.read_text(encoding="utf-8"))
    parts = {key: key.split("/") for key in summary}
    accuracy = {part[1]: summary[key] for key, part in parts.items() if part[0] == "test" and part[-1] == "accuracy"}
    return Run({phase["name"]: phase["seconds"] for phase in summary["phases"]}, process, accuracy, summary)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, followed by minimum and maximum if there are several values."""
    middle = format(median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def run_line(run: Run, share: float = 1.0) -> str:
    """One line with the times of a run, and its accuracies unless it ran only a `share` of its steps."""
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in run.phases.items())
    training = f"{phases}; training {run.training:.2f} s"
    if share < 1:
        return f"{training}, scaled up from {share:.0%} of the steps"
    accuracy = ", ".join(f"{task} {value:.4f}" for task, value in run.accuracy.items())
    return f"{training}, process {run.process:.1f} s; test accuracy {accuracy}"


def make_parser(text: str, rounds: int = 3) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share; `text` is the module's docstring."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="runs of each side, in alternation (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of a process (%(default)s)")
    parser.add_argument("--gpu", action="store_true", help="run on the GPU, where the benchmark supports it")
    parser.add_argument("--quick", action="store_true", help="few rows, to try out the benchmark itself")
    parser.add_argument(
        "--generated",
        choices=SIZES,
        help="a random encoder of this size and generated data instead of the quickstart's",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe, for all sides")
    return parser


def recipe_overrides(options: argparse.Namespace) -> list[str]:
    """Overrides of the recipe that the command line asks for."""
    generated = make_quickstart(options.generated) if options.generated else ()
    return [*generated, *(QUICK if options.quick else ()), *options.overrides]
