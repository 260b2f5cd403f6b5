"""Makes a W&B sweep and runs it here: `python launch/sweep.py recipes/sweep.yaml [most runs]`."""

import sys

from mtl_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
