"""Random permutations that need no memory: each element is computed from its position and a key.

A generalised Feistel network with cycle walking: J. Black, P. Rogaway, "Ciphers with Arbitrary Finite Domains",
CT-RSA 2002. Grain's `index_shuffle` serves the same purpose. It uses integers only, so that the order is the same on
every machine.
"""

import hashlib
import math

import numpy as np

ROUNDS = 16
"""Three are enough for large sizes, but after ten the orders of five values still differ visibly in frequency."""


def shuffled_indices(start: int, stop: int, size: int, seed: int, name: str) -> np.ndarray:
    """Elements start to stop of an endless sequence of permutations of [0, size); [stop - start] int64.

    The elements from k * size to (k + 1) * size are pass k, a permutation keyed by (seed, name, k).
    """
    passes, positions = np.divmod(np.arange(start, stop), size)
    passes -= start // size
    keys = [_round_keys(seed, name, number) for number in range(start // size, -(-stop // size))]
    round_keys = np.array(keys, dtype=np.uint64).reshape(-1, ROUNDS)
    values = positions.astype(np.uint64)
    # The network permutes slightly more than [0, size): values outside are permuted again (cycle walking).
    walking = np.arange(len(values))
    while len(walking):
        values[walking] = _feistel(values[walking], size, round_keys, passes[walking])
        walking = walking[values[walking] >= size]
    return values.astype(np.int64)


def _round_keys(seed: int, name: str, number: int) -> np.ndarray:
    """Round keys of pass `number`, [ROUNDS] uint64."""
    key = hashlib.shake_128(f"{seed}/{number}/{name}".encode())
    return np.frombuffer(key.digest(8 * ROUNDS), dtype="<u8")


def _feistel(values: np.ndarray, size: int, round_keys: np.ndarray, passes: np.ndarray) -> np.ndarray:
    """Permutes the integers below width * height, the smallest near-square that holds [0, size).

    An integer is split into left < width and right < height. Row passes[i] of `round_keys`, [passes, ROUNDS], is the
    key of values[i].
    """
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    right, left = np.divmod(values, np.uint64(width))
    for number in range(0, ROUNDS, 2):
        left = (left + _mix(right ^ round_keys[passes, number]) % np.uint64(width)) % np.uint64(width)
        right = (right + _mix(left ^ round_keys[passes, number + 1]) % np.uint64(height)) % np.uint64(height)
    return right * np.uint64(width) + left


def _mix(values: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014): every input bit affects every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
