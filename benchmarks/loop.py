"""Overhead of the training loop per step, over a bare PyTorch loop with the same forward, backward, clip and update.

`python -m benchmarks.loop [--gpu] [--steps N] [--rounds N] [key=value]...` trains a tiny encoder in float32 in this
process on one thread: the heads with the frozen encoder computed at every step, the heads on cached sentence vectors
(after a phase that fills the activation cache and is not timed), and everything. In alternation:

    mtl_dist  a run through `mtl_dist.training.run`, with logging, replica comparison and collectives; seconds from its
              summary
    bare      the same model and parameter groups on the same batches, which are ready in memory, as are cached vectors
    loader    the bare loop on the same rows in memory, token lists or vectors, batched by torch's DataLoader, as a user
              would write it

Printed are microseconds per step, and the differences of mtl_dist to the other two, as median (minimum to maximum).
"""

import contextlib
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, default_collate
from transformers import DataCollatorWithPadding

from benchmarks.hf_baseline import Example, Rows
from benchmarks.training_runs import make_parser, spread
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.collate import Batch
from mtl_dist.engines.optimizer import parameter_groups
from mtl_dist.models.multitask import PrefixState
from mtl_dist.training.context import RunContext
from tests.utils.in_process import run_here, setup_here, summary_of
from tests.utils.tiny import tiny_recipe_file

CASES = {
    "heads": ("never", ["heads"]),
    "heads, cached vectors": ("always", ["heads", "heads"]),
    "all": ("never", ["all"]),
}
"""Cache mode, and trainable units of each phase; only the last phase is timed."""
ROWS = 480
"""Rows of each of two tasks."""


def mtl_dist_loop(recipe: Recipe, on_cpu: bool) -> float:
    """Seconds per step of the last phase of a whole run."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_here(recipe, on_cpu=on_cpu)
    phase = summary_of(Path(recipe.output_dir))["phases"][-1]
    return phase["seconds"] / phase["steps"]


Inputs = tuple[Batch, PrefixState | None]


def device_of(setup: RunContext) -> torch.device:
    """The device that holds the model."""
    return next(setup.engine.model.parameters()).device


def inputs_of(setup: RunContext, step: int) -> Inputs:
    """The rows of a step, on the device, and their cached sentence vectors if the run caches them."""
    batch = setup.sampler.batch(step)
    inputs = setup.data.training_batch(batch.pool_ids, batch.rows).to(device_of(setup))
    if setup.recipe.cache.mode == "never":
        return inputs, None
    model = setup.engine.model.eval()
    depth = model.layout.num_blocks
    return inputs, PrefixState(depth, model.run_prefix([depth], inputs.input_ids, inputs.attention_mask)[depth])


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def bare(setup: RunContext, inputs: Iterable[Inputs]) -> float:
    """Seconds per step of a plain loop over the last phase, whose batches are `inputs`; `setup` is a new one."""
    phase = setup.rates.schedule.phases[-1]
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    model, config = setup.engine.model, setup.recipe.optimizer
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for group in parameter_groups(model, {unit: model.unit_parameters()[unit] for unit in phase.units}, config):
        key = config.lr * setup.rates.unit_factor(group["unit"]), group["weight_decay"]
        groups.setdefault(key, {"lr": key[0], "weight_decay": key[1], "params": []})["params"] += group["params"]
    optimizer = torch.optim.AdamW(list(groups.values()), fused=True)
    trainable = [parameter for group in groups.values() for parameter in group["params"]]
    synchronize(device_of(setup))
    began = time.perf_counter()
    for batch, prefix in inputs:
        logits = model(batch.input_ids, batch.attention_mask, batch.rows, batch.token_type_ids, prefix)
        loss = torch.stack([cross_entropy(logits[task], batch.labels[task]) for task in logits]).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, config.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    synchronize(device_of(setup))
    return (time.perf_counter() - began) / phase.steps


def loaded(ready: Sequence[Inputs], setup: RunContext) -> Iterator[Inputs]:
    """The batches of `ready`, collated from their rows by a DataLoader."""
    examples: list[Example] = []
    for batch, prefix in ((one.to("cpu"), state) for one, state in ready):
        for index, (task, rows) in enumerate(batch.rows.items()):
            for row, label in zip(rows.tolist(), batch.labels[task].tolist(), strict=True):
                example = {"task": index, "labels": label}
                if prefix is None:
                    example["input_ids"] = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
                    example["attention_mask"] = [1] * len(example["input_ids"])
                else:
                    example["vector"] = prefix.states[row].cpu()
                examples.append(example)
    depth = None if ready[0][1] is None else ready[0][1].depth
    collate = default_collate if depth else DataCollatorWithPadding(setup.data.tokenizer)
    empty = torch.zeros(setup.recipe.batch_size, 1, dtype=torch.int64)

    def as_inputs(read: Mapping[str, Tensor]) -> Inputs:
        rows = {task: (read["task"] == index).nonzero().flatten() for index, task in enumerate(setup.data.tasks)}
        labels = {task: read["labels"][at] for task, at in rows.items()}
        tokens, mask = read.get("input_ids", empty), read.get("attention_mask", empty)
        batch = Batch(tokens, mask, None, rows, labels).to(device_of(setup))
        return batch, None if depth is None else PrefixState(depth, read["vector"].to(device_of(setup)))

    return map(as_inputs, DataLoader(Rows(examples), batch_size=setup.recipe.batch_size, collate_fn=collate))


def measure(recipe: Recipe, rounds: int, on_cpu: bool) -> dict[str, list[float]]:
    """Microseconds per step of each loop, by round."""
    setup = setup_here(recipe, on_cpu=on_cpu)
    phase = setup.rates.schedule.phases[-1]
    ready = [inputs_of(setup, step) for step in range(phase.start, phase.stop)]
    loops: dict[str, Callable[[], float]] = {
        "mtl_dist": lambda: mtl_dist_loop(recipe, on_cpu),
        "bare": lambda: bare(setup_here(recipe, on_cpu=on_cpu), ready),
        "loader": lambda: bare(setup_here(recipe, on_cpu=on_cpu), loaded(ready, setup)),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 1):
        turn = number % len(loops)
        for name in islice([*loops, *loops], turn, turn + len(loops)):
            seconds = loops[name]()
            if number:  # the first round is a warm-up
                times[name].append(seconds * 1e6)
    return times


def report(case: str, times: dict[str, list[float]]) -> None:
    """Prints the times of one case."""
    print(f"{case}: microseconds per step")
    for name, values in times.items():
        print(f"  {name:<10}{spread(values, '.0f')}")
    for name in ("bare", "loader"):
        overhead = [mine - other for mine, other in zip(times["mtl_dist"], times[name], strict=True)]
        print(f"  mtl_dist minus {name}: {spread(overhead, '.0f')}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(str(__doc__), rounds=5)
    parser.add_argument("--steps", type=int, help="timed steps of a run (1000, or 100 with --quick)")
    options = parser.parse_intermixed_args(arguments)
    steps = options.steps or (100 if options.quick else 1000)
    torch.set_num_threads(1)
    for case, (mode, trains) in CASES.items():
        with TemporaryDirectory() as scratch:
            file = tiny_recipe_file(Path(scratch), rows=ROWS)
            # All phases but the last are one pass over the rows.
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
            report(case, measure(recipe, options.rounds, on_cpu=not options.gpu))


if __name__ == "__main__":
    main()
