"""Utilization: useful FLOP/s of training over the machine's bf16 matrix rate, for mtl_dist and the HF Trainer (c).

`python -m benchmarks.flops [--rounds N] [key=value]...` runs both in alternation for 1+1+1 epochs of the quickstart.
Useful FLOP of an example of T tokens, excluding padding:

    forward   for a block, 2 x T x its parameters in matrices + 4 x T x T x hidden for attention; for the head of its
              task, 2 x its parameters in matrices; for the embeddings, which are looked up, nothing
    training  three times the forward of trainable units, once that of frozen ones

An activation read from the cache counts as if it had been computed, so a phase can exceed the matrix rate. The rate is
the best of torch's bf16 linear layers on the shapes of this encoder and batch, with the threads of the training run,
measured before every run.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import linear

from benchmarks.training_runs import (
    SCHEDULES,
    How,
    Run,
    make_parser,
    recipe_arguments,
    recipe_overrides,
    run_hf_trainer,
    run_mtl_dist,
    spread,
)
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import DataBundle, prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.schedule.phases import trainable_units
from mtl_dist.training.build import build_model, check_encoder

TOKENS = (256, 512, 1024, 2048)
"""Rows of the matrices used to measure the rate: a batch has some hundreds of tokens."""
SECONDS = 0.3
"""Time for which each shape is repeated."""


def matrix_rate(hidden: int, inner: int, threads: int, device: str = "cpu") -> float:
    """FLOP/s of the fastest bf16 product of activations [tokens, in] with weights [out, in]."""
    torch.set_num_threads(threads)
    best = 0.0
    calls = 100 if device == "cuda" else 1  # a GPU runs asynchronously
    for tokens in TOKENS:
        for out, into in ((hidden, hidden), (inner, hidden), (hidden, inner)):
            x = torch.randn(tokens, into, device=device).bfloat16()
            weight = torch.randn(out, into, device=device).bfloat16()
            ends = time.perf_counter() + SECONDS
            while (began := time.perf_counter()) < ends:
                for _ in range(calls):
                    linear(x, weight)
                if device == "cuda":
                    torch.cuda.synchronize()
                best = max(best, calls * 2 * tokens * out * into / (time.perf_counter() - began))
    return best


@dataclass(frozen=True)
class Work:
    """Sizes that determine the FLOP of a phase."""

    hidden: int
    inner: int
    matrices: Mapping[str, int]
    """Number of parameters in matrices by unit; without the embeddings, which are looked up."""
    trainable: Mapping[str, tuple[str, ...]]
    """Trainable units by phase."""
    lengths: np.ndarray
    """Tokens of each row of all tasks, shape [rows]."""
    heads: Mapping[str, float]
    """Share of the examples that go through each head."""

    def useful(self, phase: str, examples: float) -> float:
        """Useful FLOP of a phase that draws `examples` rows."""
        trainable = self.trainable[phase]
        lengths = self.lengths.astype(np.float64)
        tokens, squares = lengths.mean() * examples, (lengths**2).mean() * examples
        total = 0.0
        for unit, matrices in self.matrices.items():
            if unit.startswith("heads."):
                forward = 2 * matrices * examples * self.heads[unit]
            else:
                forward = 2 * matrices * tokens + 4 * self.hidden * squares
            total += forward * (3 if unit in trainable else 1)
        return total


def work_of(recipe: Recipe) -> Work:
    """The sizes of the recipe's encoder and rows."""
    config, _ = check_encoder(recipe)
    data: DataBundle = prepare(recipe, ProcessGroup())
    model = build_model(recipe, config, data)
    parameters = dict(model.named_parameters())
    units = {unit: names for unit, names in model.unit_parameters().items() if unit != "embeddings"}
    matrices = {
        unit: sum(parameters[name].numel() for name in names if parameters[name].ndim == 2)
        for unit, names in units.items()
    }
    trainable = trainable_units(recipe, model.layout.num_blocks)
    lengths = [pool.examples.splits["train"].lengths for pool in data.pools]
    lengths = [each if pool.rows is None else each[pool.rows] for pool, each in zip(data.pools, lengths, strict=True)]
    total = sum(pool.size for pool in data.pools)
    return Work(
        config.hidden_size,
        config.intermediate_size,
        matrices,
        {phase.name: units for phase, units in zip(recipe.phases, trainable, strict=True)},
        np.concatenate(lengths),
        {f"heads.{name}": task.rows("train") / total for name, task in data.tasks.items()},
    )


def main() -> None:
    parser = make_parser(str(__doc__))
    options = parser.parse_intermixed_args()
    arguments, threads = recipe_arguments(SCHEDULES["1+1+1"], *recipe_overrides(options)), options.threads
    how: How = {"threads": threads, "gpu": options.gpu}
    asked = parse(arguments).recipe
    work = work_of(asked)
    ran: dict[str, list[tuple[Run, float]]] = {"mtl_dist": [], "HF (c)": []}
    for number in range(options.rounds):
        for side in list(ran) if number % 2 == 0 else reversed(ran):
            rate = matrix_rate(work.hidden, work.inner, threads, "cuda" if options.gpu else "cpu")
            run = run_mtl_dist(arguments, **how) if side == "mtl_dist" else run_hf_trainer("c", arguments, **how)
            ran[side].append((run, rate))
    rates = [rate / 1e12 for runs in ran.values() for _, rate in runs]
    print(f"bf16 matrix rate, {threads} threads: {spread(rates, '.3f')} TFLOP/s")
    for phase in asked.phases:
        useful = work.useful(phase.name, (phase.epochs or 0) * len(work.lengths))
        print(f"{phase.name}: {useful / 1e12:.3f} useful TFLOP")
        for side, runs in ran.items():
            speeds = [useful / run.phases[phase.name] / 1e12 for run, _ in runs]
            parts = [100 * useful / run.phases[phase.name] / rate for run, rate in runs]
            print(f"  {side:<10}{spread(speeds, '.3f')} TFLOP/s, {spread(parts, '.1f')} % of the matrix rate")


if __name__ == "__main__":
    main()
