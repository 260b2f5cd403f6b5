"""What a column of a table is used for, by its values and its name: text, label, or nothing, and why."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mtl_dist.inspection.column_profile import MAX_LISTED, ColumnProfile

Use = Literal["text", "label", "none"]

_SPLITS = {"train", "training", "test", "validation", "valid", "val", "dev"}
_TEXT_NAMES = re.compile(r"(^|_)(text|sentence|review|body|message|comment|tweet|content|description|utterance)s?($|_)")
_LABEL_NAMES = re.compile(
    r"(^|_)(label|class|category|target|topic|intent|sentiment|rating|stars?|score|priority|urgency|tag)($|_)"
)
_ID_NAMES = re.compile(r"(^|_)(id|ids|uuid|guid|key|index|idx|nr|customer|user|username|author|email|url|phone|zip)$")
_DATE_NAMES = re.compile(r"(^|_)(date|time|timestamp|datetime|created|updated|year|month|day|hour)(_at|_on)?$")
_PAIRS = (
    ("premise", "hypothesis"),
    ("question", "(answer|passage|context|sentence|paragraph)"),
    ("query", "(document|passage|title|product)"),
    ("(subject|title|headline)", "(body|text|message|content|description|review)"),
)
"""Names of columns whose texts belong together as a pair, as patterns of the first and the second."""

_FEW = 20
"""Classes up to which a handful of rows is enough to see them."""
_MAX_WHOLE = 20
"""Distinct whole numbers up to which a column is one of classes, such as ratings, rather than of quantities."""


@dataclass(frozen=True)
class Role:
    """What a column is used for."""

    use: Use
    why: str
    """What its values look like, as the end of a sentence that begins with the column's name."""


def role_of(column: ColumnProfile) -> Role:
    """What the values and the name of a column make it."""
    if column.present == 0:
        return Role("none", "empty")
    if column.distinct == 1:
        return Role("none", "the same value in every row" if not column.missing else "only one value")
    return _no_label_by_name(column) or (_role_of_values(column) if _is_typed(column) else _role_of_strings(column))


def kind_of(column: ColumnProfile) -> str:
    """Kind of the values of a label column, by the rules of `data.labels`."""
    if column.all_are("whole"):
        return "whole numbers"
    return "true and false" if column.all_are("truth") else "strings"


def is_fractional(column: ColumnProfile) -> bool:
    """Whether all values are numbers, some of them fractions, which are no classes."""
    return column.all_are("number") and not column.all_are("whole") and not column.matches["padded"]


def choose_texts(columns: Mapping[str, ColumnProfile], candidates: Sequence[str]) -> list[str]:
    """The text columns among `candidates`: two that are a pair by their names, else the one with the longest texts."""
    for first in candidates:
        for second in candidates:
            if first != second and _is_pair(_plain(first), _plain(second)):
                return [first, second]
    named = [name for name in candidates if _TEXT_NAMES.search(_plain(name))]
    return [max(named or candidates, key=lambda name: columns[name].mean_characters)] if candidates else []


def _plain(name: str) -> str:
    """A column's name in lower case with `_` between its words."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\s.\-]+", "_", parted).casefold()


def _is_pair(first: str, second: str) -> bool:
    """Whether two names in plain form differ by 1 and 2 or a and b, or are a known pair."""
    for one, other in (("1", "2"), ("a", "b")):
        parts = re.split(rf"(?:(?<=_)|(?<![a-z])|(?<=[a-z])(?=[0-9])){one}(?=_|$)", first)
        if len(parts) == 2 and second == parts[0] + other + parts[1]:
            return True
    return any(re.fullmatch(one, first) and re.fullmatch(other, second) for one, other in _PAIRS)


def _is_typed(column: ColumnProfile) -> bool:
    return any(column.all_are(pattern) for pattern in ("number", "truth", "date"))


def _no_label_by_name(column: ColumnProfile) -> Role | None:
    """The role of a column whose name and values together say that it is none of text and label."""
    name = _plain(column.name)
    if column.counts is not None and {value.strip().casefold() for value in column.counts} <= _SPLITS:
        return Role("none", "names of splits; a recipe takes these from files, one for each split")
    if re.fullmatch(r"|index|unnamed(:_?\d+)?(_level_\d+)?", name) and column.all_are("whole"):
        return Role("none", "numbers of rows")
    if _DATE_NAMES.search(name) and (_is_typed(column) or column.share("date") > 0.9):
        return Role("none", "dates or times")
    if _ID_NAMES.search(name) and column.distinct_share < 0.95 and column.share("spaced") < 0.5:
        return Role("none", "ids by its name; split.by can keep rows with equal ones on one side")
    return None


def _role_of_values(column: ColumnProfile) -> Role:
    """The role of a column of numbers, dates or true and false."""
    distinct = column.distinct
    if column.all_are("truth"):
        return Role("label", "true and false")
    if column.all_are("date") and not column.all_are("number"):
        return Role("none", "dates or times")
    if column.matches["padded"]:
        return _role_of_strings(column)
    if is_fractional(column):
        return Role("none", "numbers with fractions, which are no classes")
    if distinct == column.present or (distinct is None and column.distinct_share > 0.95):
        return Role("none", "whole numbers that are all different, as ids are")
    named = _LABEL_NAMES.search(_plain(column.name)) is not None
    most, least_rows = (MAX_LISTED, 2) if named else (_MAX_WHOLE, 3)
    if distinct is not None and distinct <= most and column.present >= least_rows * distinct:
        return Role("label", "whole numbers")
    return Role("none", f"whole numbers with {_many(distinct)} different values, too many for classes")


def _role_of_strings(column: ColumnProfile) -> Role:
    length = f"{column.mean_characters:.0f} characters on average"
    if _is_text(column):
        return Role("text", f"{length}, mostly different")
    distinct = column.distinct
    if distinct is not None and _repeats(column, distinct):
        return Role("label", "strings")
    if column.distinct_share > 0.5:
        return Role("none", "strings that are mostly different and no texts, as ids are")
    return Role("none", f"strings with {_many(distinct)} different values, too many for classes and too few for texts")


def _is_text(column: ColumnProfile) -> bool:
    """Whether values are long, mostly different and of several words, or of a script that needs no spaces."""
    words = column.share("spaced") >= 0.5 or (column.mean_characters >= 8 and column.share("code") <= 0.2)
    if not words or column.share("date") > 0.9:
        return False
    named = _TEXT_NAMES.search(_plain(column.name)) is not None
    many = column.distinct is None or column.distinct > _FEW
    least = 0.5 if not many else 0.05 if column.mean_characters >= 40 else 0.2 if named else 0.5
    return column.distinct_share >= least


def _repeats(column: ColumnProfile, distinct: int) -> bool:
    """Whether each value occurs often enough for a class; the more values, the more often."""
    named = _LABEL_NAMES.search(_plain(column.name)) is not None
    least_rows = 2 if named or distinct <= _FEW else 5 if distinct <= 100 else 10
    return column.mean_characters <= 200 and column.present >= least_rows * distinct


def _many(distinct: int | None) -> str:
    return f"more than {MAX_LISTED:,}" if distinct is None else f"{distinct:,}"
