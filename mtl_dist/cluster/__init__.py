"""Jobs: what is submitted to Slurm, Kubernetes or SkyPilot or run here, and one node's part of it. Imports no torch."""
