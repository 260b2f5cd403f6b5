"""Trains a recipe: `accelerate launch launch/train.py --config recipes/quickstart.yaml optimizer.lr=3e-5`."""

import os
import signal
import sys
import time
from collections.abc import Sequence

from mtl_dist.cli import parse
from mtl_dist.errors import TrainingError, UserError

SECONDS_FOR_RANK_0 = 20.0
"""How long other ranks that stop with an error leave the word to rank 0."""


def main(arguments: Sequence[str]) -> int:
    """Runs what the command line asks for; returns the exit code. An error of ours is one line, from one rank."""
    try:
        command = parse(arguments)
        # Imported here because --help and mistakes in the recipe should not wait for torch.
        from mtl_dist.run import run

        run(command)
    except (UserError, TrainingError) as error:
        if os.environ.get("RANK", "0") != "0":
            _leave_the_word_to_rank_0(error.exit_code)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _leave_the_word_to_rank_0(code: int) -> None:
    """Waits for the launcher to end this process, and ends with `code` then; returns if rank 0 has no error.

    The launcher ends all processes as soon as one has ended, and so would end rank 0 before it has said why.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
    time.sleep(SECONDS_FOR_RANK_0)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if "RANK" in os.environ:
        # A gloo thread that drops a tensor while the interpreter shuts down aborts a finished run; leave before it can.
        os._exit(code)
    sys.exit(code)
