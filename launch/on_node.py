"""One machine's part of a run, started once on each by the job files that launch/submit.py writes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_dist.cluster.node_agent import Launch, StopSignals, finished, run_node


def main(arguments: Sequence[str]) -> int:
    """Starts the launcher and waits for it; returns the run's own exit code."""
    stop_signals = StopSignals()
    stop_signals.listen()
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run folder")
    parser.add_argument("--script", type=Path, default=Path(__file__).resolve().with_name("train.py"))
    parser.add_argument("--engine-file", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True, help="on each")
    parser.add_argument("--node", type=int, default=0, help="number of this one")
    parser.add_argument("--host", default="", help="the first one")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="signals reach this process only")
    parser.add_argument("--save-seconds", type=int, default=120)
    parser.add_argument("--lost-code", type=int, default=1, help="where only another machine knows why it ended")
    parser.add_argument("arguments", nargs="*", help="train.py's, after --")
    given = parser.parse_args(arguments)
    if finished(given.run):
        return 0
    launch = Launch(
        given.script,
        tuple(given.arguments),
        given.engine_file,
        given.nodes,
        given.processes,
        given.node,
        given.host,
        given.port,
    )
    return run_node(launch, stop_signals, given.alone, given.save_seconds, given.lost_code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
