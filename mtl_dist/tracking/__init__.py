"""Where figures go: metrics.jsonl and the console always, W&B and Accelerate's trackers by choice."""
