"""`python -m mtl_dist.cluster.quiet_launch accelerate launch ...`: the launcher without a traceback of its own.

The run's processes have said why they ended, and `node_agent` knows their exit codes.
"""

import subprocess
import sys

from accelerate.commands.launch import main
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

if __name__ == "__main__":
    sys.argv = sys.argv[2:]  # as after `accelerate`
    try:
        main()
    except (ChildFailedError, SignalException, subprocess.CalledProcessError):
        sys.exit(1)
