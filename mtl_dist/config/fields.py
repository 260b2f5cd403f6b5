"""Walks through the schema: the type at a key of a recipe, its allowed range, and containers filled with defaults."""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeGuard, Union, get_args, get_origin

from omegaconf import MISSING

from mtl_dist.config.section import Allowed, Section, Shorthand

Location = Sequence[str | int]
"""Keys and list indices from a section down to a value."""


class FieldType(NamedTuple):
    """The type of a value, without `Annotated` and `| None` around it."""

    bare: Any
    nullable: bool
    allowed: str | None
    """Range of a number in words; None if every number is allowed."""
    shorthand: Shorthand | None = None


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
    shorthand = next((item for item in metadata if isinstance(item, Shorthand)), None)
    return FieldType(hint, nullable, allowed, shorthand)


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


def expanded(node: Any, hint: Any, metadata: Sequence[Any] = ()) -> Any:
    """`node`, a value of type `hint` in plain containers, with every shorter form written out in full.

    Keys that the schema does not have, and values of wrong types, stay as they are.
    """
    kind = field_type(hint, metadata)
    if kind.shorthand is not None:
        node = kind.shorthand.expand(node)
    if isinstance(node, dict) and is_section(kind.bare):
        fields = kind.bare.model_fields
        return {
            name: expanded(item, fields[name].annotation, fields[name].metadata) if name in fields else item
            for name, item in node.items()
        }
    if isinstance(node, dict) and get_origin(kind.bare) is dict:
        return {key: expanded(item, get_args(kind.bare)[1]) for key, item in node.items()}
    if isinstance(node, list) and get_origin(kind.bare) is list:
        return [expanded(item, get_args(kind.bare)[0]) for item in node]
    return node


def without_replaced(config: Any, layer: Any, hint: Any, metadata: Sequence[Any] = ()) -> Any:
    """`config` without the values that those of `layer` replace instead of being merged with them.

    Both are of type `hint`, in plain containers, `layer` before it is expanded.
    """
    kind = field_type(hint, metadata)
    if not isinstance(config, dict):
        return config
    if kind.shorthand is not None and (kind.shorthand.replaces or kind.shorthand.expand(layer) != layer):
        return None
    if not isinstance(layer, dict):
        return config
    fields = kind.bare.model_fields if is_section(kind.bare) else None
    of_dict = get_args(kind.bare)[1] if get_origin(kind.bare) is dict else None
    kept = dict(config)
    for name in config.keys() & layer.keys():
        if fields is not None:
            kept[name] = without_replaced(config[name], layer[name], fields[name].annotation, fields[name].metadata)
        elif of_dict is not None:
            kept[name] = without_replaced(config[name], layer[name], of_dict)
    return kept


def filled(node: dict[str, Any], section: type[Section]) -> dict[str, Any]:
    """`node`, a section in plain containers and full forms, with the default of each key that it lacks.

    Keys without a default get OmegaConf's mark of a missing value.
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
    if is_section(bare) and isinstance(value, dict):
        return filled(value, bare)
    if get_origin(bare) is dict and isinstance(value, dict):
        return {key: _filled(item, get_args(bare)[1]) for key, item in value.items()}
    if get_origin(bare) is list and isinstance(value, list):
        return [_filled(item, get_args(bare)[0]) for item in value]
    return value  # one of a wrong type is refused when the whole recipe is validated
