"""`mtl-dist plan`: the compiled plan of a run as a table."""

from mtl_dist.cli.recipe_words import RecipeWords, recipe_arguments


def plan(words: RecipeWords) -> int:
    """Print what each phase trains, for how long and at which rates."""
    from mtl_dist.cli.worker import run_worker

    return run_worker([*recipe_arguments(words), "--plan"])
