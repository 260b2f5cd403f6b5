"""Campaigns of injected faults and their driver: faults are drawn from a printed seed, with one line of CSV for each.

`make faults CAMPAIGN=kill ARGS="--count 120 --seed 7 --csv kills.csv"` runs one; `make faults` lists all of them.
"""

import argparse
import csv
import random
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """Result of one injected fault."""

    fault: str
    point: str
    """Where or when the fault was injected."""
    outcome: str
    passed: bool
    hash: str = ""
    """SHA-256 of the final state of the run, or "" if it did not finish."""


@dataclass(frozen=True)
class Campaign:
    """Campaign of faults of one kind."""

    count: int
    """Number of faults of the full campaign."""
    run: Callable[[random.Random, Path, int], Iterator[Outcome]]
    """Draws this many faults, injects them in the given empty folder and yields the outcome of each."""


def main(campaigns: Mapping[str, Campaign], arguments: Sequence[str]) -> int:
    """Runs one campaign; returns 0 if every fault passed."""
    names = "\n".join(f"  {name:<16}{campaign.count} faults" for name, campaign in campaigns.items())
    parser = argparse.ArgumentParser(
        prog="make faults", epilog=f"campaigns:\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", choices=campaigns)
    parser.add_argument("--count", type=int, help="number of faults; default: that of the full campaign")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(2**32), help="seed of the draw; default: a random one"
    )
    parser.add_argument("--csv", type=Path, default=Path("/dev/null"), help="file to write one line for each fault to")
    options = parser.parse_args(arguments)
    campaign = campaigns[options.campaign]
    count = campaign.count if options.count is None else options.count
    print(f"campaign {options.campaign}: {count} faults, seed {options.seed}", flush=True)
    failed = passed = 0
    with tempfile.TemporaryDirectory(prefix="mtl_dist-faults-") as folder, options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Outcome)])
        writer.writeheader()
        for outcome in campaign.run(random.Random(options.seed), Path(folder), count):
            writer.writerow(asdict(outcome))
            file.flush()
            passed, failed = passed + outcome.passed, failed + (not outcome.passed)
            if not outcome.passed:
                print(f"FAILED: {outcome}", flush=True)
            elif sys.stderr.isatty():
                print(f"\r{passed}/{count}", end="", file=sys.stderr)
    print(f"campaign {options.campaign}: {passed} passed, {failed} failed", flush=True)
    return 1 if failed or passed < count else 0  # more than count if a campaign checks more than faults
