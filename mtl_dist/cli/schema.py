"""`mtl-dist schema`: the JSON Schema of a recipe, with which editors complete and check its YAML."""

import json


def schema() -> None:
    """Print the JSON Schema of a recipe."""
    from mtl_dist.config.json_schema import recipe_json_schema

    print(json.dumps(recipe_json_schema(), indent=2))
