"""One machine's part of a submitted run: what job files start on each machine, by `launch/on_node.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mtl_dist.cluster.node_agent import Launch, StopSignals, finished, run_node
from mtl_dist.resources import TRAIN_SCRIPT


def main(arguments: Sequence[str]) -> int:
    """Starts the launcher and waits for it; returns the run's own exit code."""
    stop_signals = StopSignals()
    stop_signals.listen()
    parser = argparse.ArgumentParser(prog="launch/on_node.py", allow_abbrev=False, description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--script", type=Path, default=TRAIN_SCRIPT)
    parser.add_argument("--engine-file", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True, help="on each machine")
    parser.add_argument("--node", type=int, default=0, help="rank of this machine")
    parser.add_argument("--host", default="", help="machine of rank 0")
    parser.add_argument("--port", type=int, default=0, help="free port of that machine")
    parser.add_argument("--alone", action="store_true", help="signals reach this process only")
    parser.add_argument("--save-seconds", type=int, default=120, help="time to save and end after a signal")
    parser.add_argument("--lost-code", type=int, default=1, help="exit code where only another machine knows the cause")
    parser.add_argument("arguments", nargs="*", help="arguments of launch/train.py, after --")
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
