"""The sections of a recipe on data: sources of rows, tasks, and the way from text to tokens."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mtl_dist.config.section import (
    Allowed,
    Count,
    PositiveFloat,
    RequiredText,
    Section,
    Shorthand,
    Strings,
    refuse_repeated,
    wrong_form,
)

SPLITS = ("train", "validation", "test")


def value_text(value: str | float) -> str:
    """A label as text, in the form in which the readers of data files return it: `true`, `1`, `0.5`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_files(value: Any) -> Any:
    """A file or a list of files stands for those of the training split."""
    return {"train": value} if isinstance(value, str | list) else value


def _as_classes(value: Any) -> Any:
    """A list of values stands for classes that have these names; values and names become text.

    Raises PydanticCustomError for what is no value and for a value that occurs twice.
    """
    if isinstance(value, list):
        pairs = [(f"[{index}]", item, item) for index, item in enumerate(value)]
    elif isinstance(value, Mapping):
        pairs = [(f".{item}", item, name) for item, name in value.items()]
    else:
        return value
    classes: dict[str, Any] = {}
    for place, item, name in pairs:
        if not _is_scalar(item):
            raise wrong_form(place, f"{'null' if item is None else repr(item)} is not text or a number")
        text = value_text(item)
        if "${" in text:
            raise wrong_form(place, f"{text!r} is an interpolation, and values are compared as they are written here")
        if not text.strip():
            raise wrong_form(place, f"{text!r} is blank; such a label is a missing one")
        if text in classes:
            raise wrong_form("", f"{text!r} stands twice")
        classes[text] = value_text(name) if _is_scalar(name) else name
    return classes


def _as_classes_or_same(value: Any) -> Any:
    try:
        return _as_classes(value)
    except PydanticCustomError:
        return value


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _some_file(files: list[str]) -> list[str]:
    if not all(files) or not files:
        raise wrong_form("", "empty; name a file")
    return files


FilesOfSplit = Annotated[Strings, AfterValidator(_some_file)]
Files = Annotated[
    dict[str, FilesOfSplit],
    BeforeValidator(_as_files, json_schema_input_type=str | list[str] | dict[str, str | list[str]]),
    Shorthand(_as_files, "a file, a list of files, or a mapping of splits to their files"),
]
"""Files of each split; a single file or list is that of the training split."""
_Scalar = str | int | float | bool
Classes = Annotated[
    dict[str, str],
    BeforeValidator(_as_classes, json_schema_input_type=list[_Scalar] | dict[str, _Scalar]),
    Shorthand(_as_classes_or_same, "a list of values, or a mapping of values to class names", replaces=True),
]
"""Values in the data -> class names, in the order of the classes; a list names values that are class names too."""
Share = Annotated[float, Field(gt=0, lt=1), Allowed("above 0 and below 1")]


class ReadConfig(Section):
    """How text files are written: for CSV all keys, for JSON and plain text the encoding."""

    delimiter: str | None = None
    """Character between the fields of a CSV file; null finds it in the header."""
    encoding: str = "utf-8"
    """Encoding of a text file, as Python names it, e.g. cp1252 or utf-16."""
    quotechar: str | None = '"'
    """Character around a CSV field that contains delimiters or line ends; null takes quotes as ordinary characters."""
    header: bool = True
    """Whether the first line of a CSV file names its columns; otherwise they are called 0, 1, 2 and so on."""

    @field_validator("delimiter", "quotechar")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value in ("\\t", "tab"):  # on command lines, and in YAML without double quotes
            return "\t"
        if value is not None and (len(value) != 1 or value in "\r\n\0"):
            hint = '; quote it, e.g. "|"' if not value.strip() else ""
            raise ValueError(f"{value!r} is not one character{hint}")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "".encode(value)
        except (LookupError, ValueError):
            raise ValueError(f"no encoding {value!r}; e.g. utf-8, cp1252, utf-16") from None
        return value

    @model_validator(mode="after")
    def _fields_can_be_told_apart(self) -> Self:
        if self.delimiter is not None and self.delimiter == self.quotechar:
            raise ValueError(f"delimiter and quotechar are both {self.delimiter!r}")
        return self


