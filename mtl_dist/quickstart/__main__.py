"""`python -m mtl_dist.quickstart [--to FOLDER] [--archives FOLDER]` creates the folder of the quickstart."""

import sys

from mtl_dist.quickstart.assets import main

sys.exit(main(sys.argv[1:]))
