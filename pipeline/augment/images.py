"""Augmentations of images: shifts, crops and flips.

`shift` moves an image by some pixels (the paper's ±2). `crop_flip` moves it and mirrors half of all images, as is usual
for CIFAR. `identity` changes nothing. All use raw words only, and augment a whole block at once.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, Shaped, UInt64
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ...storage.errors import ConfigError
from .rows import of_one
from .versions import source_version

_AS_OF_ONE_FILE: Final = "sha256:bee4234354f85279599de43091e0c2905784751152514d2909783a265e545b45"
"""Digest of the first source file of `shift` and `identity`: older captures hold it, and the bytes are the same."""
_AT_A_TIME: Final = 1 << 20
"""Bytes of images that are padded at a time, so that they fit a cache."""
_LARGE: Final = 1 << 15
"""Bytes of an image from which it is moved by a call of its own."""


@dataclass(frozen=True)
class Identity:
    """The augmentation that changes nothing."""

    num_words = 0

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return `example`."""
        return example

    def of_block(self, inputs: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        """Return `inputs`."""
        return inputs


@dataclass(frozen=True)
class Shift:
    """Moves an image by whole pixels, drawn uniformly and independently along each axis."""

    pixels: int = 2
    """Maximum distance along each axis; both are drawn from -pixels … pixels."""
    fill: float = 0.0
    """Value of the uncovered pixels."""

    num_words = 2

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Move the last two axes, height and width, of an image (…, height, width) of any dtype."""
        return of_one(self, example, generator)

    def of_block(self, inputs: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        """Move each image (rows, …, height, width) by its own two words."""
        _check_images(inputs, self.fill, "augmentation shift")
        return moved(inputs, distances(words[:, :2], self.pixels), self.fill)


@dataclass(frozen=True)
class CropFlip:
    """Pads an image, crops it to its size at a random place, and flips some horizontally."""

    pixels: int = 4
    """Padding on each side, pixels; the crop is drawn uniformly and independently along each axis."""
    flip: float = 0.5
    """Share of the images that are flipped."""
    fill: float = 0.0
    """Value of the padding."""

    num_words = 3

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Cut and flip the last two axes, height and width, of an image (…, height, width) of any dtype."""
        return of_one(self, example, generator)

    def of_block(self, inputs: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        """Cut and flip each image (rows, …, height, width) by its own three words."""
        _check_images(inputs, self.fill, "augmentation crop_flip")
        made = moved(inputs, distances(words[:, :2], self.pixels), self.fill)
        # The upper 53 bits are a number from 0 to below 1, exactly: a share of 0 flips none, and 1 flips all.
        flipped = np.flatnonzero((words[:, 2] >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self.flip)
        made[flipped] = made[flipped, ..., ::-1]
        return made


@source_version(_AS_OF_ONE_FILE)
def identity() -> Identity:
    """Make the augmentation that changes nothing."""
    return Identity()


@source_version(_AS_OF_ONE_FILE)
def shift(pixels: int = 2, fill: float = 0.0) -> Shift:
    """Make an augmentation that moves images by up to `pixels` in any direction.

    pixels: maximum distance, whole pixels ≥ 0. fill: value of the uncovered pixels, that of the background (0 for
    MNIST, 255 for Omniglot).
    Raises ConfigError if `pixels` is negative or `fill` not finite.
    Source: Hinton et al. 2015, section 3 ("jittered by up to two pixels in any direction").

    >>> from logitstore.storage.random import row_generator
    >>> image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    >>> shift(pixels=1)(image, row_generator(0, 1, 4))
    array([[5, 6, 0],
           [8, 9, 0],
           [0, 0, 0]], dtype=uint8)
    """
    _check_arguments(pixels, fill, "augmentation shift")
    return Shift(pixels, fill)


@source_version("crop_flip 1")
def crop_flip(pixels: int = 4, flip: float = 0.5, fill: float = 0.0) -> CropFlip:
    """Make an augmentation that pads images by `pixels`, crops them to their size, and flips some horizontally.

    pixels: padding on each side, whole pixels ≥ 0. flip: share of the images, 0 … 1. fill: value of the padding.
    Raises ConfigError if `pixels` is negative, `flip` is out of range or `fill` is not finite.
    Source: He et al. 2016, "Deep residual learning for image recognition", section 4.2 (4 pixels, CIFAR-10).

    >>> from logitstore.storage.random import row_generator
    >>> image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    >>> crop_flip(pixels=1, flip=1.0)(image, row_generator(0, 1, 4))
    array([[0, 6, 5],
           [0, 9, 8],
           [0, 0, 0]], dtype=uint8)
    """
    _check_arguments(pixels, fill, "augmentation crop_flip")
    if not 0 <= flip <= 1:
        raise ConfigError(
            "augmentation crop_flip", expected="a flip from 0 to 1", found=str(flip), remedy="correct flip"
        )
    return CropFlip(pixels, flip, fill)


def distances(words: UInt64[np.ndarray, "rows axes"], pixels: int) -> Int64[np.ndarray, "rows axes"]:
    """Draw the shift of each axis, -pixels … pixels.

    2⁶⁴ is no multiple of the number of distances, but the bias is below 2⁻⁵⁰.
    """
    return (words % np.uint64(2 * pixels + 1)).astype(np.int64) - pixels


def moved(
    inputs: Shaped[np.ndarray, "rows ... height width"], by: Int64[np.ndarray, "rows 2"], fill: float
) -> Shaped[np.ndarray, "rows ... height width"]:
    """Shift each image down and right by its two distances in pixels; fill the uncovered border with `fill`.

    >>> moved(np.array([[[1, 2, 3]], [[1, 2, 3]]]), np.array([[0, 1], [0, -5]]), 9.0).tolist()
    [[[9, 1, 2]], [[9, 9, 9]]]
    """
    *_, height, width = inputs.shape
    images = inputs.reshape(len(inputs), math.prod(inputs.shape[1:-2]), height, width)
    if len(images) == 1 or images[:1].nbytes >= _LARGE:
        made = np.full(images.shape, fill, dtype=inputs.dtype)
        for image, whole, (down, right) in zip(made, images, by.tolist(), strict=True):
            image[:, _overlap(down, height), _overlap(right, width)] = whole[
                :, _overlap(-down, height), _overlap(-right, width)
            ]
        return made.reshape(inputs.shape)
    made = np.empty_like(images, order="C")
    # An image that is moved by more than its size leaves nothing but fill.
    down, right = np.clip(by[:, 0], -height, height), np.clip(by[:, 1], -width, width)
    high, wide = int(np.abs(down).max(initial=0)), int(np.abs(right).max(initial=0))
    step = max(1, _AT_A_TIME // max(1, images[:1].nbytes))
    padded = np.full(
        (min(step, len(images)), images.shape[1], height + 2 * high, width + 2 * wide),
        fill,
        dtype=inputs.dtype,
    )
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        few = len(images[part])
        padded[:few, :, high : high + height, wide : wide + width] = images[part]
        made[part] = windows[np.arange(few), :, high - down[part], wide - right[part]]
    return made.reshape(inputs.shape)


def _overlap(distance: int, length: int) -> slice:
    """Return the part of an axis that an image covers after moving by `distance`.

    >>> _overlap(2, 5), _overlap(-2, 5), _overlap(9, 5)
    (slice(2, 5, None), slice(0, 3, None), slice(5, 5, None))
    """
    return slice(min(max(distance, 0), length), min(max(length + distance, 0), length))


def _check_arguments(pixels: int, fill: float, where: str) -> None:
    if pixels < 0:
        raise ConfigError(where, expected="pixels of 0 or more", found=str(pixels), remedy="correct pixels")
    if not math.isfinite(fill):
        raise ConfigError(where, expected="a finite fill", found=str(fill), remedy="correct fill")


def _check_images(inputs: NDArray[Any], fill: float, where: str) -> None:
    if inputs.ndim < 3:
        raise ConfigError(
            where,
            expected="inputs of shape (…, height, width)",
            found=f"inputs of shape {inputs.shape[1:]}",
            remedy="choose another augmentation",
        )
    if inputs.dtype == np.uint8 and not 0 <= fill <= 255:
        raise ConfigError(
            where,
            expected="a fill from 0 to 255 for uint8 inputs",
            found=str(fill),
            remedy="correct fill",
        )
