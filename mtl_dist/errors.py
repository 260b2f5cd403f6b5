"""The ways in which a run ends early on purpose, and the words for them."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the recipe, the data or the launch: one line, naming the key or file; exit code 2."""

    exit_code = 2


class TrainingError(RuntimeError):
    """A run that cannot go on though everything asked for was valid: one line; exit code 1."""

    exit_code = 1


class Interrupted(Exception):
    """A run that was asked to stop and can go on later; exit code 75, which launchers may start again on.

    75 is EX_TEMPFAIL of sysexits.h: "the user is invited to retry".
    """

    exit_code = 75


def root_cause(error: BaseException) -> str:
    """The first line of the error at the bottom of a chain; libraries wrap what went wrong in what they were doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown `word`: the closest of `known` after `prefix`, or all if none is close."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; choose from {', '.join(names)}" if names else ""
