"""What the harness's loop costs a step, over a bare PyTorch loop that does the same forward, backward, clip and update.

`python -m benchmarks.loop [--steps N] [--rounds N] [key=value]...` trains a tiny encoder in float32 in this process on
one thread: heads alone with the frozen encoder computed at every step, heads alone on kept sentence vectors (after a
phase that has filled the cache, and does not count), and everything. In turn:

    harness   a run through `mtl_dist.run`, with its log lines, comparisons and votes; seconds from its summary
    bare      the same model on the same batches, which lie ready in memory, as do kept vectors
    reading   the bare loop, which also asks the plan for each batch and reads its rows

Printed are microseconds a step, and what the harness takes beyond the other two, as median (least to greatest).
"""

import contextlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.runs import parser_of, spread
from mtl_dist.batches import Batch
from mtl_dist.cli import parse
from mtl_dist.model import Below
from mtl_dist.recipe import Recipe
from mtl_dist.trainer import TrainingSetup
from tests.in_process import run_here, setup_here, summary_of
from tests.tiny import tiny_recipe_file

CASES = {
    "heads": ("never", ["heads"]),
    "heads, kept vectors": ("always", ["heads", "heads"]),
    "all": ("never", ["all"]),
}
"""Mode of the cache, and what each phase trains; the last one counts."""
ROWS = 480
"""Of each of two tasks."""


def harness(recipe: Recipe) -> float:
    """Seconds a step of a whole run's last phase."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_here(recipe)
    phase = summary_of(Path(recipe.output_dir))["phases"][-1]
    return phase["seconds"] / phase["steps"]


Inputs = tuple[Batch, Below | None]


def inputs_of(setup: TrainingSetup, step: int) -> Inputs:
    """The rows of a step, with what is kept of them."""
    batch = setup.plan.batch(step)
    inputs = setup.data.batch("train", batch.task_ids, batch.rows)
    if setup.recipe.cache.mode == "never":
        return inputs, None
    model = setup.engine.raw.eval()
    level = model.anatomy.num_blocks
    return inputs, (level, model.run_below([level], inputs.input_ids, inputs.attention_mask)[level])


def bare(setup: TrainingSetup, inputs: Callable[[int], Inputs]) -> float:
    """Seconds a step of a plain loop over the last phase; `setup` is fresh."""
    phase = setup.rates.schedule.phases[-1]
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    model, config = setup.engine.raw, setup.recipe.optimizer
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    began = time.perf_counter()
    for step in range(phase.start, phase.stop):
        batch, below = inputs(step)
        logits = model(batch.input_ids, batch.attention_mask, batch.rows, batch.token_type_ids, below)
        loss = torch.stack([cross_entropy(logits[task], batch.labels[task]) for task in logits]).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, config.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / phase.steps


def reading(recipe: Recipe, ready: Mapping[int, Inputs]) -> float:
    """As `bare`, with the rows read anew; what is kept of them lies ready."""
    setup = setup_here(recipe)

    def read(step: int) -> Inputs:
        batch, below = setup.plan.batch(step), ready[step][1]
        return setup.data.batch("train", batch.task_ids, batch.rows, with_tokens=below is None), below

    return bare(setup, read)


def measure(recipe: Recipe, rounds: int) -> dict[str, list[float]]:
    """Microseconds a step of each loop, by round."""
    setup = setup_here(recipe)
    phase = setup.rates.schedule.phases[-1]
    ready = {step: inputs_of(setup, step) for step in range(phase.start, phase.stop)}
    loops: dict[str, Callable[[], float]] = {
        "harness": lambda: harness(recipe),
        "bare": lambda: bare(setup_here(recipe), ready.__getitem__),
        "reading": lambda: reading(recipe, ready),
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
    for case, (mode, trains) in CASES.items():
        with TemporaryDirectory() as scratch:
            file = tiny_recipe_file(Path(scratch), rows=ROWS)
            # All but the last phase are one pass over the rows.
            lengths = [*["epochs: 1"] * (len(trains) - 1), f"steps: {steps}"]
            phases = [
                f"{{name: p{number}, train: [{unit}], {length}}}"
                for number, (unit, length) in enumerate(zip(trains, lengths, strict=True))
            ]
            settings = (
                f"phases=[{', '.join(phases)}]",
                f"cache.mode={mode}",
                f"data.cache_dir={scratch}/cache",
                "tracking.log_every_steps=10",
                "checkpoint.every_minutes=null",
            )
            recipe = parse(["--config", str(file), *settings, *options.overrides]).recipe
            report(case, measure(recipe, options.rounds))


if __name__ == "__main__":
    main()
