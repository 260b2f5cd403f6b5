"""What a run shows of its last measurement beside figures: what was taken for what, and texts that were."""

from dataclasses import dataclass
from typing import NamedTuple


class MisclassifiedText(NamedTuple):
    """A text of a split that was taken for another class than its own."""

    row: int
    """In the source, from 0."""
    text: str
    """As the encoder sees it: cut to `data.max_length`, and in lower case where its tokenizer makes it so."""
    truth: str
    predicted: str
    score: float
    """Probability that the model gives to `predicted`."""


@dataclass(frozen=True)
class FinalTables:
    """All by task."""

    labels: dict[str, tuple[str, ...]]
    confusions: dict[str, list[list[int]]]
    """[label, prediction, count] where that is not 0."""
    misclassified: dict[str, list[MisclassifiedText]]
    """The surest first."""
