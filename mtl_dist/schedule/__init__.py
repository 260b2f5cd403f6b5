"""What happens at each step, decided before training: samples, partition among ranks, phases, learning rates.

Pure functions of (recipe, seed, step); imports no torch.
"""