class SplitConfig(Section):
    """Shares of the training rows that are held out; a row keeps its side when rows are appended."""

    validation: Share | None = None
    """Share of the rows for validation."""
    test: Share | None = None
    """Share of the rows for the test split."""
    by: str | None = None
    """Column whose equal values stay on one side, e.g. a customer; null keeps rows with equal texts together."""
    stratify: str | None = None
    """Label column of which each side gets its share of every class; null draws without regard to labels."""

    @model_validator(mode="after")
    def _something_is_left_to_train(self) -> Self:
        if (self.validation or 0) + (self.test or 0) >= 1:
            raise ValueError("validation and test leave no rows to train on; their sum is below 1")
        if self.held_out == () and (self.by or self.stratify):
            raise ValueError(f"{'by' if self.by else 'stratify'} goes with the share of validation or test")
        if self.by and self.stratify:
            raise ValueError("by and stratify cannot both hold; give one of them")
        return self

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names of the splits that are taken from the training rows."""
        return tuple(
            name for name, share in (("validation", self.validation), ("test", self.test)) if share is not None
        )


class SourceFields(Section):
    """Where rows are, how they are read, and how they are split."""

    path: str | None = None
    """Kind of the files in `data_files`: csv, json, parquet or arrow; or the id of a hub data set, or a folder."""
    name: str | None = None
    """The data set's configuration on the hub, e.g. `sentiment` of `tweet_eval`."""
    data_files: Files = Field(default_factory=dict)
    """Files (globs allowed) of each split, or one file or list of which `split` holds out rows."""
    read: ReadConfig = Field(default_factory=ReadConfig)
    split: SplitConfig = Field(default_factory=SplitConfig)
    max_rows: Count | None = None
    """Train on this many rows, drawn once and the same for every seed; null takes all."""


def _one_or_two_columns(text: list[str] | None) -> list[str] | None:
    if text is not None and len(text) not in (1, 2):
        raise ValueError(f"{len(text)} columns; give one, or two for a sentence pair")
    return text


class SourceConfig(SourceFields):
    """A table that several tasks can use; they refer to it by its name."""

    path: RequiredText  # pyrefly: ignore[bad-override-mutable-attribute] - a source has one in any case
    """Kind of the files in `data_files`: csv, json, parquet or arrow; or the id of a hub data set, or a folder."""
    text: Strings = Field(default_factory=lambda: ["text"])
    """Text column, or two columns for a sentence pair."""

    _text = field_validator("text")(_one_or_two_columns)


class TaskConfig(SourceFields):
    """One classification task: its rows, from a source or by keys of its own, its label, its weight in the loss."""

    source: str | None = None
    """Name of the source in `sources` that has the rows; or give `path` here."""
    text: Strings | None = None
    """Text column, or two columns for a sentence pair; null is that of the source, else `text`."""
    label: str = "label"
    """Label column: whole numbers, true and false, or strings."""
    labels: Classes | None = None
    """Values of the label column in the order of the classes, or a mapping from values to class names, e.g. {0: low,
    1: high}; null takes the classes from the data."""
    missing: Literal["skip", "error"] = "skip"
    """Rows without a label take no part in this task and are counted, or are refused."""
    weight: PositiveFloat = 1.0
    """Weight of this task's mean loss in the global batch's loss."""

    _text = field_validator("text")(_one_or_two_columns)

    @field_validator("labels")
    @classmethod
    def _at_least_two_classes(cls, labels: dict[str, str] | None) -> dict[str, str] | None:
        if labels is None:
            return None
        if len(labels) < 2:
            raise ValueError(f"{len(labels)} given; a task has at least two classes")
        refuse_repeated(list(labels.values()))
        return labels


class DataConfig(Section):
    """From text to tokens."""

    max_length: Annotated[int, Field(ge=3), Allowed("at least 3: two special tokens and one of text")] = 128
    """Most tokens of an example, special tokens included; longer texts are truncated."""
    empty_text: Literal["error", "skip"] = "error"
    """Treatment of rows whose text is empty or missing: stop, or leave them out and print their number."""
    leaks: Literal["warn", "drop", "error"] = "warn"
    """Treatment of texts of a validation or test split that are also training texts of some task: print their number,
    leave out these training rows, or stop."""
    cache_dir: str | None = None
    """Folder for tokenized data; null is `$MTL_DIST_CACHE`, else `~/.cache/mtl_dist`."""
