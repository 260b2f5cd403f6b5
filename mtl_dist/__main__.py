"""`python -m mtl_dist` is the program `mtl-dist`."""

import sys

from mtl_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
