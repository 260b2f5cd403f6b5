"""Names of what a run leaves in its folder. Imports nothing, for what looks there without torch."""

RECIPE, SUMMARY, MODEL, CHECKPOINTS = "recipe.yaml", "summary.json", "model", "checkpoints"
