"""Laws of random resized crops: drawn as torchvision draws them, resized as Pillow resizes, one size for all."""

import hashlib
import math
import pickle
from collections.abc import Callable
from decimal import getcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from logitstore.pipeline.augment import (
    RandomResizedCrop,
    augment_rows,
    random_resized_crop,
    raw_words,
    row_generator,
)
from logitstore.pipeline.factories.call import source_digest
from logitstore.storage.errors import ConfigError

STORE = np.random.default_rng(0).integers(0, 256, size=(40, 3, 24, 31), dtype=np.uint8)
ROWS = np.arange(len(STORE))
MANY = 1000


def boxes(crop: RandomResizedCrop, height: int, width: int) -> NDArray[np.int64]:
    """The boxes of a thousand rows: (rows, 4), top, left, height, width."""
    words = raw_words(3, 1, np.arange(MANY), crop.num_words)
    return np.array([crop.box(height, width, drawn) for drawn in words])


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, len(STORE) - 1), min_size=1, max_size=6),
    st.sampled_from([5, (7, 4), (40, 50)]),
    st.sampled_from(["uint8", "float32"]),
    st.sampled_from(["first", "last", "none"]),
)
def test_a_view_is_the_drawn_part_as_pillow_resizes_it(
    seed: int, order: list[int], size: Any, dtype: str, channels: str
) -> None:
    crop = random_resized_crop(size, channels="last" if channels == "last" else "first")
    images = STORE.astype(dtype)
    inputs = {"first": images, "last": images.transpose(0, 2, 3, 1), "none": images[:, 0]}[channels]
    made = augment_rows(inputs[order], crop, seed, 1, np.array(order), made_twice=True)
    high, wide = crop.size
    shape = {"first": (3, high, wide), "last": (high, wide, 3), "none": (high, wide)}[channels]
    assert (made.dtype, made.shape) == (np.dtype(dtype), (len(order), *shape))
    for view, row in zip(made, order, strict=True):
        drawn = raw_words(seed, 1, np.array([row]), crop.num_words)[0]
        top, left, tall, broad = crop.box(24, 31, drawn)
        planes = view.reshape(-1, high, wide) if channels != "last" else view.transpose(2, 0, 1)
        for plane, channel in zip(planes, images[row], strict=False):
            part = np.ascontiguousarray(channel[top : top + tall, left : left + broad])
            whole = Image.fromarray(part).resize((wide, high), Image.Resampling.BILINEAR)
            expected = np.asarray(whole)
            if (int(drawn[-1]) >> 11) * 2.0**-53 < 0.5:
                expected = expected[:, ::-1]
            assert np.array_equal(plane, expected)
        alone = pickle.loads(pickle.dumps(crop))(inputs[row], row_generator(seed, 1, row))
        assert np.array_equal(alone, view)


PINNED = {
    (5, 5): "f4cdae90671774c6db2eea1033264d22d6dd6667925bab507757be8bae6b958c",
    (7, 4): "ab66716ba28a1d6e646e9d3f6f77b7799ca002e7e2da79ae148f094011ec71d6",
    (40, 50): "f41ce6027a85169ebf0afc1e3f3d2801457b1ad7ad4b5faba89d2731cec943ce",
}
"""Of views of uint8, by size. When one has to change, so has the version that the factory states."""


@pytest.mark.parametrize("size", PINNED)
def test_the_bytes_of_a_version_stay(size: tuple[int, int]) -> None:
    pixels = np.arange(40 * 3 * 24 * 31, dtype=np.int64) * 7919 % 251
    made = augment_rows(pixels.astype(np.uint8).reshape(40, 3, 24, 31), random_resized_crop(size), 7, 1, ROWS)
    assert hashlib.sha256(made.tobytes()).hexdigest() == PINNED[size]
    assert source_digest("logitstore.pipeline.augment:random_resized_crop") == "random_resized_crop 1"


def test_another_row_view_or_seed_is_another_view() -> None:
    same = np.repeat(STORE[:1], 20, axis=0)
    rows = np.arange(20)
    crop = random_resized_crop(8)
    made = [augment_rows(same, crop, seed, view, rows) for seed in (0, 1) for view in (1, 2)]
    assert len({view.tobytes() for views in made for view in views}) == 80


