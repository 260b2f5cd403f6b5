"""Metrics of a run: metrics.jsonl and the console always, W&B and Accelerate's trackers where the recipe asks for them.

It computes no metric, and a tracker that fails never ends a run.
"""
