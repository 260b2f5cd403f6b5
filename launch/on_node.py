"""One machine's part of a run, started once on each by the job files that launch/submit.py writes."""

import sys

from mtl_dist.cli.on_node import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
