"""Names of the files in a run folder. Imports nothing, so that commands on a finished run start fast."""

RECIPE, METRICS, SUMMARY, MODEL, CHECKPOINTS = "recipe.yaml", "metrics.jsonl", "summary.json", "model", "checkpoints"
SETUP = "setup.json"
"""Description of the run: tasks, parameter units, planned phases, and the environment of each start."""
REPORT = "report.html"
STACKS = "stacks"
"""Folder with the stack traces of all ranks, written when a run ends because a rank stopped responding."""
TENSORBOARD = "tensorboard"
WANDB = "wandb"
OWN_NAMES = (RECIPE, SETUP, METRICS, SUMMARY, REPORT, MODEL, CHECKPOINTS, STACKS, WANDB, TENSORBOARD)
"""All that a run writes into its folder; a later run there moves it aside."""
