"""Runs of a benchmark, each in processes of its own: this harness, or the HF Trainer on the same recipe.

Both leave the same figures. `phases` are seconds of training: from the first step's batch to the last step's update,
with all that happens between (reading rows, logging, filling a cache), without loading, tokenising, evaluation and
saving. `process` is the whole command, from before `accelerate launch` to after it: with all of these.
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

from tests.distributed.launching import How as Launch
from tests.distributed.launching import launched

PHASES = {"heads": "[heads]", "upper": '[heads, "blocks[-2:]"]', "all": "[all]"}
"""What trains: the heads, then the upper third of six blocks as well, then everything."""
SCHEDULES = {"1+1+1": (1, 1, 1), "3+3+3": (3, 3, 3), "heads only": (10,)}
"""Epochs of the first of PHASES. An epoch is as many examples as all tasks together have training rows."""
QUICK = ("tasks.domain.max_rows=320", "tasks.sentiment.max_rows=320", "optimizer.warmup_steps=4")
"""For a trial of a benchmark, not for a figure."""
TIMEOUT = 4 * 3600.0


@dataclass(frozen=True)
class Run:
    """What one run took and reached."""

    phases: dict[str, float]
    """Seconds of training by phase."""
    process: float
    """Seconds of the whole command."""
    accuracy: dict[str, float]
    """On the test split, by task."""
    summary: dict[str, Any]
    """All that the run has written down."""

    @property
    def training(self) -> float:
        return sum(self.phases.values())


class How(TypedDict, total=False):
    """How to start this harness."""

    precision: str
    """bf16 at first."""
    processes: int
    """1 at first."""
    threads: int
    """Of each process; 2 at first."""
    gpu: bool
    """On this machine's GPU; on its CPU at first."""
    script: tuple[str, ...]
    """In place of launch/train.py, with what goes before the recipe's arguments."""


def recipe(epochs: Sequence[float], *overrides: str, first: int = 0) -> list[str]:
    """Arguments of launch/train.py: the quickstart for `epochs` of PHASES, from the one numbered `first` on."""
    phases = [
        f"{{name: {name}, train: {train}, epochs: {length}}}"
        for (name, train), length in zip(list(PHASES.items())[first:], epochs, strict=False)
    ]
    bare = ("checkpoint.every_minutes=null",)
    return ["--config", "recipes/quickstart.yaml", f"phases=[{', '.join(phases)}]", *bare, *overrides]


def ours(arguments: Sequence[str], **how: Unpack[How]) -> Run:
    """Trains with this harness."""
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


def rival(side: str, arguments: Sequence[str], share: float = 1.0, **how: Unpack[How]) -> Run:
    """Trains with the HF Trainer as `side` of rival.py sets it up.

    With a `share` below 1 each phase runs that share of its steps, and its seconds are scaled up by the steps left
    out; the accuracy is then no figure, and neither is `process`.
    """
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        gpu = how.get("gpu", False)
        before = ("--side", side, "--out", str(out), "--share", str(share), *(["--gpu"] if gpu else []))
        began = time.monotonic()
        settings = f"data.cache_dir={scratch}/cache"
        threads = how.get("threads", 2)
        launched("benchmarks/rival.py", *before, *arguments, settings, threads=threads, timeout=TIMEOUT, **_config(gpu))
        return _read(out / "summary.json", time.monotonic() - began)


def _config(gpu: bool) -> Launch:
    """How to launch on the GPU, else nothing."""
    return {"config": "gpu.yaml"} if gpu else {}


def _read(file: Path, process: float) -> Run:
    summary = json.loads(file.read_text(encoding="utf-8"))
    parts = {key: key.split("/") for key in summary}
    accuracy = {part[1]: summary[key] for key, part in parts.items() if part[0] == "test" and part[-1] == "accuracy"}
    return Run({phase["name"]: phase["seconds"] for phase in summary["phases"]}, process, accuracy, summary)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, with the least and the greatest where there are several."""
    middle = format(median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def said(run: Run, share: float = 1.0) -> str:
    """One run in a line; of one that ran only a `share` of its steps, what is a figure."""
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in run.phases.items())
    training = f"{phases}; training {run.training:.2f} s"
    if share < 1:
        return f"{training}, scaled up from {share:.0%} of the steps"
    accuracy = ", ".join(f"{task} {value:.4f}" for task, value in run.accuracy.items())
    return f"{training}, process {run.process:.1f} s; test accuracy {accuracy}"


def parser_of(text: str, rounds: int = 3) -> argparse.ArgumentParser:
    """Options that all these benchmarks have; `text` is the module's docstring."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="times that each side runs, in turn (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of one process (%(default)s)")
    parser.add_argument("--gpu", action="store_true", help="on the GPU, where the benchmark knows how (on the CPU)")
    parser.add_argument("--quick", action="store_true", help="few rows, for a trial of the benchmark itself")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, for both sides")
    return parser


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The recipe's changes that the command line asks for."""
    return [*(QUICK if options.quick else ()), *options.overrides]
