"""HTML from parts: what is not markup already is text, and text is always escaped."""

import json
import math
from collections.abc import Iterable
from html import escape
from typing import Any

DASH = "\N{EN DASH}"
"""Between two numbers, and for what is not known."""
VOID = frozenset({"meta", "br", "col", "hr"})


class Html(str):
    """Markup. Only `tag`, `joined` and `data` make it, and the page's own style and script."""

    __slots__ = ()


def text(value: object) -> Html:
    """Escaped text; lone surrogates, which no encoding has, become question marks."""
    return Html(escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True))


def joined(*children: object) -> Html:
    """Children one after another: markup as it is, None left out, lists flattened, all else escaped."""
    return Html("".join(_flat(children)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. `cls` is its class, an underscore a hyphen; None and False leave an attribute out."""
    written = [
        f" {_attribute(key)}" if value is True else f' {_attribute(key)}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    opening = f"<{name}{''.join(written)}>"
    return Html(opening if name in VOID else f"{opening}{joined(*children)}</{name}>")


def data(value: Any) -> Html:
    """JSON for the page's script, in an element that no browser runs."""
    # Within a script element nothing is unescaped, so that no `<` may be left.
    written = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return Html(f'<script type="application/json">{written}</script>')


def table(header: Iterable[object], rows: Iterable[Iterable[object]], cls: str = "", label: str = "") -> Html:
    """A table that scrolls by itself where the page is narrow. The first cell of a row is its heading."""
    head = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in header]))
    body = [
        tag("tr", [tag("td", cell) if index else tag("th", cell, scope="row") for index, cell in enumerate(row)])
        for row in rows
    ]
    content = tag("table", head, tag("tbody", body), cls=cls or None)
    return tag("div", content, cls="scroll", tabindex="0", role="region", aria_label=label or "table")


def number(value: float | None, digits: int = 4) -> str:
    """A figure with `digits` decimals; a dash for none."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, those that matter."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _attribute(key: str) -> str:
    return "class" if key == "cls" else key.rstrip("_").replace("_", "-")


def _flat(children: Iterable[object]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Html):
            yield child
        elif isinstance(child, list | tuple):
            yield from _flat(child)
        elif child is not None:
            yield text(child)
