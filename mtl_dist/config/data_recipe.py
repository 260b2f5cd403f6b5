"""The sections of a recipe on data: sources of rows, tasks, and the way from text to tokens."""

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mtl_dist.config.section import Allowed, Count, PositiveFloat, RequiredText, Section, Shorthand, Strings

SPLITS = ("train", "validation", "test")


def _as_files(value: Any) -> Any:
    """A file or a list of files stands for those of the training split."""
    return {"train": value} if isinstance(value, str | list) else value


def _as_classes(value: Any) -> Any:
    """A list of values stands for classes that have these names; values and names become text."""
    if isinstance(value, list):
        return (
            {value_text(item): value_text(item) for item in value} if len({*map(str, value)}) == len(value) else value
        )
    if isinstance(value, Mapping):
        return {value_text(key): value_text(item) for key, item in value.items()}
    return value


def value_text(value: Any) -> str:
    """A label as text, in the form in which the readers of data files return it: `true`, `1`, `0.5`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


Files = Annotated[
    dict[str, Strings],
    BeforeValidator(_as_files, json_schema_input_type=str | list[str] | dict[str, str | list[str]]),
    Shorthand(_as_files),
]
"""Files of each split; a single file or list is that of the training split."""
Classes = Annotated[
    dict[str, str],
    BeforeValidator(
        _as_classes,
        json_schema_input_type=list[str | int | float | bool] | dict[str, str | int | float | bool],
    ),
    Shorthand(_as_classes, replaces=True),
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
        if value is not None and (len(value) != 1 or value in "\r\n"):
            raise ValueError(f"{value!r} is not one character")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise ValueError(f"no encoding {value!r}; e.g. utf-8, cp1252, utf-16") from None
        return value


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
    """What `datasets.load_dataset` takes: a hub id, or csv, json, parquet, arrow together with `data_files`."""
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

    path: RequiredText
    """What `datasets.load_dataset` takes: a hub id, or csv, json, parquet, arrow together with `data_files`."""
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

    @field_validator("labels", mode="before")
    @classmethod
    def _no_value_twice(cls, labels: Any) -> Any:
        if isinstance(labels, list):
            texts = [value_text(item) for item in labels]
            for index, text in enumerate(texts):
                if text in texts[:index]:
                    raise ValueError(f"{text!r} stands twice")
        return labels

    @field_validator("labels")
    @classmethod
    def _at_least_two_classes(cls, labels: dict[str, str] | None) -> dict[str, str] | None:
        if labels is None:
            return None
        if len(labels) < 2:
            raise ValueError(f"{len(labels)} given; a task has at least two classes")
        names = list(labels.values())
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"{name!r} stands twice")
        return labels


class DataConfig(Section):
    """From text to tokens."""

    max_length: Annotated[int, Field(ge=3), Allowed("at least 3: two special tokens and one of text")] = 128
    """Most tokens of an example, special tokens included; longer texts are truncated."""
    empty_text: Literal["error", "skip"] = "error"
    """What to do with rows whose text is empty or missing: stop, or leave them out and print their number."""
    leaks: Literal["warn", "drop", "error"] = "warn"
    """What to do where a text of a validation or test split is also a training text of some task: print their number,
    leave out these training rows, or stop."""
    cache_dir: str | None = None
    """Folder for tokenized data; null is `$MTL_DIST_CACHE`, else `~/.cache/mtl_dist`."""
