"""The command line of `launch/train.py`: merges recipe files and dotted overrides into one checked Recipe.

OmegaConf merges and resolves interpolations; the schema of `recipe` checks every layer and the result. Imports neither
torch nor transformers, so that help and errors appear at once.
"""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from mtl_dist.config.earlier import todays_form
from mtl_dist.config.fields import Location, expanded, filled, type_at, without_replaced
from mtl_dist.config.files_read import check_run_folder
from mtl_dist.config.help import recipe_help
from mtl_dist.config.messages import is_interpolation, join, recipe_error, type_error
from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import missing_path
from mtl_dist.config.validation import check_recipe
from mtl_dist.environment import expand_home, is_rank_0
from mtl_dist.errors import UserError, did_you_mean

HOME_KEYS = ("output_dir", "cache.folder", "data.cache_dir", "model.encoder")
"""Keys whose paths may begin with `~`; those of data files are expanded where the files are found."""


@dataclass(frozen=True)
class Command:
    """The parsed command line."""

    recipe: Recipe
    plan_only: bool
    """Print the compiled plan and stop."""
    files: tuple[str, ...] = ()
    """The recipe files, as they were named."""


def parse(argv: Sequence[str]) -> Command:
    """Parses the arguments after the program name.

    Raises UserError for every mistake that can be found without data and encoder. `--help` and `--print-config` print
    on rank 0 and end the process with exit code 0.
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
    check_run_folder(recipe, arguments.config)
    if arguments.print_config:
        _print_and_exit(resolved_yaml(recipe))
    return Command(recipe, plan_only=arguments.plan, files=tuple(arguments.config))


def parse_recipe_of_run(file: Path, *more: str) -> Recipe:
    """Reads the recipe that a run wrote to `file`, with the recipes `more` merged into it.

    A run of an older version has written it in the form of then, which is read in today's. Raises UserError as `parse`
    does.
    """
    recipe = _load([str(file), *more], [], written_by_a_run=str(file))
    check_recipe(recipe)
    return recipe


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe as YAML with every key; reading it back gives an equal Recipe."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump()))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}")


def _print_and_exit(text: str) -> NoReturn:
    if is_rank_0():
        print(text.rstrip())
    raise SystemExit(0)


def _load(files: Sequence[str], overrides: Sequence[str], written_by_a_run: str | None = None) -> Recipe:
    """The recipe from defaults, files and overrides, merged in this order, with interpolations resolved.

    The file `written_by_a_run` may have the form of an older version.
    """
    config = filled({}, Recipe)
    for file in files:
        with _messages_from(f"{file}: "):
            layer = _read(file)
            config = _merged(config, todays_form(layer) if file == written_by_a_run else layer)
    names_of_files = {section: list(config[section]) for section in ("sources", "tasks")}
    paths = [_path(override) for override in overrides]
    with _messages_from("command line: "):
        for override, path in zip(overrides, paths, strict=True):
            value = _value(override)
            config = _merged(config, _with(config, path, value, ""))
            if value is not None and (replaced := _other_length(path)) and replaced not in paths:
                config = _with(config, replaced, None, "")
        for path in paths:
            _refuse_unknown_name(path, config, names_of_files)
    with _messages_from(""):
        for name, source in config["sources"].items():
            if source["path"] == MISSING:
                raise UserError(missing_path(f"sources.{name}", source["data_files"]))
        if missing := sorted(OmegaConf.missing_keys(OmegaConf.create(config))):
            raise UserError(f"{', '.join(missing)}: missing")
        return _with_home(_validated(_resolved(config)))


def _other_length(path: Sequence[str]) -> list[str] | None:
    """Path of `epochs` where `path` is that of a phase's `steps`, and the reverse; None for any other key.

    A phase has one length, so an override of one key replaces what a file gives by the other.
    """
    other = {"steps": "epochs", "epochs": "steps"}
    if len(path) != 3 or path[0] != "phases" or path[2] not in other:
        return None
    return [*path[:2], other[path[2]]]


def _merged(config: dict[str, Any], layer: Any) -> dict[str, Any]:
    """`config` with the keys of `layer` replaced, both in plain containers.

    Raises UserError for an unknown key or a value of the wrong type in `layer`.
    """
    try:
        Recipe.model_validate(layer)
    except ValidationError as error:
        if problem := type_error(error, layer):
            raise problem from None
    kept = without_replaced(config, layer, Recipe)
    merged: Any = OmegaConf.to_container(OmegaConf.merge(kept, expanded(layer, Recipe)))
    return filled(merged, Recipe)


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the values of its interpolations, converted to the types of their keys where possible."""
    resolved: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    for *parents, last in _interpolations(config):
        node = resolved
        for part in parents:
            node = node[part]
        node[last] = _converted(node[last], type_at(Recipe, [*parents, last]).bare)
    return resolved


