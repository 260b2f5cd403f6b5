"""Base class of a recipe's sections, and the field types that several sections share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A mapping of the recipe with fixed keys; the string under a field is its description in help and JSON schema.

    Values are not converted, apart from an int given for a float and a string given for a list of strings. Assigning
    to an attribute is not checked; `check_recipe` checks a changed recipe.
    """

    # Validators are built when they are first used, so that `--help` does not wait for them.
    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


@dataclass(frozen=True)
class Allowed:
    """Annotation of a number's type: its range as error messages describe it."""

    words: str


@dataclass(frozen=True)
class Shorthand:
    """Annotation of a type of which recipes may have a shorter form."""

    expand: Callable[[Any], Any]
    """Returns the full form of a value; any other value unchanged."""
    words: str
    """All forms in words, for error messages and help."""
    replaces: bool = False
    """Whether a value in a later file or override always replaces an earlier one, instead of being merged with it; a
    value in the shorter form always does."""


def wrong_form(place: str, problem: str) -> PydanticCustomError:
    """The error of a value that no other file or override can make right, found in each of them by itself.

    `place` ends the dotted key of the field that has the value, e.g. `[0]`.
    """
    return PydanticCustomError("wrong_form", "{problem}", {"place": place, "problem": problem})


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


RequiredText = Annotated[str, Field(min_length=1)]
"""Text that has no default and must not be empty."""
Strings = Annotated[
    list[str],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Shorthand(_as_list, "a list of text or a single text"),
]
"""A list of strings; a single string is a list of one."""

Count = Annotated[int, Field(ge=1), Allowed("at least 1")]
NonNegativeInt = Annotated[int, Field(ge=0), Allowed("a finite number, 0 or above")]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False), Allowed("a finite number, 0 or above")]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), Allowed("a finite number above 0")]
Fraction = Annotated[float, Field(ge=0, lt=1), Allowed("at least 0 and below 1")]


def refuse_repeated(names: list[str]) -> list[str]:
    """Returns `names`; raises ValueError for one that occurs twice."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(f"{name!r} stands twice")
    return names
