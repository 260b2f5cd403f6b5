"""Cost of the safety features in the quickstart: a checkpoint every 100 steps, and comparing the replicas.

`python -m benchmarks.safety_overhead [--pairs N] [--processes N] [key=value]...` trains with both and with neither in
alternation, on the same samples, and prints each pair's ratio of the time of the whole run.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.distributed.launching import launched

SIDES = {
    "safe": ("checkpoint.every_steps=100",),
    "bare": ("checkpoint.every_minutes=null", "safety.compare_every_steps=null"),
}


def seconds(folder: Path, processes: int, overrides: list[str]) -> float:
    """Duration of a whole run."""
    began = time.monotonic()
    recipe = ("--config", "recipes/quickstart.yaml", f"output_dir={folder}", *overrides)
    launched("launch/train.py", *recipe, processes=processes)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Times the quickstart with and without checkpoints and replica comparison."
    )
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="processes of a run (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, as for launch/train.py")
    options = parser.parse_args()
    ratios = []
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as scratch:
            took = {}
            for name in SIDES if pair % 2 == 0 else reversed(SIDES):
                settings = [*options.overrides, *SIDES[name]]
                took[name] = seconds(Path(scratch) / name, options.processes, settings)
        safe, bare = took["safe"], took["bare"]
        ratios.append(safe / bare)
        print(f"pair {pair + 1}: {safe:.1f} s with, {bare:.1f} s without, ratio {ratios[-1]:.4f}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})")


if __name__ == "__main__":
    main()
