"""What a campaign of faults is, and its driver: faults drawn from a printed seed, a line of CSV for each.

`make faults CAMPAIGN=kill ARGS="--count 120 --seed 7 --csv kills.csv"`; without a campaign all of them are listed.
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
    """One fault and what became of the run."""

    fault: str
    point: str
    """Where or when it struck."""
    outcome: str
    passed: bool
    hash: str = ""
    """SHA-256 of the final state, where a run came to its end."""


@dataclass(frozen=True)
class Campaign:
    """Faults of one kind."""

    count: int
    """Faults of the full campaign."""
    run: Callable[[random.Random, Path, int], Iterator[Outcome]]
    """Draws this many faults, in an empty folder of its own, and yields what became of each."""


def main(campaigns: Mapping[str, Campaign], arguments: Sequence[str]) -> int:
    """Runs one campaign; returns 0 if every fault passed."""
    names = "\n".join(f"  {name:<16}{campaign.count} faults" for name, campaign in campaigns.items())
    parser = argparse.ArgumentParser(
        prog="make faults", epilog=f"campaigns:\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", choices=campaigns)
    parser.add_argument("--count", type=int, help="faults; at first as many as the full campaign has")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="of the draw; at first a random one")
    parser.add_argument("--csv", type=Path, default=Path("/dev/null"), help="file for a line a fault")
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
    return 1 if failed or passed < count else 0  # more, where something beyond the faults is looked at
