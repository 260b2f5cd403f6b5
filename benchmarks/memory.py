"""Peak resident memory of each phase, for mtl_dist and the HF Trainer (c), and the bytes sent to collectives.

`python -m benchmarks.memory [--rounds N] [key=value]...` trains the quickstart for 1+1+1 epochs with both, one process
each, in alternation. Peaks are from a phase's start to its last step (`peak_memory.py`), and include libraries, the
memory-mapped rows that were read and what an earlier phase left. Bytes are what a rank gives to collectives while two
processes train a few steps of each phase: float32 gradients, 4 bytes per element, as counted by the profiler.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.training_runs import (
    PHASES,
    SCHEDULES,
    How,
    make_parser,
    recipe_arguments,
    recipe_overrides,
    run_hf_trainer,
    run_mtl_dist,
    spread,
)

STEPS = 4
"""Steps of each phase when counting the bytes sent to collectives."""
BYTES = 4
"""Size of an element."""


def peaks_of_mtl_dist(arguments: list[str], threads: int) -> dict[str, int]:
    """Peak bytes by phase of one run of mtl_dist."""
    with TemporaryDirectory() as scratch:
        run_mtl_dist(arguments, threads=threads, script=("benchmarks/peak_memory.py", f"{scratch}/peaks"))
        return json.loads(Path(f"{scratch}/peaks.0").read_text())


def peaks_of_hf_trainer(arguments: list[str], threads: int) -> dict[str, int]:
    """Peak bytes by phase of one run of the HF Trainer at its strongest."""
    return {
        phase["name"]: phase["resident"] for phase in run_hf_trainer("c", arguments, threads=threads).summary["phases"]
    }


def sent(overrides: list[str]) -> dict[str, tuple[int, int]]:
    """By phase, the elements that a rank gives to collectives in one step, and the number of trainable parameters."""
    arguments = recipe_arguments((1, 1, 1), *overrides)
    steps = [f"phases.{index}.{key}" for index in range(len(PHASES)) for key in ("epochs=null", f"steps={STEPS}")]
    with TemporaryDirectory() as scratch:
        how: How = {"processes": 2, "threads": 1, "precision": "no"}
        run = run_mtl_dist([*arguments, *steps], script=("tests/distributed/traffic.py", f"{scratch}/traffic"), **how)
        counted = json.loads(Path(f"{scratch}/traffic.0").read_text())
    phases = run.summary["phases"]
    return {
        phase["name"]: (sum(counted[index * STEPS + STEPS // 2].values()), phase["trainable_parameters"])
        for index, phase in enumerate(phases)
    }


def main() -> None:
    options = make_parser(str(__doc__), rounds=1).parse_intermixed_args()
    overrides = recipe_overrides(options)
    arguments = recipe_arguments(SCHEDULES["1+1+1"], *overrides)
    mine, theirs = [], []
    for number in range(options.rounds):
        sides = [(mine, peaks_of_mtl_dist), (theirs, peaks_of_hf_trainer)]
        for peaks, measured in sides if number % 2 == 0 else reversed(sides):
            peaks.append(measured(arguments, options.threads))
    print("peak resident memory in MB: mtl_dist, HF Trainer (c)")
    for phase in PHASES:
        of_sides = [[peaks[phase] / 1e6 for peaks in side] for side in (mine, theirs)]
        print(f"  {phase:<8}{spread(of_sides[0], '.0f'):<28}{spread(of_sides[1], '.0f')}", flush=True)
    print("bytes per step that a rank gives to collectives, two processes: counted, and 4 per trainable parameter")
    for phase, (elements, trainable) in sent(overrides).items():
        print(f"  {phase:<8}{BYTES * elements:<14,}{BYTES * trainable:,}")


if __name__ == "__main__":
    main()