@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1.0), (0.75, 4 / 3)), ((0.3, 0.5), (0.9, 1.2))])
def test_area_and_ratio_are_within_their_bounds(
    scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    height, width = 400, 500
    drawn = boxes(random_resized_crop(8, scale, ratio), height, width)
    top, left, high, wide = drawn.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + high <= height).all() and (left + wide <= width).all()
    shares, ratios = high * wide / (height * width), wide / high
    slack = 0.01  # sides are whole pixels
    assert ((scale[0] - slack < shares) & (shares < scale[1] + slack)).all()
    assert ((ratio[0] - slack < ratios) & (ratios < ratio[1] + slack)).all()
    assert len({tuple(box) for box in drawn.tolist()}) > 0.99 * MANY


def test_the_draws_have_the_distributions_of_the_definition() -> None:
    # Parts of at most a quarter always fit, so that nothing is drawn again.
    drawn = boxes(random_resized_crop(8, (0.01, 0.25), (0.5, 2.0)), 3000, 3000)
    top, left, high, wide = drawn.T
    uniform = [
        (high * wide / 9e6 - 0.01) / 0.24,
        np.log2(wide / high) / 2 + 0.5,
        (top + 0.5) / (3001 - high),
        (left + 0.5) / (3001 - wide),
    ]
    for sample in uniform:
        assert stats.kstest(sample, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 200, (0, 93, 10, 13)), (200, 10, (93, 0, 13, 10)), (1, 1, (0, 0, 1, 1))]
)
def test_the_largest_centre_is_taken_where_no_box_fits(height: int, width: int, box: tuple[int, ...]) -> None:
    assert (boxes(random_resized_crop(8, (1.0, 1.0)), height, width) == box).all()


def test_an_image_whose_ratio_fits_is_taken_whole_where_no_box_fits() -> None:
    whole = random_resized_crop(8, (1.0, 1.0), (0.5, 2.0))
    assert (0, 0, 100, 100) in {tuple(box) for box in boxes(whole, 100, 100).tolist()}


@pytest.mark.parametrize(("flip", "least", "most"), [(0.0, 0, 0), (1.0, 1000, 1000), (0.25, 190, 310)])
def test_as_many_are_mirrored_as_flip_says(flip: float, least: int, most: int) -> None:
    slope = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[None, None], 16, axis=1)
    inputs = np.repeat(slope, MANY, axis=0)
    made = augment_rows(inputs, random_resized_crop(4, (0.5, 1.0), flip=flip), 0, 1, np.arange(MANY))
    assert least <= (made[:, 0, 0] > made[:, 0, -1]).sum() <= most


def test_the_numbers_do_not_follow_from_the_callers_decimal_context() -> None:
    crop = random_resized_crop(8)
    before = boxes(crop, 400, 500)
    precision = getcontext().prec
    try:
        getcontext().prec = 3
        assert np.array_equal(boxes(random_resized_crop(8), 400, 500), before)
    finally:
        getcontext().prec = precision
    assert math.isclose(before[:, 2].mean(), 306, rel_tol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_resized_crop(0), "expected a size of 1 pixel or more, found (0, 0); correct size"),
        (
            lambda: random_resized_crop(8, scale=(0.5, 0.2)),
            "expected a scale of two ascending shares, above 0 and at most 1, found (0.5, 0.2); correct scale",
        ),
        (
            lambda: random_resized_crop(8, scale=(0.0, 1.0)),
            "expected a scale of two ascending shares, above 0 and at most 1, found (0.0, 1.0); correct scale",
        ),
        (
            lambda: random_resized_crop(8, ratio=(1.0, math.inf)),
            "expected a ratio of two ascending numbers above 0, found (1.0, inf); correct ratio",
        ),
        (
            lambda: random_resized_crop(8, channels="lasst"),
            "expected channels 'first' or 'last', found lasst; correct channels",
        ),
        (lambda: random_resized_crop(8, flip=1.5), "expected a flip from 0 to 1, found 1.5; correct flip"),
        (
            lambda: augment_rows(STORE.astype(float), random_resized_crop(8), 0, 1, ROWS),
            "expected inputs of uint8 or float32, found inputs of float64; cast them in the data set",
        ),
        (
            lambda: augment_rows(STORE[:, 0], random_resized_crop(8, channels="last"), 0, 1, ROWS),
            (
                "expected inputs of shape (height, width, channels), found inputs of shape (24, 31); set channels to "
                "'first' or 'last' as the inputs have them, or choose another augmentation"
            ),
        ),
        (
            lambda: augment_rows(STORE[:, :, :0], random_resized_crop(8), 0, 1, ROWS),
            "expected images of at least one pixel, found inputs of shape (3, 0, 31); correct the data set",
        ),
    ],
)
def test_bad_arguments_and_inputs_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == f"augmentation random_resized_crop: {message}"
