"""Ways to run a model on the processes of a run: one process or DDP, FSDP2, DeepSpeed ZeRO.

An engine wraps the model, exchanges gradients, applies the optimizer, and gathers and loads state by parameter name.
"""
