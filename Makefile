# Everything runs in .venv, which `make setup` creates. After set-up nothing needs the network.
#   make train ARGS="output_dir=runs/mine optimizer.lr=1e-4"
#   make setup PYTHON=/path/to/python3.11

SHELL := bash
.DEFAULT_GOAL := help
BIN := .venv/bin
INSTALLED := .venv/.installed
# Files in the order given, long ones first, so that both processes are busy to the end.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
ARGS ?=

.PHONY: help setup train sweep test test-cluster test-all faults bench bench-engines lint format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## Create .venv, fetch the quickstart's data and encoder
	$(BIN)/python -m mtl_dist.quickstart

$(INSTALLED): pyproject.toml constraints.txt launch/install.sh
	PYTHON="$(PYTHON)" launch/install.sh dev deepspeed

train: setup  ## Train the quickstart on the CPU; ARGS="key=value ..." changes the recipe
	$(BIN)/accelerate launch --quiet --config_file accelerate_configs/cpu.yaml \
		launch/train.py --config recipes/quickstart.yaml $(ARGS)

sweep: setup  ## Make a W&B sweep of recipes/sweep.yaml and run it here; needs a key; RUNS=3 makes no more than three
	$(BIN)/python launch/sweep.py recipes/sweep.yaml $(RUNS)

test: lint setup  ## Lint, type checks, unit tests, a sample of all faults, tests on several processes
	$(PYTEST) -m "not repeat" tests/distributed tests/faults tests/unit

test-cluster: $(INSTALLED)  ## Jobs on a real Slurm of this machine's, and task files read by SkyPilot
	tests/cluster/install.sh
	$(BIN)/pytest tests/cluster

test-all: lint setup  ## All tests, also those on a Slurm and those that build the container image
	tests/cluster/install.sh
	$(PYTEST) tests

faults: $(INSTALLED)  ## One campaign of faults: CAMPAIGN=kill ARGS="--count 20 --seed 7 --csv kills.csv"
	$(BIN)/python -m tests.faults $(or $(CAMPAIGN),--help) $(ARGS)

bench: setup  ## Every figure of docs/benchmarks.md, which takes hours on a quiet machine; ARGS="--quick" tries it out
	$(BIN)/python -m benchmarks.hf_trainer --share 0.2 $(ARGS)
	$(BIN)/python -m benchmarks.cached_epoch $(ARGS)
	$(BIN)/python -m benchmarks.flops $(ARGS)
	$(BIN)/python -m benchmarks.scaling $(ARGS)
	$(BIN)/python -m benchmarks.loop $(ARGS)
	$(BIN)/python -m benchmarks.memory $(ARGS)
	$(BIN)/python -m benchmarks.vocab_trimming $(ARGS)
	$(BIN)/python -m benchmarks.attention $(ARGS)

bench-engines: $(INSTALLED)  ## Compare the losses of every engine with those of one process
	$(BIN)/python -m benchmarks.engines

lint: $(INSTALLED)  ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check

format: $(INSTALLED)  ## Mend style and format where that can be done by machine
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## Remove .venv, the quickstart's data and encoder, and caches; runs/ stays
	rm -rf .venv .venv-skypilot assets build *.egg-info .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
