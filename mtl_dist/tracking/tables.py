"""Tables of the last evaluation for trackers: confusion matrices and misclassified texts."""

from dataclasses import dataclass
from typing import NamedTuple


class MisclassifiedText(NamedTuple):
    """A text for which another class than its own was predicted."""

    row: int
    """Row of the source, from 0."""
    text: str
    """Text as the encoder reads it: truncated to `data.max_length`, in lower case if its tokenizer does so."""
    truth: str
    predicted: str
    score: float
    """Probability of `predicted` according to the model."""


@dataclass(frozen=True)
class FinalTables:
    """Tables of one evaluation, by task."""

    labels: dict[str, tuple[str, ...]]
    """Class names in order."""
    confusions: dict[str, list[list[int]]]
    """[label, prediction, count] where the count is not 0."""
    misclassified: dict[str, list[MisclassifiedText]]
    """Misclassified texts by descending score."""
