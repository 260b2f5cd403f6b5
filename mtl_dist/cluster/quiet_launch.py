"""`python -m mtl_dist.cluster.quiet_launch accelerate launch ...`: the launcher without its own traceback.

The worker processes have already reported why they failed, and `node_agent` collects their exit codes.
"""

import subprocess
import sys

from accelerate.commands.launch import main
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

if __name__ == "__main__":
    sys.argv = sys.argv[2:]  # what follows `accelerate`
    try:
        main()
    except (ChildFailedError, SignalException, subprocess.CalledProcessError):
        sys.exit(1)
