"""Random words for many rows at once: equal to those of each row's own generator."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.pipeline.augment import raw_words, row_generator
from logitstore.storage import random as draws
from logitstore.storage.errors import ConfigError

numbers = st.integers(0, 2**64 - 1)


def numpy_words(seed: int, view: int, rows: list[int], count: int) -> np.ndarray:
    """The oracle: NumPy's own Philox, one row after another."""
    raw = [row_generator(seed, view, row).bit_generator.random_raw(count) for row in rows]
    return np.array(raw, dtype=np.uint64).reshape(len(rows), count)


@given(numbers, numbers, st.lists(numbers, max_size=8), st.integers(0, 13))
def test_the_words_of_a_block_are_those_of_numpys_generators(
    seed: int, view: int, rows: list[int], count: int
) -> None:
    made = raw_words(seed, view, np.array(rows, dtype=np.uint64), count)
    assert made.dtype == np.uint64
    assert np.array_equal(made, numpy_words(seed, view, rows, count))


def test_so_are_thousands_of_them_small_and_large() -> None:
    draw = np.random.default_rng(0)
    edges = [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1]
    for seed, view in itertools.product([*edges, 2**64 - 1, int(draw.integers(2**63))], [0, 1, 7, 2**64 - 1]):
        rows = np.concatenate([np.array(edges), np.arange(50, 80), draw.integers(2**63, size=60)])
        assert np.array_equal(raw_words(seed, view, rows, 3), numpy_words(seed, view, rows.tolist(), 3))


def test_a_round_less_gives_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    rows = np.arange(5)
    expected = numpy_words(0, 1, rows.tolist(), 4)
    monkeypatch.setattr(draws, "_ROUNDS", 9)
    assert not (raw_words(0, 1, rows, 4) == expected).any()


@pytest.mark.parametrize("triple", [(-1, 0, 0), (0, 2**64, 0), (0, 0, -5)])
def test_numbers_out_of_range_are_named(triple: tuple[int, int, int]) -> None:
    seed, view, row = triple
    name, value = next((n, v) for n, v in zip(("seed", "view", "row"), triple, strict=True) if v)
    message = f"{name}: expected an integer from 0 to 2**64 - 1, found {value}; correct {name}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        raw_words(seed, view, np.array([3, row, 4]), 1)
