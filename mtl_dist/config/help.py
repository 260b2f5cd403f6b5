"""The list of a recipe's keys that `launch/train.py --help` prints, made from the fields of the schema."""

import inspect
import json
import textwrap
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from mtl_dist.config.fields import field_type, is_section
from mtl_dist.config.recipe import Recipe
from mtl_dist.config.section import Section

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true | false"}
"""Types of values as help calls them."""


def recipe_help() -> str:
    """Every key with type, default and description, sections indented."""
    return "\n".join(["keys of a recipe, each with its type and default:", *_keys(Recipe, "  ", "", {})])


def _keys(section: type[Section], indent: str, prefix: str, printed: dict[type[Section], str]) -> list[str]:
    """Lines about the keys below `prefix`; keys of a section that is `printed` already are not repeated."""
    lines = []
    for name, field in section.model_fields.items():
        hint = field_type(field.annotation)
        inner = next((kind for kind in (hint.bare, *get_args(hint.bare)) if is_section(kind)), None)
        if inner is None:
            lines.append(f"{indent}{name}: {_type_name(field.annotation, field.metadata)}, {_default(field)}")
            lines.append(_wrapped(field.description or "", indent))
            continue
        plain = ": keys or null, default null" if hint.nullable else ":"
        suffix = {dict: ".<name>:", list: "[i]:"}.get(get_origin(hint.bare), plain)
        if inner in printed:
            lines.append(f"{indent}{name}{suffix} keys as in {printed[inner]}")
            continue
        printed[inner] = f"{prefix}{name}{suffix}".rstrip(":")
        lines += [f"{indent}{name}{suffix}", _wrapped(inspect.getdoc(inner) or "", indent)]
        if get_origin(hint.bare) is list:
            lines.append(_wrapped(f"Default: {_items(field.get_default(call_default_factory=True))}", indent))
        lines += _keys(inner, f"{indent}    ", f"{printed[inner]}.", printed)
    return lines


def _type_name(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in the words of error messages."""
    hint = field_type(annotation, metadata)
    if hint.nullable:
        return f"{_type_name(Annotated[hint.bare, hint.shorthand])} or null"
    if hint.shorthand is not None:
        return hint.shorthand.words
    arguments = get_args(hint.bare)
    match get_origin(hint.bare):
        case origin if origin is Literal:
            return " | ".join(arguments)
        case origin if origin is dict:
            return f"mapping of names to {_type_name(arguments[1])}s"
        case _:
            return _WORDS[hint.bare]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"default {json.dumps(field.get_default(call_default_factory=True))}"


def _items(sections: Sequence[Section]) -> str:
    return json.dumps([section.model_dump(exclude_none=True) for section in sections])


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 110, initial_indent=f"{indent}    ", subsequent_indent=f"{indent}    ")
