"""Laws of views that are made a block at a time: the bytes are those of each row alone, and those of ever."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from logitstore.pipeline.augment import (
    Augmentation,
    augment_rows,
    crop_flip,
    identity,
    raw_words,
    row_generator,
    shift,
    source_version,
)
from logitstore.pipeline.augment.versions import stated_version
from logitstore.pipeline.factories.call import source_digest
from logitstore.storage.errors import ConfigError, FactoryError

STORE = np.random.default_rng(0).integers(1, 256, size=(40, 2, 6, 7), dtype=np.uint8)
"""Images of two channels, 6 x 7 pixels."""
numbers = st.integers(0, 2**64 - 1)
some_rows = st.lists(st.integers(0, len(STORE) - 1), min_size=1, max_size=12)


def raw(seed: int, view: int, row: int, count: int) -> list[int]:
    """The first words of a row's generator, from NumPy."""
    return [int(word) for word in np.asarray(row_generator(seed, view, row).bit_generator.random_raw(count))]


def cut(image: NDArray[Any], down: int, right: int, fill: float) -> NDArray[Any]:
    """The oracle: pad by more than the distance, then cut."""
    pad = max(abs(down), abs(right))
    height, width = image.shape[-2:]
    axes = [(0, 0)] * (image.ndim - 2) + [(pad, pad), (pad, pad)]
    padded = np.pad(image, axes, constant_values=np.array(fill).astype(image.dtype))
    return padded[..., pad - down : pad - down + height, pad - right : pad - right + width]


@given(
    numbers,
    st.integers(1, 5),
    some_rows,
    st.integers(0, 9),
    st.sampled_from([0.0, 0.5, 255.0]),
    st.sampled_from(["uint8", "float32", "float16", "int64"]),
    st.sampled_from([(2, 6, 7), (14, 6), (1, 1, 84)]),
)
def test_a_block_is_shifted_as_its_rows_ever_were(
    seed: int, view: int, order: list[int], pixels: int, fill: float, dtype: str, shape: tuple[int, ...]
) -> None:
    rows = np.array(order)
    inputs = STORE[rows].astype(dtype).reshape(-1, *shape)
    made = augment_rows(inputs, shift(pixels, fill), seed, view, rows)
    assert (made.dtype, made.flags.writeable, made.flags.c_contiguous) == (inputs.dtype, True, True)
    for place, row in enumerate(order):
        down, right = (word % (2 * pixels + 1) - pixels for word in raw(seed, view, row, 2))
        assert np.array_equal(made[place], cut(inputs[place], down, right, fill))
        assert np.array_equal(made[place], shift(pixels, fill)(inputs[place], row_generator(seed, view, row)))


