"""Starts a run with the arguments of the container, or any other command, by its name."""

import sys

from mtl_dist.cli.container import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
