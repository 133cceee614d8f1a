"""Laws of views: each is a pure function of (seed, view, row), and of the input."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.pipeline.augment import Augmentation, augment_rows, identity, row_generator, shift
from logitstore.storage.errors import ConfigError, FactoryError

INPUTS = np.random.default_rng(0).integers(1, 256, size=(40, 6, 7), dtype=np.uint8)
DRAWS = [4674392337187214147, 13449155279133177088, 9786934513573124102]
CENTRES = [17, 17, 15, 4, 11, 13, 17, 21, 11, 4, 20, 11]
numbers = st.integers(0, 2**64 - 1)


def noise(example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An augmentation that makes very many draws, a different number for every row."""
    draws = generator.integers(0, 256, size=(int(generator.integers(1, 50)), *example.shape), dtype=np.uint8)
    made: np.ndarray = np.bitwise_xor.reduce(draws) ^ example
    return made


class Impure:
    """An augmentation with a memory, as those that draw from a generator of their own have."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(0)

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return example ^ self.own.integers(0, 256, dtype=np.uint8)


def made_alone_as_in_a_batch(augmentation: Augmentation, order: list[int], seed: int, view: int) -> bool:
    """The law: any row of any view alone equals the one made in a batch, in any order."""
    rows = np.array(order, dtype=np.int64)
    batch = augment_rows(INPUTS[rows], augmentation, seed, view, rows)
    return all(
        np.array_equal(
            batch[place], augment_rows(INPUTS[[row]], augmentation, seed, view, np.array([row]))[0]
        )
        for place, row in reversed(list(enumerate(order)))
    )


@given(st.lists(st.integers(0, len(INPUTS) - 1), min_size=1, max_size=12), numbers, st.integers(1, 2**32))
def test_a_row_alone_is_the_row_of_any_batch(order: list[int], seed: int, view: int) -> None:
    assert made_alone_as_in_a_batch(shift(2), order, seed, view)
    assert made_alone_as_in_a_batch(noise, order, seed, view)


def test_an_impure_augmentation_breaks_the_law() -> None:
    assert not made_alone_as_in_a_batch(Impure(), [1, 2, 3, 4], 0, 1)


@given(st.tuples(numbers, numbers, numbers), st.tuples(numbers, numbers, numbers))
def test_generators_are_equal_only_for_equal_numbers(
    one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    draws = row_generator(*one).integers(2**63, size=8)
    assert np.array_equal(draws, row_generator(*one).integers(2**63, size=8))
    assert (one == other) == np.array_equal(draws, row_generator(*other).integers(2**63, size=8))


def test_neighbouring_numbers_and_large_ones_give_different_draws() -> None:
    near = [*range(4), 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    draws = {
        tuple(row_generator(*triple).integers(2**63, size=4).tolist())
        for triple in itertools.product(near, repeat=3)
    }
    assert len(draws) == len(near) ** 3


def test_the_draws_are_the_same_for_ever() -> None:
    """Stores are replayed by later versions: these numbers may never change."""
    draws = row_generator(3, 1, 2**40).bit_generator.random_raw(3)
    assert np.asarray(draws).tolist() == DRAWS
    image = np.arange(1, 26, dtype=np.uint8).reshape(5, 5)
    first_pixels = [int(shift(2)(image, row_generator(3, 1, row))[2, 2]) for row in range(12)]
    assert first_pixels == CENTRES


@pytest.mark.parametrize("triple", [(-1, 0, 0), (0, 2**64, 0), (0, 0, -5)])
def test_numbers_out_of_range_are_named(triple: tuple[int, int, int]) -> None:
    name, value = next((n, v) for n, v in zip(("seed", "view", "row"), triple, strict=True) if v)
    message = f"{name}: expected an integer from 0 to 2**64 - 1, found {value}; correct {name}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        row_generator(*triple)


# Views -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_view", [0, 1, 3])
def test_views_below_the_first_are_the_rows_as_they_are(first_view: int) -> None:
    rows = np.arange(len(INPUTS))
    for view in range(5):
        made = augment_rows(INPUTS, shift(2), 0, view, rows, first_view)
        assert (made is INPUTS) == (view < first_view)
        assert np.array_equal(made, INPUTS) == (view < first_view)
    assert np.array_equal(augment_rows(INPUTS, identity(), 0, 9, rows), INPUTS)


def test_views_and_seeds_differ() -> None:
    rows = np.arange(len(INPUTS))
    made = [
        augment_rows(INPUTS, shift(2), seed, view, rows).tobytes() for seed in (0, 1) for view in (1, 2, 3)
    ]
    assert len(set(made)) == len(made)


def test_the_inputs_are_never_changed() -> None:
    def in_place(example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        example[:] = 0
        return example

    before = INPUTS.copy()
    assert not augment_rows(INPUTS, in_place, 0, 1, np.arange(len(INPUTS))).any()
    assert np.array_equal(INPUTS, before)


def _fails(example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    raise RuntimeError("two\nlines")


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (
            lambda example, generator: example[: generator.integers(1, 6)],
            (
                "augmentation of row 8, view 2: expected a view of shape (5, 7), like that of row 7, "
                "found one of shape (3, 7); return views of one shape, whatever is drawn"
            ),
        ),
        (
            lambda example, generator: example / 2,
            (
                "augmentation of row 7, view 2: expected uint8, like the input, found float64 of shape (6, 7); "
                "return the dtype of the input"
            ),
        ),
        (
            _fails,
            "augmentation of row 7, view 2: expected an augmented input, found an error, RuntimeError: two lines; ",
        ),
    ],
)
def test_an_augmentation_that_does_not_fit_is_named(augmentation: Augmentation, message: str) -> None:
    with pytest.raises(FactoryError) as caught:
        augment_rows(INPUTS[:2], augmentation, 0, 2, np.array([7, 8]))
    assert str(caught.value).startswith(message)


# Shift -------------------------------------------------------------------------------------------


def shifted(image: np.ndarray, down: int, right: int, fill: int) -> np.ndarray:
    """The oracle: pad by more than the distance, then cut."""
    pad = max(abs(down), abs(right))
    height, width = image.shape[-2:]
    axes = [(0, 0)] * (image.ndim - 2) + [(pad, pad), (pad, pad)]
    padded = np.pad(image, axes, constant_values=fill)
    return padded[..., pad - down : pad - down + height, pad - right : pad - right + width]


@given(
    st.integers(0, 9), st.integers(0, 500), st.sampled_from([(6, 7), (3, 5, 4)]), st.sampled_from([0, 255])
)
def test_a_shift_moves_the_image_as_a_whole(pixels: int, row: int, shape: tuple[int, ...], fill: int) -> None:
    image = np.random.default_rng(1).integers(1, 255, size=shape, dtype=np.uint8)
    moved = shift(pixels, float(fill))(image, row_generator(0, 1, row))
    distances = range(-pixels, pixels + 1)
    assert any(
        np.array_equal(moved, shifted(image, down, right, fill))
        for down, right in itertools.product(distances, repeat=2)
    )


def test_all_25_shifts_of_two_pixels_are_as_likely() -> None:
    image = np.zeros((5, 5), dtype=np.float32)
    image[2, 2] = 1.0
    rows = np.arange(10_000)
    made = augment_rows(np.repeat(image[None], len(rows), axis=0), shift(2), 0, 1, rows)
    counts = made.sum(axis=0)
    assert counts.sum() == len(rows) and counts.min() > 0
    expected = len(rows) / 25
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 51.2  # 24 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shift(-1), "augmentation shift: expected pixels of 0 or more, found -1; correct pixels"),
        (
            lambda: shift(1, float("nan")),
            "augmentation shift: expected a finite fill, found nan; correct fill",
        ),
        (
            lambda: shift(1, 300.0)(INPUTS[0], row_generator(0, 1, 0)),
            "augmentation shift: expected a fill from 0 to 255 for uint8 inputs, found 300.0; correct fill",
        ),
        (
            lambda: shift(1)(np.zeros(3), row_generator(0, 1, 0)),
            "augmentation shift: expected inputs of shape (…, height, width), found inputs of shape (3,); ",
        ),
    ],
)
def test_bad_arguments_of_shift_are_named(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message)
