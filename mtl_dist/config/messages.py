"""One-line messages for the errors that pydantic finds in a recipe."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mtl_dist.config.fields import Location, type_at
from mtl_dist.config.recipe import RENAMED_KEYS, Recipe
from mtl_dist.errors import UserError, did_you_mean

_WANTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
"""Type of pydantic's error -> what the value is not."""
_OF_SCALARS = ("string_type", "bool_type", "int_type", "float_type", "literal_error")
_OF_TYPES = {*_WANTED, "literal_error", "extra_forbidden", "invalid_key", "wrong_form"}
"""Errors that are seen in one file or override by itself; others depend on what is merged with it."""


def type_error(error: ValidationError, layer: Any) -> UserError | None:
    """The first unknown key or value of a wrong type in `layer`, one file or override in plain containers.

    Keys that are missing and rules of values are left to `recipe_error`, because other layers may change them; so are
    interpolations, whose values are not known yet.
    """
    found = [one for one in error.errors() if one["type"] in _OF_TYPES and not _is_interpolation(one)]
    return _first(found, layer)


def recipe_error(error: ValidationError, recipe: Any) -> UserError:
    """The first error of a whole recipe in plain containers, types before rules."""
    found = error.errors()
    first = _first([one for one in found if one["type"] in _OF_TYPES], recipe)
    return first or UserError(_message(found[0], recipe))


def is_interpolation(value: Any) -> bool:
    """Whether OmegaConf replaces `value`, or a part of it, by another key or what a resolver returns."""
    return isinstance(value, str) and "${" in value


def join(key: str, name: str) -> str:
    """The dotted key of `name` below `key`, which is empty at the top."""
    return f"{key}.{name}" if key else name


def _is_interpolation(error: ErrorDetails) -> bool:
    """Whether the value of a scalar is an interpolation; none can stand for a list or a mapping."""
    return error["type"] in _OF_SCALARS and is_interpolation(error["input"])


def _first(errors: list[ErrorDetails], document: Any) -> UserError | None:
    """The error that comes first in `document`; pydantic lists them in the order of the schema."""
    if not errors:
        return None
    first = min(errors, key=lambda error: list(_positions(document, _written(document, error["loc"]))))
    return UserError(_message(first, document))


def _written(document: Any, location: Location) -> Iterator[str | int]:
    """`location` without the parts that only the full form of what stands in `document` has."""
    for part in location:
        if isinstance(document, str) or (isinstance(document, list) and not isinstance(part, int)):
            continue
        yield part
        if isinstance(document, Mapping):
            document = document.get(part)
        else:
            document = document[part] if isinstance(document, list) and isinstance(part, int) else None


def _positions(document: Any, location: Iterable[str | int]) -> Iterator[int]:
    """Position of each part of `location` among its siblings; -1 where the document has no such part."""
    for part in location:
        if isinstance(document, Mapping) and part in document:
            yield list(document).index(part)
            document = document[part]
        elif isinstance(document, list) and isinstance(part, int):
            yield part
            document = document[part]
        else:
            yield -1
            return


def _message(error: ErrorDetails, document: Any) -> str:
    """`KEY: what is wrong`, with the key as it stands in `document`."""
    location, value = error["loc"], error["input"]
    key = _key(tuple(_written(document, location)))
    match error["type"]:
        case "missing" | "string_too_short":
            return f"{key}: missing"
        case "wrong_form":
            return f"{key}{error['ctx']['place']}: {error['ctx']['problem']}"
        case "value_error":
            return f"{key}: {error['ctx']['error']}"
        case "extra_forbidden":
            return f"{key}: unknown key{_suggestion(location)}"
        case "invalid_key":
            return _bad_name(location[:-1], value)
        case "string_type" if location[-1] == "[key]" and not isinstance(value, str):
            return _bad_name(location[:-2], value)
        case "literal_error":
            return _is_not(key, value, f"one of {', '.join(get_args(type_at(Recipe, location).bare))}")
        case kind if kind in _WANTED:
            shorthand = type_at(Recipe, location).shorthand if kind in ("list_type", "dict_type") else None
            quote = "; quote it" if kind == "string_type" and isinstance(value, bool | int | float) else ""
            return _is_not(key, value, shorthand.words if shorthand else f"{_WANTED[kind]}{quote}")
        case _:
            return f"{key}: {value} is not {type_at(Recipe, location).allowed}"


def _key(location: Location) -> str:
    key = ""
    for part in location:
        key = f"{key}[{part}]" if isinstance(part, int) else join(key, part)
    return key


def _is_not(key: str, value: Any, wanted: str) -> str:
    return f"{key}: {'null' if value is None else repr(value)} is not {wanted}"


def _bad_name(section: Location, name: Any) -> str:
    return f"{join(_key(section), str(name))}: the key {name!r} is not text; quote it"


def _suggestion(location: Location) -> str:
    """The end of the message about an unknown key: its present name, or known keys of its section."""
    if new := RENAMED_KEYS.get(_key(location)):
        return f"; it is called {new} now"
    *section, name = location
    known = type_at(Recipe, section).bare.model_fields
    return did_you_mean(str(name), known, prefix=join(_key(section), ""))
