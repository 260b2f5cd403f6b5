"""The command line of `launch/train.py`: recipe files and dotted overrides to one checked Recipe.

Imports neither torch nor transformers, so that help and mistakes show at once.
"""

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtl_dist.config.help import recipe_help
from mtl_dist.config.recipe import Recipe
from mtl_dist.config.validation import check_recipe
from mtl_dist.errors import UserError, did_you_mean

_SCALARS: dict[type, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}
"""Type of a field -> exact types that may stand there (a bool is no int here), and how a message calls them."""


@dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    recipe: Recipe
    plan_only: bool
    """Print the compiled plan and stop."""


def parse(argv: Sequence[str]) -> Command:
    """Reads the arguments that follow the program's name.

    Raises UserError for every mistake that shows without data and encoder. `--help` and `--print-config` print, on
    rank 0, and end the process with exit code 0.
    """
    parser = _Parser(
        prog="launch/train.py",
        usage="%(prog)s [--config FILE]... [--plan] [--print-config] [--help] [key=value]...",
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options = [
        parser.add_argument("--config", metavar="FILE", action="append", default=[], help="recipe; several are merged"),
        parser.add_argument("--plan", action="store_true", help="print the compiled plan and exit"),
        parser.add_argument("--print-config", action="store_true", help="print the resolved recipe and exit"),
        parser.add_argument("--help", action="store_true", help="print this and exit"),
    ]
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="e.g. optimizer.lr=3e-5 phases.0.epochs=2")
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        known = [option.option_strings[0] for option in options]
        parser.error(f"{unknown[0]}: unknown option{did_you_mean(unknown[0], known)}")
    if arguments.help:
        parser.epilog = recipe_help()
        _print_and_exit(parser.format_help())
    recipe = _load(arguments.config, arguments.overrides)
    check_recipe(recipe)
    if arguments.print_config:
        _print_and_exit(resolved_yaml(recipe))
    return Command(recipe, plan_only=arguments.plan)


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with every key; reading it back gives an equal Recipe."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}")


def _print_and_exit(text: str) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        print(text.rstrip())
    raise SystemExit(0)


def _load(files: Sequence[str], overrides: Sequence[str]) -> Recipe:
    """Defaults, files and overrides merged in this order, interpolations resolved."""
    config: Any = OmegaConf.structured(Recipe)
    for file in files:
        with _messages_from(f"{file}: "):
            config = OmegaConf.merge(config, _checked(_read(file), Recipe, ""))
    tasks_of_files = list(config.tasks)
    paths = [_path(override) for override in overrides]
    with _messages_from("command line: "):
        for override, path in zip(overrides, paths, strict=True):
            layer = _with(OmegaConf.to_container(config), path, _value(override), "")
            config = OmegaConf.merge(config, _checked(layer, Recipe, ""))
        for path in paths:
            _refuse_unknown_task(path, config, tasks_of_files)
    with _messages_from(""):
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"{', '.join(missing)}: missing")
        return cast(Recipe, OmegaConf.to_object(config))


@contextmanager
def _messages_from(origin: str) -> Iterator[None]:
    """Puts where a mistake was made before its message, which becomes one line."""
    try:
        yield
    except UserError as error:
        message = str(error)
    except OmegaConfBaseException as error:
        message = f"{error.full_key}: {str(error).splitlines()[0]}"
    else:
        return
    raise UserError(" ".join(f"{origin}{message}".split()))


def _read(file: str) -> Any:
    """A YAML file in plain containers."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        if not isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.MappingNode | None):
            raise UserError("is not a mapping of keys to values")
        return OmegaConf.to_container(OmegaConf.create(text))
    except yaml.YAMLError as error:
        raise UserError(_yaml_problem(error)) from error
    except UnicodeDecodeError as error:
        raise UserError("is not text in UTF-8") from error
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error


def _value(override: str) -> Any:
    """What stands after the `=` of an override, read as YAML."""
    key, _, text = override.partition("=")
    try:
        layer: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        return layer["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}: {_yaml_problem(error)}") from error


def _yaml_problem(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).splitlines()[0]
    syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
    hint = '; inside a list, quote text like "blocks[-4:]"' if syntax else ""
    return f"line {error.problem_mark.line + 1}: {error.problem}{hint}"


def _path(override: str) -> list[str]:
    """The key of `key=value` in parts; `phases[0].epochs` and `phases.0.epochs` are the same."""
    key, equals, _ = override.partition("=")
    if not key or not equals:
        raise UserError(f"command line: {override!r} is not key=value; a recipe file needs --config before it")
    return re.sub(r"\[([0-9]+)\]", r".\1", key).split(".")


def _with(node: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """A copy of `node`, which is at `key`, with `value` at `path` below it."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if not isinstance(node, list):
        members = node if isinstance(node, dict) else {}
        return {**members, name: _with(members.get(name), rest, value, _join(key, name))}
    if name not in [str(index) for index in range(len(node))]:
        raise UserError(f"{key}.{name}: no such item; {key} has {len(node)}, counted from 0")
    return [
        _with(item, rest, value, f"{key}[{name}]") if str(index) == name else item for index, item in enumerate(node)
    ]


def _refuse_unknown_task(path: Sequence[str], config: Any, known: Sequence[str]) -> None:
    """A task that only overrides name is meant if they give it a `path`; without one it is a slip of the pen."""
    if not known or path[0] != "tasks" or len(path) == 1 or path[1] in known:
        return
    if OmegaConf.is_missing(config.tasks[path[1]], "path"):
        raise UserError(f"{'.'.join(path)}: no task {path[1]}{did_you_mean(path[1], known)}")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _checked(value: Any, hint: Any, key: str) -> Any:
    """`value` if it fits the type `hint`, with a string made a list where a list of strings is wanted.

    OmegaConf would convert much of this without a word (`labels: [no, yes]` to "False" and "True"). Raises UserError,
    beginning with the key.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):  # a Literal with None is the latter
        return None if value is None else _checked(value, arguments[0], key)
    if is_dataclass(hint) or origin is dict:
        if not isinstance(value, dict):
            raise _wrong(key, value, "a mapping")
        return {name: _checked(item, _member(hint, name, key), _join(key, str(name))) for name, item in value.items()}
    if origin is list:
        items = [value] if isinstance(value, str) and arguments[0] is str else value
        if not isinstance(items, list):
            raise _wrong(key, value, "a list")
        return [_checked(item, arguments[0], f"{key}[{index}]") for index, item in enumerate(items)]
    if isinstance(value, str) and "${" in value:
        return value  # OmegaConf checks what an interpolation resolves to.
    if origin is Literal:
        if value not in arguments:
            raise _wrong(key, value, f"one of {', '.join(arguments)}")
        return value
    types, words = _SCALARS[hint]
    if type(value) not in types:
        quote = "; quote it" if hint is str and isinstance(value, bool | int | float) else ""
        raise _wrong(key, value, words + quote)
    return value


def _member(hint: Any, name: Any, key: str) -> Any:
    """Type of the value under `name` in a mapping of type `hint`, which is at `key`."""
    if not isinstance(name, str):
        raise UserError(f"{_join(key, str(name))}: the key {name!r} is not text; quote it")
    if get_origin(hint) is dict:
        return get_args(hint)[1]
    members = get_type_hints(hint)
    if name not in members:
        here = _join(key, "")
        raise UserError(f"{here}{name}: unknown key{did_you_mean(name, members, prefix=here)}")
    return members[name]


def _wrong(key: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{key}: {'null' if value is None else repr(value)} is not {wanted}")