def _interpolations(node: Any, location: Location = ()) -> Iterator[Location]:
    """Locations of the interpolations in plain containers."""
    if isinstance(node, dict | list):
        for part, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _interpolations(item, (*location, part))
    elif is_interpolation(node):
        yield location


def _converted(value: Any, kind: Any) -> Any:
    """`value` as a `kind`: an environment variable is text, whatever it is used for."""
    if kind is str and isinstance(value, bool | int | float):
        return str(value)
    if kind not in (bool, int, float) or not isinstance(value, str):
        return value
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return value


def _validated(config: dict[str, Any]) -> Recipe:
    """The recipe in `config`. Raises UserError for its first error."""
    try:
        return Recipe.model_validate(config)
    except ValidationError as error:
        raise recipe_error(error, config) from None


def _with_home(recipe: Recipe) -> Recipe:
    """`recipe` with a leading `~` in the keys of HOME_KEYS replaced by the home folder. Raises UserError.

    Here rather than where they are used, so that all that reads the recipe, also later and by another user, has the
    same folders.
    """
    for key in HOME_KEYS:
        section, _, name = key.rpartition(".")
        owner = getattr(recipe, section) if section else recipe
        path = getattr(owner, name)
        if path is not None:
            changed = owner.model_copy(update={name: expand_home(key, path)})
            recipe = recipe.model_copy(update={section: changed}) if section else changed
    return recipe


@contextmanager
def _messages_from(origin: str) -> Iterator[None]:
    """Context in which the message of an error begins with `origin` and is one line."""
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
    """The content of a YAML file in plain containers. Raises UserError."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode | None):
            raise UserError("is not a mapping of keys to values")
        _refuse_equal_keys(node)
        return OmegaConf.to_container(OmegaConf.create(text))
    except yaml.YAMLError as error:
        raise UserError(_yaml_problem(error)) from error
    except UnicodeDecodeError as error:
        raise UserError("is not text in UTF-8") from error
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error


def _value(override: str) -> Any:
    """The value of `key=value`, parsed as YAML."""
    key, _, text = override.partition("=")
    try:
        _refuse_equal_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        layer: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        return layer["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}: {_yaml_problem(error)}") from error


def _refuse_equal_keys(root: yaml.Node | None) -> None:
    """Raises YAMLError for keys of one mapping that are written differently and are equal, such as 1, 1.0 and true."""
    nodes, reached = [root], {id(root)}  # an alias may stand for a node around it
    for node in nodes:
        if not isinstance(node, yaml.CollectionNode):
            continue
        seen: dict[object, str] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                known = seen.setdefault(yaml.SafeLoader("").construct_object(key), key.value)
                if known != key.value:
                    problem = f"{known} and {key.value} are one key"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
        inner = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else node.value
        nodes += [one for one in inner if id(one) not in reached]
        reached |= {id(one) for one in inner}


def _yaml_problem(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).splitlines()[0]
    syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
    hint = '; inside a list, quote text like "blocks[-4:]"' if syntax else ""
    return f"line {error.problem_mark.line + 1}: {error.problem}{hint}"


def _path(override: str) -> list[str]:
    """The parts of the key of `key=value`; `phases[0].epochs` and `phases.0.epochs` are equivalent."""
    key, equals, _ = override.partition("=")
    if not key or not equals:
        raise UserError(f"command line: {override!r} is not key=value; a recipe file needs --config before it")
    return re.sub(r"\[([0-9]+)\]", r".\1", key).split(".")


def _with(node: Any, path: Sequence[str], value: Any, key: str) -> Any:
    """A copy of `node`, the value at `key`, with `value` at `path` below it."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if not isinstance(node, list):
        members = node if isinstance(node, dict) else {}
        return {**members, name: _with(members.get(name), rest, value, join(key, name))}
    if name not in [str(index) for index in range(len(node))]:
        raise UserError(f"{key}.{name}: no such item; {key} has {len(node)}, counted from 0")
    return [
        _with(item, rest, value, f"{key}[{name}]") if str(index) == name else item for index, item in enumerate(node)
    ]


def _refuse_unknown_name(path: Sequence[str], config: Any, known: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError for a task or source that only overrides name without saying where its rows are: a mistake.

    `known` are the names in each of these sections that files define.
    """
    section, names = path[0], known.get(path[0])
    if not names or len(path) == 1 or path[1] in names:
        return
    if config[section][path[1]]["path"] in (None, MISSING) and config[section][path[1]].get("source") is None:
        kind = section.removesuffix("s")
        raise UserError(f"{'.'.join(path)}: no {kind} {path[1]}{did_you_mean(path[1], names)}")
