"""What the harness's loop costs a step, over a bare PyTorch loop that does the same forward, backward, clip and update.

`python -m benchmarks.loop [--steps N] [--rounds N] [key=value]...` trains a tiny encoder in float32 in this process on
one thread, with heads alone and with everything training; the frozen prefix is computed at every step. In turn:

    harness   a run through `mtl_dist.run`, with its log lines, comparisons and votes; seconds from its summary
    bare      the same model on the same batches, which lie ready in memory
    reading   the bare loop, which also asks the plan for each batch and reads its rows

Printed are microseconds a step, and what the harness takes beyond the other two, as median (least to greatest).
"""

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.runs import NO_CACHE, parser_of, spread
from mtl_dist.batches import Batch
from mtl_dist.cli import parse
from mtl_dist.recipe import Recipe
from mtl_dist.trainer import TrainingSetup
from tests.in_process import run_here, setup_here, summary_of
from tests.tiny import tiny_recipe_file

CASES = {"heads": "[heads]", "all": "[all]"}
"""What trains."""


def harness(recipe: Recipe) -> float:
    """Seconds a step of a whole run."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_here(recipe)
    (phase,) = summary_of(Path(recipe.output_dir))["phases"]
    return phase["seconds"] / phase["steps"]


def batch_of(setup: TrainingSetup, step: int) -> Batch:
    batch = setup.plan.batch(step)
    return setup.data.batch("train", batch.task_ids, batch.rows)


def bare(setup: TrainingSetup, batches: Callable[[int], Batch], steps: int) -> float:
    """Seconds a step of a plain loop; `setup` is fresh."""
    (phase,) = setup.rates.schedule.phases
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    model, config = setup.engine.raw, setup.recipe.optimizer
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    began = time.perf_counter()
    for step in range(steps):
        batch = batches(step)
        logits = model(batch.input_ids, batch.attention_mask, batch.rows, batch.token_type_ids)
        loss = torch.stack([cross_entropy(logits[task], batch.labels[task]) for task in logits]).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, config.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / steps


def measure(recipe: Recipe, rounds: int) -> dict[str, list[float]]:
    """Microseconds a step of each loop, by round."""
    steps = recipe.phases[0].steps or 0
    ready = [batch_of(setup_here(recipe), step) for step in range(steps)]

    def reading() -> float:
        setup = setup_here(recipe)
        return bare(setup, lambda step: batch_of(setup, step), steps)

    loops: dict[str, Callable[[], float]] = {
        "harness": lambda: harness(recipe),
        "bare": lambda: bare(setup_here(recipe), ready.__getitem__, steps),
        "reading": reading,
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        turn = number % len(loops)
        for name in islice([*loops, *loops], turn, turn + len(loops)):
            seconds = loops[name]()
            if number:  # the first round warms up
                times[name].append(seconds * 1e6)
    return times


def report(case: str, times: dict[str, list[float]]) -> None:
    print(f"{case}: microseconds a step")
    for name, values in times.items():
        print(f"  {name:<10}{spread(values, '.0f')}")
    for name in ("bare", "reading"):
        beyond = [mine - other for mine, other in zip(times["harness"], times[name], strict=True)]
        print(f"  harness beyond {name}: {spread(beyond, '.0f')}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(str(__doc__), rounds=5)
    parser.add_argument("--steps", type=int, help="of a run (1000, or 100 with --quick)")
    options = parser.parse_intermixed_args(arguments)
    steps = options.steps or (100 if options.quick else 1000)
    torch.set_num_threads(1)
    for case, trains in CASES.items():
        with TemporaryDirectory() as scratch:
            file = tiny_recipe_file(Path(scratch), rows=480)
            phases = f"phases=[{{name: {case}, train: {trains}, steps: {steps}}}]"
            quiet = ("tracking.log_every_steps=10", f"data.cache_dir={scratch}/cache", "checkpoint.every_minutes=null")
            recipe = parse(["--config", str(file), phases, *quiet, *NO_CACHE, *options.overrides]).recipe
            report(case, measure(recipe, options.rounds))


if __name__ == "__main__":
    main()
