"""`python -m mtl_dist.cluster.quiet_launch accelerate launch ...`: the launcher without messages about failed workers.

The worker processes have already reported why they failed, and `node_agent` collects their exit codes. Only a worker
that a signal has killed could not report anything: torch's line about it stays.
"""

import logging
import subprocess
import sys

from accelerate.commands.launch import main
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def is_worth_showing(record: logging.LogRecord) -> bool:
    """Returns whether a record of torch's launcher says what no worker could say itself."""
    return record.levelno < logging.WARNING or "exitcode: -" in record.getMessage()


if __name__ == "__main__":
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(is_worth_showing)
    sys.argv = sys.argv[2:]  # what follows `accelerate`
    try:
        main()
    except (ChildFailedError, SignalException, subprocess.CalledProcessError):
        sys.exit(1)
