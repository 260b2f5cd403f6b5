"""The training run: built from a recipe, trained step by step and phase by phase, evaluated, and saved."""
