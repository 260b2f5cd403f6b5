"""Strings as YAML words that the recipe loader reads back as the same strings."""

import json
import re
from collections.abc import Sequence

from omegaconf import OmegaConf


def word(value: str) -> str:
    """A string as YAML, quoted where it would be read as something else; `${` is no interpolation."""
    escaped = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    plain = re.fullmatch(r"[\w./-]+", value, re.ASCII) and value != "-" and OmegaConf.create(f"x: {value}").x == value
    return escaped if plain else _quoted(escaped)


def _quoted(text: str) -> str:
    """A string in double quotes, with characters escaped that YAML takes for line ends or does not allow."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in quoted)


def words(values: Sequence[str]) -> str:
    """One string as a word, several as a list in one line."""
    return word(values[0]) if len(values) == 1 else f"[{', '.join(map(word, values))}]"


def comment(text: str) -> str:
    """Text from a data file within a comment of one line."""
    return "".join(character if character.isprintable() else " " for character in text)
