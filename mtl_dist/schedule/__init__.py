"""Samples, their partition among ranks, trainable units and learning rates of each step.

All are pure functions of recipe, seed and step, known before training. Imports no torch.
"""
