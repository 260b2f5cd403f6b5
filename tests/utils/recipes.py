"""What the rules of a recipe say about it."""

import pytest

from mtl_dist.config.recipe import Recipe
from mtl_dist.config.validation import check_recipe
from mtl_dist.errors import UserError


def message(recipe: Recipe) -> str:
    """The line with which `recipe` is refused."""
    with pytest.raises(UserError) as error:
        check_recipe(recipe)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
