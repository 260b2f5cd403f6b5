"""Peak resident memory of each phase, of this harness and of the HF Trainer (c); bytes on the wire of each phase.

`python -m benchmarks.memory [--rounds N] [key=value]...` trains the quickstart for 1+1+1 epochs with both, one process
each, in turn. Peaks are from a phase's start to its last step (`resident.py`): the libraries, the memory-mapped rows
that were read and what an earlier phase left are in. Bytes are what a rank gives to collectives while two processes
train a few steps of each phase: float32 gradients, 4 bytes an element, as the profiler counts them.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.runs import PHASES, SCHEDULES, How, ours, overrides_of, parser_of, recipe, rival, spread

STEPS = 4
"""Of each phase, for what goes over the wire."""
BYTES = 4


def resident(arguments: list[str], threads: int) -> dict[str, int]:
    """Bytes by phase of one run of the harness."""
    with TemporaryDirectory() as scratch:
        ours(arguments, threads=threads, script=("benchmarks/resident.py", f"{scratch}/peaks"))
        return json.loads(Path(f"{scratch}/peaks.0").read_text())


def resident_rival(arguments: list[str], threads: int) -> dict[str, int]:
    """Bytes by phase of one run of the HF Trainer at its strongest."""
    return {phase["name"]: phase["resident"] for phase in rival("c", arguments, threads=threads).summary["phases"]}


def sent(overrides: list[str]) -> dict[str, tuple[int, int]]:
    """Elements that a rank gives to collectives by phase, in a step of the middle, and parameters that train."""
    arguments = recipe((1, 1, 1), *overrides)
    steps = [f"phases.{index}.{key}" for index in range(len(PHASES)) for key in ("epochs=null", f"steps={STEPS}")]
    with TemporaryDirectory() as scratch:
        how: How = {"processes": 2, "threads": 1, "precision": "no"}
        run = ours([*arguments, *steps], script=("tests/distributed/traffic.py", f"{scratch}/traffic"), **how)
        counted = json.loads(Path(f"{scratch}/traffic.0").read_text())
    phases = run.summary["phases"]
    return {
        phase["name"]: (sum(counted[index * STEPS + STEPS // 2].values()), phase["trainable_parameters"])
        for index, phase in enumerate(phases)
    }


def main() -> None:
    options = parser_of(str(__doc__), rounds=1).parse_intermixed_args()
    overrides = overrides_of(options)
    arguments = recipe(SCHEDULES["1+1+1"], *overrides)
    mine, theirs = [], []
    for number in range(options.rounds):
        sides = [(mine, resident), (theirs, resident_rival)]
        for peaks, measured in sides if number % 2 == 0 else reversed(sides):
            peaks.append(measured(arguments, options.threads))
    print("peak resident memory in MB: harness, HF Trainer (c)")
    for phase in PHASES:
        of_sides = [[peaks[phase] / 1e6 for peaks in side] for side in (mine, theirs)]
        print(f"  {phase:<8}{spread(of_sides[0], '.0f'):<28}{spread(of_sides[1], '.0f')}", flush=True)
    print("bytes that a rank gives to collectives in a step, two processes: all, and 4 a trainable parameter")
    for phase, (elements, trainable) in sent(overrides).items():
        print(f"  {phase:<8}{BYTES * elements:<14,}{BYTES * trainable:,}")


if __name__ == "__main__":
    main()
