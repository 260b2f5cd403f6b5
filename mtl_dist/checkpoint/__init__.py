"""Checkpoints: their files and manifest, verification, atomic writing and pruning. No pickle anywhere."""
