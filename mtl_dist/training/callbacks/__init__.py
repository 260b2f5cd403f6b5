"""Callbacks around the steps of a run: logging, evaluation, early stopping, replica checks, checkpoints."""
