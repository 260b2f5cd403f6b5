"""Settings of a new recipe, from the number of rows, the lengths of texts and the encoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MULTIPLE = 8
_MIN_LENGTH = 16
_UNLIMITED = 512
"""Most tokens where no table of positions limits them: attention takes time with the square of the length."""
_SMALL_LR, _LR = 3e-4, 2e-5


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts of a table, special tokens included."""

    median: int
    percentile_95: int
    longest: int
    estimated: bool = False
    """Whether they are estimated from characters, for lack of the encoder's tokenizer."""


@dataclass(frozen=True)
class Settings:
    """Values of a recipe that follow from a table."""

    max_length: int
    batch_size: int
    epochs: tuple[float, float, float]
    """Length of the three phases, in passes over the training rows."""
    warmup_steps: int
    total_steps: int
    lr: float
    upper: int
    """Blocks of the second phase."""


def lengths_of(tokens: Sequence[int], estimated: bool = False) -> Lengths:
    """Figures of texts with these numbers of tokens."""
    median, high = np.percentile(tokens, (50, 95), method="higher")
    return Lengths(int(median), int(high), max(tokens), estimated)


def settings_for(
    rows: int, lengths: Lengths, blocks: int, positions: int | None, small: bool, sources: int
) -> Settings:
    """Settings for `rows` training rows of `sources` sources and an encoder of `blocks` blocks."""
    max_length = max(_MIN_LENGTH, _MULTIPLE * math.ceil(lengths.percentile_95 / _MULTIPLE))
    max_length = min(max_length, _UNLIMITED if positions is None else positions)
    batch_size = max(8 if rows < 200 else 32 if max_length <= 256 else 16, sources)
    if rows < 2000:
        epochs = (1.0, 1.0, 4.0)
    elif rows < 20_000:
        epochs = (0.5, 0.5, 2.0)
    elif rows < 200_000:
        epochs = (0.25, 0.25, 1.5)
    else:
        epochs = (0.1, 0.1, 1.0)
    total = sum(math.ceil(part * rows / batch_size) for part in epochs)
    warmup = max(1, min(500, round(0.08 * total)))
    return Settings(max_length, batch_size, epochs, warmup, total, _SMALL_LR if small else _LR, max(1, blocks // 3))
