"""Trains a recipe: `accelerate launch launch/train.py --config recipes/quickstart.yaml optimizer.lr=3e-5`."""

import sys

from mtl_dist.cli.worker import end_process, run_worker

if __name__ == "__main__":
    end_process(run_worker(sys.argv[1:]))
