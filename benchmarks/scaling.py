"""Tokens per second of one process with two threads, compared with two processes of one thread each (DDP over gloo).

`python -m benchmarks.scaling [--epochs E] [--rounds N] [key=value]...` trains the quickstart's last phase, in which
everything is trained, on the same samples, in bf16 and in float32. Seconds are those of training (see
`training_runs.py`); padding does not count as tokens, so the ratio is that of the seconds.
"""

from benchmarks.training_runs import Run, make_parser, recipe_arguments, recipe_overrides, run_mtl_dist, spread
from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.training.build import build_sampler

SHAPES = {"1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}
LAST = 2
"""Index of the phase."""


def tokens_of(recipe: Recipe, steps: int) -> int:
    """Number of tokens in the samples of the first `steps` steps."""
    plan = build_sampler(recipe, prepare(recipe, ProcessGroup()))
    return sum(int(plan.batch(step).lengths.sum()) for step in range(steps))


def measure(precision: str, arguments: list[str], rounds: int) -> dict[str, list[Run]]:
    """The runs of each shape, one per round."""
    ran: dict[str, list[Run]] = {shape: [] for shape in SHAPES}
    for number in range(rounds):
        for shape in list(SHAPES) if number % 2 == 0 else reversed(SHAPES):
            processes, threads = SHAPES[shape]
            ran[shape].append(run_mtl_dist(arguments, precision=precision, processes=processes, threads=threads))
            print(f"{precision}, round {number + 1}, {shape}: {ran[shape][-1].training:.2f} s", flush=True)
    return ran


def main() -> None:
    parser = make_parser(str(__doc__))
    parser.add_argument("--epochs", type=float, default=1.0, help="epochs to train (%(default)s)")
    options = parser.parse_intermixed_args()
    arguments = recipe_arguments((options.epochs,), *recipe_overrides(options), first=LAST)
    for precision, name in (("bf16", "bf16"), ("no", "float32")):
        ran = measure(precision, arguments, options.rounds)
        one, two = ran.values()
        tokens = tokens_of(parse(arguments).recipe, one[0].summary["steps"])
        assert {run.summary["steps"] for runs in ran.values() for run in runs} == {one[0].summary["steps"]}
        for shape, runs in ran.items():
            print(f"{name}, {shape}: {spread([tokens / run.training for run in runs], '.0f')} tokens per second")
        parts = [a.training / b.training for a, b in zip(one, two, strict=True)]
        print(f"{name}: throughput of two processes over one: {spread(parts)}\n", flush=True)


if __name__ == "__main__":
    main()
