"""Entry point of the container image: a run with the given arguments, or any other command, by its name."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from mtl_dist.cluster.job import SAVE_SECONDS, engine_file_for
from mtl_dist.cluster.node_agent import Launch, StopSignals, run_node
from mtl_dist.errors import UserError
from mtl_dist.resources import TRAIN_SCRIPT

RECIPE = "recipes/quickstart.yaml"
"""Recipe that is trained where the arguments name none."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}")


def main(words: Sequence[str]) -> int:
    """Runs the command in `words`; returns the run's own exit code. A signal saves and ends the run, as anywhere."""
    if words and not words[0].startswith("-") and "=" not in words[0]:
        return _become(words)
    stop_signals = StopSignals()
    stop_signals.listen()
    try:
        launch = launch_of(words, on_gpus=os.environ.get("MTL_DIST_DEVICE") == "gpu")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # As Accelerate would set it, which prints three lines of its own about it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // launch.processes)))
    return run_node(launch, stop_signals, alone=True, save_seconds=SAVE_SECONDS)


def launch_of(words: Sequence[str], on_gpus: bool) -> Launch:
    """The launch that `words` describe. Raises UserError."""
    parser = _Parser(prog="docker run IMAGE", add_help=False, allow_abbrev=False, description=__doc__)
    add = parser.add_argument
    add("--processes", metavar="COUNT", type=int, default=1, help="in this container; on GPUs, one for each (1)")
    add("--engine-file", metavar="FILE", help="of accelerate_configs; the one for DDP by default")
    add("--nodes", metavar="COUNT", type=int, default=1, help="containers of the run, each on a machine of its own (1)")
    add("--node", metavar="NUMBER", type=int, default=0, help="rank of this one, from 0")
    add("--host", default="", help="machine of rank 0")
    add("--port", type=int, default=29500, help="free port of that machine (29500)")
    given, rest = parser.parse_known_args(list(words))
    if "--help" in rest:
        print(f"{parser.format_help()}\nand all that launch/train.py takes:\n", flush=True)
    for option in ("processes", "nodes"):
        if getattr(given, option) < 1:
            raise UserError(f"--{option}: {getattr(given, option)} is not at least 1")
    if not 0 <= given.node < given.nodes:
        raise UserError(f"--node: {given.node} is not among 0 to {given.nodes - 1}; --nodes says how many there are")
    if given.nodes > 1 and not given.host:
        raise UserError("--host: missing; name the machine of number 0")
    if not any(word == "--config" or word.startswith("--config=") for word in rest):
        rest = ["--config", RECIPE, *rest]
    engine_file = given.engine_file or engine_file_for(
        given.nodes, given.nodes * given.processes, str(given.processes) if on_gpus else None
    )
    port = given.port if given.nodes > 1 else 0
    return Launch(TRAIN_SCRIPT, tuple(rest), engine_file, given.nodes, given.processes, given.node, given.host, port)


def _become(words: Sequence[str]) -> int:
    """Replaces this process, which gets the signals sent to the container, by another command."""
    try:
        os.execvp(words[0], list(words))
    except OSError as error:
        hint = "a recipe needs --config before it, and a key is key=value"
        print(f"error: {words[0]}: no command that can be run here ({error.strerror}); {hint}", file=sys.stderr)
        return 127
