"""Exceptions that end a run on purpose, their exit codes, and helpers for error messages."""

import difflib
from collections.abc import Iterable, Sequence

MOST_LISTED = 10


class UserError(ValueError):
    """A mistake in the recipe, the data or the launch: one line of message that names the key or file; exit code 2."""

    exit_code = 2


class TrainingError(RuntimeError):
    """A failure of a run whose recipe, data and launch are valid: one line of message; exit code 1."""

    exit_code = 1


class Interrupted(Exception):
    """A run that was asked to stop and can be resumed; exit code 75, on which launchers may restart it.

    75 is EX_TEMPFAIL of sysexits.h: "the user is invited to retry".
    """

    exit_code = 75


def root_cause(error: BaseException) -> str:
    """First line of the message of the innermost `__cause__`; libraries often wrap the error that went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """End of a message about an unknown `word`: the closest known word after `prefix`, or some to choose from."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {prefix}{one_line(clip(close[0]))}?"
    return f"; choose from {list_some(names)}" if names else ""


def list_some(names: Sequence[str]) -> str:
    """The first ten of `names`, and how many there are beyond these; messages stay readable with 2,000 classes."""
    more = len(names) - MOST_LISTED
    shown = [one_line(clip(name)) for name in names[:MOST_LISTED]]
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def clip(text: str, most: int = 80) -> str:
    """At most `most` characters of `text`, of which the last is an ellipsis where some are left out."""
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def one_line(text: str) -> str:
    """`text` with its line ends and other characters that a terminal does not show as escape sequences."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
