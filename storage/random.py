"""Counter-based random numbers (Philox): pure functions of a seed, a stream and a counter.

A row of a view has the key (seed, view), and the row is the highest word of the counter. `row_generator` is NumPy's
generator there. `raw_words` computes the first words of the same stream for many rows at once: a generator takes some ten
microseconds to make, a row's words here a tenth of one.

NumPy keeps the raw stream for ever, but not how a generator's methods draw from it (NEP 19). Results that must be the
same in ten years use the words alone.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from typing import Final

import numpy as np
from jaxtyping import Int64, UInt64
from numpy.typing import NDArray

from .errors import ConfigError

_MULTIPLIERS: Final = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL: Final = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS: Final = 10
_WORDS: Final = 4
"""64-bit words a value of the counter."""
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


def row_generator(seed: int, view: int, row: int) -> np.random.Generator:
    """Return the random generator of one (seed, view, row), each 0 ≤ n < 2⁶⁴.

    The row is the highest word of the counter: two rows share no draw before one of them has made 2¹⁹² of them.
    Raises ConfigError if one of the three is out of range.

    >>> int(row_generator(0, 1, 5).integers(100)) == int(row_generator(0, 1, 5).integers(100))
    True
    """
    for name, value in (("seed", seed), ("view", view), ("row", row)):
        _check(name, value)
    return np.random.Generator(_numpy_philox(seed, view, row))


def philox_permutation(size: int, seed: int, stream: int, counter: int) -> Int64[np.ndarray, " size"]:
    """Return a permutation of `size` items: a pure function of the three integers.

    >>> philox_permutation(5, seed=0, stream=0, counter=0).tolist()
    [0, 2, 1, 4, 3]
    """
    words = np.asarray(_numpy_philox(seed, stream, counter).random_raw(size))
    return np.argsort(words, kind="stable").astype(np.int64)


def _numpy_philox(seed: int, stream: int, counter: int) -> np.random.Philox:
    # As uint64 arrays: NumPy converts a list of large integers through float64, which rounds them.
    key, counters = np.array([seed, stream], np.uint64), np.array([0, 0, 0, counter], np.uint64)
    return np.random.Philox(key=key, counter=counters)


def raw_words(
    seed: int, view: int, rows: Int64[np.ndarray, " rows"] | UInt64[np.ndarray, " rows"], count: int
) -> UInt64[np.ndarray, "rows count"]:
    """Compute the first `count` raw words of each row's generator, for all rows at once.

    Returns (rows, count) uint64. Raises ConfigError like `row_generator`.
    Philox4x64-10 as in NumPy, which raises the counter before the first word.

    >>> same = row_generator(7, 1, 5).bit_generator.random_raw(3)
    >>> bool((raw_words(7, 1, np.array([4, 5]), 3)[1] == same).all())
    True
    """
    _check("seed", seed)
    _check("view", view)
    if len(rows):
        _check("row", int(rows.min()))
    steps = -(-count // _WORDS)
    words = np.empty((len(rows), steps * _WORDS), dtype=np.uint64)
    for step in range(steps):
        words[:, step * _WORDS : (step + 1) * _WORDS] = _philox(seed, view, step + 1, rows.astype(np.uint64))
    return words[:, :count]


def _philox(seed: int, view: int, step: int, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Compute the words of the counters (step, 0, 0, row) under the key (seed, view): (rows, 4)."""
    counter = [np.full_like(rows, step), np.zeros_like(rows), np.zeros_like(rows), rows]
    keys = [seed, view]
    for _ in range(_ROUNDS):
        high_0, low_0 = _product(counter[0], _MULTIPLIERS[0])
        high_1, low_1 = _product(counter[2], _MULTIPLIERS[1])
        counter = [
            high_1 ^ counter[1] ^ np.uint64(keys[0]),
            low_1,
            high_0 ^ counter[3] ^ np.uint64(keys[1]),
            low_0,
        ]
        keys = [(key + weyl) % 2**64 for key, weyl in zip(keys, _WEYL, strict=True)]
    return np.stack(counter, axis=1)


def _product(factor: NDArray[np.uint64], constant: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Compute high and low words of the 128-bit products, by halves: NumPy has no wider integers."""
    low, high = np.uint64(constant & 0xFFFFFFFF), np.uint64(constant >> 32)
    a, b = factor >> _HALF, factor & _LOW
    middle = a * low + (b * low >> _HALF)
    carry = (b * high + (middle & _LOW)) >> _HALF
    return a * high + (middle >> _HALF) + carry, factor * np.uint64(constant)


def _check(name: str, value: int) -> None:
    if not 0 <= value < 2**64:
        raise ConfigError(
            name, expected="an integer from 0 to 2**64 - 1", found=str(value), remedy=f"correct {name}"
        )
