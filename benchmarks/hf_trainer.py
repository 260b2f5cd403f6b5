"""Training time of the HF Trainer relative to mtl_dist, by phase, with the same rows, epochs and learning rates.

`python -m benchmarks.hf_trainer [--against SIDE]... [--schedule S]... [--share S] [key=value]...` trains the
quickstart with mtl_dist (bf16, batches of 32) and with the HF Trainer (`hf_baseline.py`), in alternation, every run in
processes of its own; round r uses the recipe's seed + r. Printed are a round's seconds of the HF Trainer over those of
mtl_dist, as median (minimum to maximum), for each phase, for all training, and for the whole process (see
`training_runs.py`). mtl_dist draws whole batches, and so up to 31 rows more in a phase. "equal" means that the mean
accuracies are within the larger of their standard deviations over the rounds.
"""

import argparse
from collections.abc import Sequence
from statistics import mean, stdev

from benchmarks.hf_baseline import SIDES
from benchmarks.training_runs import (
    SCHEDULES,
    How,
    Run,
    make_parser,
    recipe_arguments,
    recipe_overrides,
    run_hf_trainer,
    run_line,
    run_mtl_dist,
    spread,
)
from mtl_dist.config.load import parse

OURS = "mtl_dist"
SCALED = "a"
"""The side that `--share` applies to: all its steps take equally long."""


def run_all(schedule: str, options: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs of every side, one per round; the side that begins changes from round to round."""
    ran: dict[str, list[Run]] = {side: [] for side in (OURS, *options.against)}
    how: How = {"threads": options.threads, "gpu": options.gpu}
    for number in range(options.rounds):
        base = recipe_arguments(SCHEDULES[schedule], *recipe_overrides(options))
        arguments = [*base, f"seed={parse(base).recipe.seed + number}"]
        turn = number % len(ran)
        order = [*list(ran)[turn:], *list(ran)[:turn]]
        for side in order:
            part = options.share if side == SCALED else 1.0
            run = run_mtl_dist(arguments, **how) if side == OURS else run_hf_trainer(side, arguments, part, **how)
            ran[side].append(run)
            print(f"{schedule}, round {number + 1}, {side}: {run_line(run, part)}", flush=True)
    return ran


def ratios(theirs: Sequence[Run], mine: Sequence[Run], whole: bool) -> dict[str, list[float]]:
    """Ratios of seconds by round, for each phase and all training; with `whole`, also for the whole process."""
    pairs = list(zip(theirs, mine, strict=True))
    by_phase = {name: [a.phases[name] / b.phases[name] for a, b in pairs] for name in mine[0].phases}
    training = {"training": [a.training / b.training for a, b in pairs]}
    return by_phase | training | ({"process": [a.process / b.process for a, b in pairs]} if whole else {})


def compared(task: str, theirs: Sequence[Run], mine: Sequence[Run]) -> str:
    """A line with the accuracies of both sides on one task."""
    sides = [[run.accuracy[task] for run in runs] for runs in (mine, theirs)]
    if len(mine) == 1:
        return f"{task}: {sides[0][0]:.4f}, HF {sides[1][0]:.4f}"
    (m, s), (m_theirs, s_theirs) = ((mean(values), stdev(values)) for values in sides)
    verdict = "equal" if abs(m - m_theirs) <= max(s, s_theirs) else f"differs by {m - m_theirs:+.4f}"
    return f"{task}: {m:.4f} ± {s:.4f}, HF {m_theirs:.4f} ± {s_theirs:.4f} ({verdict})"


def report(schedule: str, ran: dict[str, list[Run]], share: float) -> None:
    print(f"\n{schedule}: times as long as mtl_dist, in {len(ran[OURS])} rounds")
    for side, runs in ran.items():
        if side == OURS:
            continue
        part = share if side == SCALED else 1.0
        note = f"; ONLY {part:.0%} OF THE STEPS RUN, seconds scaled up by steps, no accuracy" if part < 1 else ""
        print(f"  ({side}) {SIDES[side].title}{note}")
        for name, values in ratios(runs, ran[OURS], whole=part == 1).items():
            print(f"      {name:<10}{spread(values)}")
        for task in ran[OURS][0].accuracy if part == 1 else ():
            print(f"      test accuracy, {compared(task, runs, ran[OURS])}")
    print(flush=True)


def main() -> None:
    parser = make_parser(str(__doc__))
    parser.add_argument("--against", action="append", choices=SIDES, help="side to compare with; repeatable (all)")
    parser.add_argument("--schedule", action="append", choices=SCHEDULES, help="epochs of the phases; repeatable (all)")
    parser.add_argument("--share", type=float, default=1.0, help=f"share of the steps of ({SCALED}) to run (1)")
    options = parser.parse_intermixed_args()
    options.against = options.against or list(SIDES)
    for schedule in options.schedule or SCHEDULES:
        report(schedule, run_all(schedule, options), options.share)


if __name__ == "__main__":
    main()
