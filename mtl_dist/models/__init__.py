"""The shared encoder with its task heads, partial forward passes, fast CPU kernels and trimmed token embeddings.

Contains no code for processes, optimizers or phases.
"""
