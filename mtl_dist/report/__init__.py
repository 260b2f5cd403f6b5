"""HTML report on one run, or on several side by side: a single file that needs no network and no account.

It is made from recipe.yaml, setup.json, metrics.jsonl and summary.json alone. The page is rendered from the Jinja2
templates in `templates/`; charts are inline SVG. It trains and measures nothing, and imports no torch.
"""
