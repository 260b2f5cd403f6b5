"""Trains a recipe: `accelerate launch launch/train.py --config recipes/quickstart.yaml optimizer.lr=3e-5`."""

import os
import socket
import sys
import time
from collections.abc import Sequence

from mtl_dist.config.load import parse
from mtl_dist.distributed.exit_codes import LOST_CONTACT, record_exit_code
from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.errors import Interrupted, TrainingError, UserError, root_cause
from mtl_dist.startup import without_garbage_collection

SECONDS_FOR_RANK_0 = 20.0
"""How long other ranks that stop with an error leave the word to rank 0."""


def main(arguments: Sequence[str]) -> int:
    """Runs what the command line asks for; returns the exit code. An error of ours is one line, from one rank."""
    stop_request = StopRequest()
    stop_request.listen()
    try:
        command = parse(arguments)
        # Imported here because --help and mistakes in the recipe should not wait for torch.
        with without_garbage_collection():
            from mtl_dist.training.run import run

        run(command, stop_request)
    except Interrupted as interrupted:  # on every rank, with the same words
        if os.environ.get("RANK", "0") == "0":
            print(interrupted, file=sys.stderr)
        return _recorded(interrupted.exit_code)
    except (UserError, TrainingError) as error:
        if os.environ.get("RANK", "0") == "0" or not _leave_the_word_to_rank_0(stop_request, error.exit_code):
            print(f"error: {error}", file=sys.stderr)
        return _recorded(error.exit_code)
    except RuntimeError as error:
        if not _another_process_is_gone(error):
            raise
        code = Interrupted.exit_code if stop_request.made else TrainingError.exit_code
        print(f"error: lost contact with another process of the run ({root_cause(error)})", file=sys.stderr)
        record_exit_code(LOST_CONTACT)
        return code
    return _recorded(0)


def _recorded(code: int) -> int:
    record_exit_code(code)
    return code


def _another_process_is_gone(error: RuntimeError) -> bool:
    """Whether this is how gloo or NCCL say that the other end of a connection has closed."""
    words = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")
    return any(word in str(error).lower() for word in words)


def _leave_the_word_to_rank_0(stop_request: StopRequest, code: int) -> bool:
    """Waits for the launcher to end this process, which ends with `code` then; returns False if rank 0 has no error.

    The launcher ends all processes as soon as one has ended, and so would end rank 0 before it has said why. On another
    machine than rank 0's, whose launcher ends nothing here, returns True as soon as that one has ended.
    """
    stop_request.end_with(code)
    if os.environ.get("GROUP_RANK", "0") == "0":
        time.sleep(SECONDS_FOR_RANK_0)
        return False
    try:  # what keeps the store by which processes meet is the launcher; it says nothing, and closes when it ends
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with socket.create_connection(where, SECONDS_FOR_RANK_0) as connection:
            return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:  # it has ended already
        return True


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if "RANK" in os.environ:
        # A gloo thread that drops a tensor while the interpreter shuts down aborts a finished run; leave before it can.
        os._exit(code)
    sys.exit(code)
