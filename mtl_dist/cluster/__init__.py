"""Job files for Slurm, Kubernetes and SkyPilot, a local backend, and the agent that runs the processes of one node.

Does not train. Only `quiet_launch` imports torch.
"""
