"""The list of a recipe's keys that `launch/train.py --help` prints, made from the text of recipe.py itself."""

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from mtl_dist.config import recipe


def recipe_help() -> str:
    """Every key with type, default and meaning, sections indented."""
    tree = ast.parse(inspect.getsource(recipe))
    meanings = {node.name: _meanings(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    return "\n".join(["keys of a recipe, each with its type and default:", *_keys(recipe.Recipe, meanings, "  ")])


def _meanings(section: ast.ClassDef) -> dict[str, str]:
    """Field -> the string under it."""
    meanings = {}
    for field, text in zip(section.body, section.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                meanings[name] = meaning
    return meanings


def _keys(section: type, meanings: Mapping[str, Mapping[str, str]], indent: str) -> list[str]:
    lines = []
    defaults = vars(section())
    for name, hint in get_type_hints(section).items():
        inner = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        if inner is None:
            lines.append(f"{indent}{name}: {_type_name(hint)}, {_default_text(defaults[name])}")
            lines.append(_wrapped(meanings[section.__name__][name], indent))
            continue
        suffix = {dict: ".<name>:", list: "[i]:", UnionType: ": keys or null, default null"}.get(get_origin(hint), ":")
        lines += [f"{indent}{name}{suffix}", _wrapped(inspect.getdoc(inner) or "", indent)]
        if get_origin(hint) is list:
            items = json.dumps(
                [{key: value for key, value in asdict(item).items() if value is not None} for item in defaults[name]]
            )
            lines.append(_wrapped(f"Default: {items}", indent))
        lines += _keys(inner, meanings, f"{indent}    ")
    return lines


def _type_name(hint: Any) -> str:
    arguments = get_args(hint)
    if get_origin(hint) in (UnionType, Union):
        return f"{_type_name(arguments[0])} or null"
    if get_origin(hint) is Literal:
        return " | ".join(arguments)
    if arguments:
        return f"{get_origin(hint).__name__} of {arguments[-1].__name__}"
    return hint.__name__


def _default_text(default: Any) -> str:
    return "required" if default == MISSING else f"default {json.dumps(default)}"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 110, initial_indent=f"{indent}    ", subsequent_indent=f"{indent}    ")
