"""Markup for the SVG charts: everything that is not `Markup` already is text, and text is always escaped.

The HTML around the charts comes from the templates (`templating.py`).
"""

import json
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape


def printable(value: object) -> object:
    """Replaces lone surrogates, which UTF-8 cannot encode, in a plain string by question marks."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return value.encode("utf-8", "replace").decode("utf-8")


def joined(*children: object) -> Markup:
    """Concatenates children: markup unchanged, None left out, lists flattened, everything else escaped."""
    return Markup("").join(_flat(children))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Returns an element with its children.

    `cls` sets the class, an underscore in an attribute's name becomes a hyphen, and None leaves an attribute out.
    """
    written = [
        Markup(' {}="{}"').format(_attribute(key), printable(str(value)))
        for key, value in attributes.items()
        if value is not None
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, joined(*written), joined(*children))


def json_script(value: Any) -> Markup:
    """Returns JSON for the page's script, in a script element that no browser executes."""
    # A script element has no escapes: a `<` in a string could end it.
    written = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return Markup('<script type="application/json">{}</script>').format(Markup(written))


def _attribute(key: str) -> str:
    return "class" if key == "cls" else key.replace("_", "-")


def _flat(children: Iterable[object]) -> Iterable[Markup]:
    for child in children:
        if isinstance(child, list | tuple):
            yield from _flat(child)
        elif child is not None:
            yield escape(printable(child))
