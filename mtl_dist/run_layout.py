"""What the files of a run folder are called. Imports nothing, so that what reads a finished run starts at once."""

RECIPE, METRICS, SUMMARY, MODEL, CHECKPOINTS = "recipe.yaml", "metrics.jsonl", "summary.json", "model", "checkpoints"
SETUP = "setup.json"
"""What the run is made of: tasks, units, planned phases, and each time that it was started."""
REPORT = "report.html"
STACKS = "stacks"
"""Where every rank stood when the run ended because they waited for one of them."""
TENSORBOARD = "tensorboard"
