"""The shared encoder with its heads, and how its forward pass is computed: partial, with fast kernels, trimmed.

Knows nothing of processes, optimizers or phases.
"""
