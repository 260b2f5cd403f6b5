"""A run, or several side by side, as one HTML page that needs no network and no account.

Everything is drawn here as inline SVG, from recipe.yaml, setup.json, metrics.jsonl and summary.json alone.
"""
