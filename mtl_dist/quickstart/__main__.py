"""`python -m mtl_dist.quickstart [--to FOLDER] [--archives FOLDER]` makes the quickstart's folder."""

import sys

from mtl_dist.quickstart.assets import main

sys.exit(main(sys.argv[1:]))
