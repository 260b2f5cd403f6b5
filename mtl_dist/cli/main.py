"""Entry point of the `mtl-dist` program: its commands, and errors as one line each."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from mtl_dist import __version__
from mtl_dist.cli import (
    config,
    data,
    evaluate,
    export,
    init,
    plan,
    predict,
    push,
    quickstart,
    report,
    schema,
    submit,
    sweep,
    train,
)
from mtl_dist.cli.usage import CommandGroup, UsageError, as_user_error
from mtl_dist.errors import TrainingError, UserError

PROGRAM = "mtl-dist"
app = typer.Typer(
    cls=CommandGroup,
    rich_markup_mode=None,  # rich would take half of the start-up time of `--help`
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help"]},
)
for _command in (
    init.init,
    data.data,
    train.train,
    plan.plan,
    config.config,
    schema.schema,
    submit.submit,
    predict.predict,
    evaluate.evaluate,
    export.export,
    push.push,
    report.report,
    sweep.sweep,
    quickstart.quickstart,
):
    app.command()(_command)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Trains one shared encoder for several tasks, unfrozen in phases, and uses what it has learnt."""
    if version:
        print(f"{PROGRAM} {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, that of `sys.argv` by default; returns the exit code.

    0: done, 1: failed (TrainingError), 2: a mistake of the user's (UserError), 75: stopped by a signal after saving;
    `mtl-dist train` can resume then. Errors are one line on standard error.
    """
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        code = typer.main.get_command(app).main(words, prog_name=PROGRAM, standalone_mode=False)
    except UsageError as error:
        return _reported(as_user_error(error))
    except (UserError, TrainingError) as error:
        return _reported(error)
    return code if isinstance(code, int) else 0


def _reported(error: UserError | TrainingError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