@given(numbers, some_rows, st.integers(0, 9), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_crop_is_cut_out_of_the_padded_image_and_mirrored(
    seed: int, order: list[int], pixels: int, flip: float
) -> None:
    rows = np.array(order)
    made = augment_rows(STORE[rows], crop_flip(pixels, flip, 9.0), seed, 1, rows)
    for place, row in enumerate(order):
        *words, last = raw(seed, 1, row, 3)
        down, right = (word % (2 * pixels + 1) - pixels for word in words)
        expected = cut(STORE[row], down, right, 9.0)
        if (last >> 11) * 2.0**-53 < flip:
            expected = expected[..., ::-1]
        assert np.array_equal(made[place], expected)
        alone = augment_rows(STORE[[row]], crop_flip(pixels, flip, 9.0), seed, 1, np.array([row]))
        assert np.array_equal(made[place], alone[0])


@pytest.mark.parametrize(("flip", "least", "most"), [(0.0, 0, 0), (1.0, 4000, 4000), (0.25, 900, 1100)])
def test_as_many_are_mirrored_as_flip_says(flip: float, least: int, most: int) -> None:
    rows = np.arange(4000)
    images = np.repeat(STORE[:1], len(rows), axis=0)
    made = augment_rows(images, crop_flip(0, flip), 0, 1, rows)
    mirrored = (made == images[..., ::-1]).all(axis=(1, 2, 3))
    assert least <= mirrored.sum() <= most
    assert (made[~mirrored] == images[~mirrored]).all()


def test_large_images_are_moved_a_few_at_a_time() -> None:
    images = np.random.default_rng(0).normal(size=(7, 3, 200, 210)).astype(np.float32)
    made = augment_rows(images, shift(5, 2.5), 0, 1, np.arange(7))
    for row, image in enumerate(made):
        assert np.array_equal(image, shift(5, 2.5)(images[row], row_generator(0, 1, row)))


def test_no_rows_are_no_views() -> None:
    empty = STORE[:0]
    for augmentation in (shift(2), crop_flip(), identity()):
        assert augment_rows(empty, augmentation, 0, 1, np.arange(0), made_twice=True).shape == empty.shape


def test_what_was_given_is_never_changed_and_never_given_back() -> None:
    before = STORE.copy()
    for augmentation in (shift(0), crop_flip(0, 0.0), identity()):
        made = augment_rows(STORE, augmentation, 0, 1, np.arange(len(STORE)))
        assert np.array_equal(made, STORE)
        made[:] = 0
    assert np.array_equal(STORE, before)


# Versions ----------------------------------------------------------------------------------------

MADE = """
import hashlib, sys
import numpy as np
from logitstore.pipeline.augment import *
inputs = (np.arange(500 * 48) * 7919 % 251).astype(np.uint8).reshape(500, 6, 8)
class Others:
    def __len__(self): return 500
    def inputs_of(self, rows): return inputs[rows]
def digest(augmentation):
    sha = hashlib.sha256()
    for seed, view in ((0, 1), (0, 2), (2**64 - 1, 7)):
        for dtype in ("uint8", "float16", "float32"):
            some = inputs.astype(dtype)
            Others.inputs_of = lambda self, rows: some[rows]
            for rows in (np.arange(500), np.array([499, 3, 250])):
                sha.update(augment_rows(some[rows], augmentation, seed, view, rows, others=Others()).tobytes())
    return sha.hexdigest()
"""
PINNED = {
    "identity()": "90963dde3968aac980ca641d79d13f393ad8dbaff3a471e3a7f521978857042b",
    "shift()": "a1d266fa14508f9643dbdcbfcfb79664629ae01eb106da39c5b37d90b427f0d5",
    "shift(3, 255.0)": "60f78900c6811ba52eb2c61baabbd3ce5904784002847753fbd33f8cc8f6cb56",
    "crop_flip()": "a670f043cb1aea16ec08453757a0a0b110bcd75bd67bf4a06b1ca042e06a427f",
    "crop_flip(1, 0.2, 9.0)": "3be30fe3f2c06d5c97ef7884877a819043d883dc4c75cd829e6c5db4e7a39d3c",
    "cutmix()": "4b73b45dc761f3ae4eaa5ff41c6baf6424464c60b8deead48e5d363e5ff93141",
    "mixup()": "5bddb0ab2b8f162cc11619306823fdf6935d9df7487eaddf9133f4345cd63a87",
    "mixup(0.2, 64)": "b6a33cd3a61403ab9694c986c6b8720cf546134a41ad813aaff3c6661a5e1554",
}
"""Of the views that each of them makes. Those of `shift` were made by the code of its first captures. When one has to
change, so has the version that its factory states."""


def test_another_process_makes_the_bytes_of_ever() -> None:
    script = MADE + f"for made in {list(PINNED)!r}: print(digest(eval(made)))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert dict(zip(PINNED, said.stdout.split(), strict=True)) == PINNED


def test_what_ships_states_a_version_and_captures_of_before_are_known_by_it() -> None:
    modules = "logitstore.pipeline.augment"
    before = "sha256:bee4234354f85279599de43091e0c2905784751152514d2909783a265e545b45"
    assert source_digest(f"{modules}:shift") == source_digest(f"{modules}:identity") == before
    assert (
        source_digest(f"{modules}.images:crop_flip") == source_digest(f"{modules}:crop_flip") == "crop_flip 1"
    )
    assert source_digest(f"{modules}:mixup") == "mixup 1"


def test_a_stated_version_outlives_an_edit_of_the_file(tmp_path: Path) -> None:
    text = (
        "from logitstore.pipeline.augment import source_version\n"
        "def free():\n    return lambda example, generator: example\n"
        "@source_version('held 1')\ndef held():\n    return free()\n"
    )
    file = tmp_path / "ls_versions.py"
    file.write_text(text)
    free, held = (source_digest(f"ls_versions:{name}", base=tmp_path) for name in ("free", "held"))
    assert free == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" and held == "held 1"
    file.write_text(text + "# edited\n")
    assert source_digest("ls_versions:free", base=tmp_path) != free
    assert source_digest("ls_versions:held", base=tmp_path) == held


def test_a_version_is_of_what_states_it_alone() -> None:
    @source_version("mine 1")
    class Mine:
        pass

    class Theirs(Mine):
        pass

    assert (stated_version(Mine), stated_version(Theirs), stated_version(5)) == ("mine 1", None, None)
    with pytest.raises(
        ConfigError, match="source_version: expected a text that is not empty, found ' '; number the versions"
    ):
        source_version(" ")


# Pure or not -------------------------------------------------------------------------------------


class Counting:
    """No pure function: it knows how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, example: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        self.calls += 1
        made: NDArray[Any] = example ^ np.uint8(self.calls % 128)
        return made


@dataclass(frozen=True)
class Block:
    """An augmentation of a user's own that makes a block at a time."""

    make: Callable[[NDArray[Any], NDArray[np.uint64]], NDArray[Any]]
    num_words: int = 1

    def __call__(self, example: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        raise AssertionError("a block is made at once")

    def of_block(self, inputs: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        return self.make(inputs, words)


IMPURE: list[Callable[[], Augmentation]] = [
    Counting,
    lambda: Block(lambda inputs, words: inputs - inputs.min(axis=0)),
    lambda: Block(lambda inputs, words: np.roll(inputs, 1, axis=0)),
]
"""The last two make of a row what depends on the others of its block."""


@pytest.mark.parametrize("rows", [range(16), range(2, 40)])
@pytest.mark.parametrize("make", IMPURE)
def test_what_is_no_pure_function_of_its_generator_is_found(
    make: Callable[[], Augmentation], rows: range
) -> None:
    numbers = np.array(rows)
    found = numbers[-1 if len(rows) <= 16 else 0]
    with pytest.raises(FactoryError) as caught:
        augment_rows(STORE[numbers], make(), 0, 3, numbers, made_twice=True)
    error = caught.value
    assert error.where == f"augmentation of row {found}, view 3"
    assert error.expected == "the same bytes from the same generator"
    assert error.found == "other bytes at the second call"
    assert error.remedy.startswith("draw random numbers only from the generator")
    augment_rows(STORE[numbers], make(), 0, 3, numbers)  # control: it is the second making that tells


def test_a_pure_function_is_made_again_once_a_block_and_for_all_of_a_few() -> None:
    calls: list[int] = []

    def pure(example: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        calls.append(1)
        made: NDArray[Any] = example ^ generator.integers(256, dtype=np.uint8)
        return made

    for rows, expected in ((40, 41), (17, 18), (16, 32), (1, 2), (0, 0)):
        calls.clear()
        augment_rows(STORE[:rows], pure, 0, 1, np.arange(rows), made_twice=True)
        assert len(calls) == expected


@given(numbers, some_rows)
def test_a_block_of_a_users_own_gets_each_rows_words(seed: int, order: list[int]) -> None:
    rows = np.array(order)
    mine = Block(
        lambda inputs, words: inputs ^ (words[:, 1:, None, None] >> np.uint64(56)).astype(np.uint8), 2
    )
    made = augment_rows(STORE[rows], mine, seed, 1, rows, made_twice=True)
    words = raw_words(seed, 1, rows, 2)
    assert all(
        (made[i] == STORE[row] ^ np.uint8(int(words[i, 1]) >> 56)).all() for i, row in enumerate(order)
    )


def _spoils(inputs: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
    inputs[:] = 0
    return inputs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            _spoils,
            (
                "augmentation of 3 rows from 7, view 2: expected an augmented input, found an error, ValueError: assignment "
                "destination is read-only; correct the augmentation"
            ),
        ),
        (
            lambda inputs, words: inputs[1:],
            (
                "augmentation of 3 rows from 7, view 2: expected 3 views, one of each row, found an array of shape "
                "(2, 2, 6, 7); return (rows, …)"
            ),
        ),
        (
            lambda inputs, words: inputs / 2,
            (
                "augmentation of 3 rows from 7, view 2: expected uint8, like the input, found float64 of shape "
                "(3, 2, 6, 7); return the dtype of the input"
            ),
        ),
    ],
)
def test_a_block_that_does_not_fit_is_named(make: Any, message: str) -> None:
    with pytest.raises(FactoryError) as caught:
        augment_rows(STORE[7:10], Block(make), 0, 2, np.array([7, 8, 9]))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: crop_flip(-1), "expected pixels of 0 or more, found -1; correct pixels"),
        (lambda: crop_flip(1, 1.5), "expected a flip from 0 to 1, found 1.5; correct flip"),
        (lambda: crop_flip(1, float("nan")), "expected a flip from 0 to 1, found nan; correct flip"),
        (lambda: crop_flip(fill=float("inf")), "expected a finite fill, found inf; correct fill"),
        (
            lambda: augment_rows(STORE, crop_flip(fill=-1.0), 0, 1, np.arange(40)),
            "expected a fill from 0 to 255 for uint8 inputs, found -1.0; correct fill",
        ),
        (
            lambda: augment_rows(np.zeros((3, 4)), crop_flip(), 0, 1, np.arange(3)),
            "expected inputs of shape (…, height, width), found inputs of shape (4,); choose another augmentation",
        ),
    ],
)
def test_bad_arguments_of_crop_flip_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == f"augmentation crop_flip: {message}"
