"""Sends a recipe to a cluster: `launch/submit.py --backend slurm --nodes 2 --gpus-per-node 4 --config RECIPE`."""

import sys
from collections.abc import Sequence

from mtl_dist.cli.main import main as mtl_dist


def main(arguments: Sequence[str]) -> int:
    """Submits what the command line asks for; returns the exit code. An error of ours is one line."""
    return mtl_dist(["submit", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
