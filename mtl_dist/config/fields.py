"""Walks through the schema: the type at a key of a recipe, its allowed range, and containers filled with defaults."""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeGuard, Union, get_args, get_origin

from omegaconf import MISSING

from mtl_dist.config.section import Allowed, Section

Location = Sequence[str | int]
"""Keys and list indices from a section down to a value."""


class FieldType(NamedTuple):
    """The type of a value, without `Annotated` and `| None` around it."""

    bare: Any
    nullable: bool
    allowed: str | None
    """Range of a number in words; None if every number is allowed."""


def is_section(hint: Any) -> TypeGuard[type[Section]]:
    """Whether the type `hint` is a mapping with fixed keys."""
    return isinstance(hint, type) and issubclass(hint, Section)


def field_type(hint: Any, metadata: Sequence[Any] = ()) -> FieldType:
    """The parts of the type hint `hint`, to which `metadata` is annotated."""
    nullable = False
    while (origin := get_origin(hint)) in (Annotated, Union, UnionType):
        first, *rest = get_args(hint)
        if origin is Annotated:
            metadata = [*metadata, *rest]
        nullable = nullable or NoneType in rest
        hint = first
    allowed = next((item.words for item in metadata if isinstance(item, Allowed)), None)
    return FieldType(hint, nullable, allowed)


def type_at(section: type[Section], location: Location) -> FieldType:
    """The type of the value at `location` below `section`."""
    found = FieldType(section, nullable=False, allowed=None)
    for part in location:
        if is_section(found.bare):
            field = found.bare.model_fields[str(part)]
            found = field_type(field.annotation, field.metadata)
        else:  # dict[str, X] or list[X]
            found = field_type(get_args(found.bare)[-1])
    return found


def filled(node: dict[str, Any], section: type[Section]) -> dict[str, Any]:
    """`node`, a section in plain containers, with the default of each key that it lacks.

    Keys without a default get OmegaConf's mark of a missing value. A string becomes a list where the schema has a list
    of strings.
    """
    defaults = section.model_construct().model_dump()
    return {
        name: _filled(node.get(name, defaults.get(name, MISSING)), field.annotation)
        for name, field in section.model_fields.items()
    }


def _filled(value: Any, hint: Any) -> Any:
    bare = field_type(hint).bare
    if value is None:
        return None
    if is_section(bare):
        return filled(value, bare)
    if get_origin(bare) is dict:
        return {key: _filled(item, get_args(bare)[1]) for key, item in value.items()}
    if get_origin(bare) is list:
        items = [value] if isinstance(value, str) else value
        return [_filled(item, get_args(bare)[0]) for item in items]
    return value
