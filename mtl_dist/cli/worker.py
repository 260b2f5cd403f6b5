"""One process of a training run: what `launch/train.py` executes under `accelerate launch`."""

import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from mtl_dist.config.load import parse
from mtl_dist.distributed.exit_codes import LOST_CONTACT, record_exit_code
from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.environment import cache_root, check_variables, is_rank_0, prepare_home
from mtl_dist.errors import Interrupted, TrainingError, UserError, root_cause
from mtl_dist.startup import without_garbage_collection

SECONDS_FOR_RANK_0 = 20.0
"""How long other ranks that stop with an error wait for rank 0 to report its own."""


def run_worker(arguments: Sequence[str]) -> int:
    """Runs what the command line asks for; returns the exit code. An error of ours is one line, from one rank."""
    stop_request = StopRequest()
    stop_request.listen()
    try:
        command = parse(arguments)
        check_variables()
        prepare_home(cache_root(command.recipe.data.cache_dir))
        # Imported here because --help and mistakes in the recipe should not wait for torch.
        with without_garbage_collection():
            from mtl_dist.training.run import run

        run(command, stop_request)
    except Interrupted as interrupted:  # on every rank, with the same message
        if is_rank_0():
            print(interrupted, file=sys.stderr)
        return _recorded(interrupted.exit_code)
    except (UserError, TrainingError) as error:
        if is_rank_0() or not _wait_for_rank_0(stop_request, error.exit_code):
            print(f"error: {error}", file=sys.stderr)
        return _recorded(error.exit_code)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        code = Interrupted.exit_code if stop_request.made else TrainingError.exit_code
        print(f"error: lost contact with another process of the run ({root_cause(error)})", file=sys.stderr)
        record_exit_code(LOST_CONTACT)
        return code
    return _recorded(0)


def end_process(code: int) -> NoReturn:
    """Ends this process with `code`; a process of a launched run skips the interpreter's shutdown."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "RANK" in os.environ:
        # A gloo thread that frees a tensor while the interpreter shuts down aborts a finished run.
        os._exit(code)
    sys.exit(code)


def _recorded(code: int) -> int:
    record_exit_code(code)
    return code


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether gloo or NCCL report with this error that the other end of a connection has closed."""
    messages = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")
    return any(message in str(error).lower() for message in messages)


def _wait_for_rank_0(stop_request: StopRequest, code: int) -> bool:
    """Waits for the launcher to end this process, which ends with `code` then; returns False if rank 0 has no error.

    The launcher ends all processes as soon as one has ended, rank 0 too, even before it has reported its error. On
    another machine than rank 0's, whose launcher ends nothing here, returns True as soon as that launcher has ended.
    """
    stop_request.end_with(code)
    if os.environ.get("GROUP_RANK", "0") == "0":
        time.sleep(SECONDS_FOR_RANK_0)
        return False
    try:  # the launcher of rank 0 serves the store at this address; it sends nothing, and closes when it ends
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with socket.create_connection(address, SECONDS_FOR_RANK_0) as connection:
            return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:  # it has ended already
        return True
