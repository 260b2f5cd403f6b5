"""Mistakes on a command line as one line each, in place of usage blocks."""

import re
from typing import Any

from typer._click.exceptions import (  # typer has no public names for the errors of its parser
    BadOptionUsage,
    BadParameter,
    MissingParameter,
    NoSuchOption,
    UsageError,
)
from typer.core import TyperGroup

from mtl_dist.errors import UserError, did_you_mean

__all__ = ["CommandGroup", "UsageError", "as_user_error"]
_KINDS = {int: "a whole number", float: "a number"}
_EXTRA = re.compile(r"Got unexpected extra argument\S* \((.*)\)")


class CommandGroup(TyperGroup):
    """The commands in the order in which they were added. An unknown command is a UserError."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UserError(f"command line: {name}: unknown command{did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def as_user_error(error: UsageError) -> UserError:
    """The error of the command line parser as one line that begins with the option or argument."""
    return UserError("command line: " + " ".join(_message(error).split()))


def _message(error: UsageError) -> str:
    parameters: list[Any] = error.ctx.command.params if error.ctx else []
    match error:
        case NoSuchOption():
            known = [option for one in parameters for option in one.opts if option.startswith("--")]
            return f"{error.option_name}: unknown option{did_you_mean(error.option_name, known)}"
        case MissingParameter() if error.ctx is not None:
            # Parameters that were given have been processed before the first one that is missing.
            missing = [_name(one) for one in parameters if one.required and one.name not in error.ctx.params]
            return f"the following arguments are required: {', '.join(missing)}"
        case BadParameter() if error.param is not None:
            return f"{_name(error.param)}: {_complaint(error)}"
        case BadOptionUsage():
            said = error.message.removeprefix(f"Option {error.option_name!r} ")
            return f"{error.option_name}: {said.removesuffix('.')}"
    return _EXTRA.sub(r"unrecognized arguments: \1", error.message)


def _complaint(error: BadParameter) -> str:
    """Describes what is wrong with the value of a parameter."""
    descriptor: Any = getattr(error.param, "type_descriptor", None)
    cause: Any = error.__cause__  # pydantic's ValidationError, which typer converts values with
    if descriptor is None or not hasattr(cause, "errors"):
        return error.message
    value = cause.errors()[0]["input"]
    if descriptor.choices:
        return f"{value!r} is unknown{did_you_mean(str(value), map(str, descriptor.choices))}"
    kind = _KINDS.get(descriptor.annotation)
    return f"{value!r} is not {kind}" if kind else error.message


def _name(parameter: Any) -> str:
    """The first spelling of an option, or the word that stands for an argument."""
    return parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name
