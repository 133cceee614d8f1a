"""Crops of a random size and shape, resized to one size: the usual training views of ImageNet.

`random_resized_crop` draws a part of the whole image as torchvision's `RandomResizedCrop` does, resizes it to `size`, and
mirrors some. A view has another shape than its input, so the images may be larger than the views.

The numbers are the same on every machine: `decimal` rounds logarithm and exponential correctly, and the rest is exact
or rounded as IEEE 754 says. Pillow resizes uint8 in integers, whose weights it rounds alike everywhere; its floats may
differ in the last bit between builds. The digests of the views show any difference.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...storage.errors import ConfigError
from .rows import of_one
from .versions import source_version

_WHERE: Final = "augmentation random_resized_crop"
_TRIES: Final = 10
"""Boxes that are drawn before the centre is taken."""
_WORDS: Final = 2 * _TRIES + 3
"""Area and ratio of each try, then the box's top and left, and the flip."""
_TOP: Final = 2 * _TRIES
"""Number of the first word after the tries."""
_DIGITS: Final = 30
"""Digits of logarithms and exponentials."""
Box = tuple[int, int, int, int]
"""(top, left, height, width) of a part of an image, pixels."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts a random part out of an image, resizes it to `size`, and flips some horizontally."""

    size: tuple[int, int]
    """Height and width of a view, pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest area of the part, as a share of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width of the part divided by its height; its logarithm is drawn uniformly."""
    flip: float = 0.5
    """Share of the views that are flipped."""
    channels: Literal["first", "last"] = "first"
    """Whether an image is (…, height, width) or (height, width, channels)."""

    num_words = _WORDS

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the view of one image."""
        return of_one(self, example, generator)

    def of_block(self, inputs: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        """Return the view of each image, of the same dtype, by its own words.

        Raises ConfigError for inputs that are neither uint8 nor float32, and for those that are no images.
        """
        planes = self._planes(inputs)
        rows, channels, height, width = planes.shape
        made = np.empty((rows, channels, *self.size), inputs.dtype)
        for views, image, drawn in zip(made, planes, words, strict=True):
            top, left, high, wide = self.box(height, width, drawn)
            for view, plane in zip(views, image[:, top : top + high, left : left + wide], strict=True):
                view[...] = _resized(plane, self.size)
            if _unit(drawn[_WORDS - 1]) < self.flip:
                views[...] = views[..., ::-1].copy()
        if self.channels == "last":
            return np.ascontiguousarray(made.transpose(0, 2, 3, 1))
        return made.reshape(rows, *inputs.shape[1:-2], *self.size)

    def box(self, height: int, width: int, words: NDArray[np.uint64]) -> Box:
        """Draw the part of an image of `height` by `width` pixels from its words, as torchvision does.

        Of ten boxes the first that fits is taken, at a place drawn uniformly. If none fits, it is the largest in the
        centre whose ratio is within `ratio`.
        """
        least, most = self.scale
        for area, ratio in words[:_TOP].reshape(_TRIES, 2):
            pixels = height * width * (least + _unit(area) * (most - least))
            shape = _drawn_ratio(self.ratio, _unit(ratio))
            wide, high = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
            if 0 < wide <= width and 0 < high <= height:
                # The bias of a remainder is below 2⁻⁴⁰ for images of up to 2²⁴ pixels a side.
                top = int(words[_TOP] % np.uint64(height - high + 1))
                return top, int(words[_TOP + 1] % np.uint64(width - wide + 1)), high, wide
        high, wide = height, width
        if width / height < self.ratio[0]:
            high = max(1, min(height, round(width / self.ratio[0])))
        elif width / height > self.ratio[1]:
            wide = max(1, min(width, round(height * self.ratio[1])))
        return (height - high) // 2, (width - wide) // 2, high, wide

    def _planes(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Return the images as (rows, channels, height, width)."""
        is_last = self.channels == "last"
        if inputs.dtype not in (np.uint8, np.float32):
            raise ConfigError(
                _WHERE,
                expected="inputs of uint8 or float32",
                found=f"inputs of {inputs.dtype}",
                remedy="cast them in the data set",
            )
        if inputs.ndim < 3 or (is_last and inputs.ndim != 4):
            raise ConfigError(
                _WHERE,
                expected=f"inputs of shape {'(height, width, channels)' if is_last else '(…, height, width)'}",
                found=f"inputs of shape {inputs.shape[1:]}",
                remedy="set channels to 'first' or 'last' as the inputs have them, or choose another augmentation",
            )
        if not math.prod(inputs.shape[1:]):
            raise ConfigError(
                _WHERE,
                expected="images of at least one pixel",
                found=f"inputs of shape {inputs.shape[1:]}",
                remedy="correct the data set",
            )
        if is_last:
            return inputs.transpose(0, 3, 1, 2)
        height, width = inputs.shape[-2:]
        return inputs.reshape(len(inputs), math.prod(inputs.shape[1:-2]), height, width)


@source_version("random_resized_crop 1")
def random_resized_crop(
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    channels: str = "first",
) -> RandomResizedCrop:
    """Make an augmentation that resizes a random part of each image to `size`, and flips some horizontally.

    size: height and width of a view, pixels; one number for both. scale: least and largest share of the image's area.
    ratio: least and largest width divided by height, drawn uniformly in its logarithm. flip: share of the views, 0 … 1.
    channels: "first" for inputs (…, height, width), "last" for (height, width, channels).
    Inputs are uint8 or float32. The resizing is Pillow's, bilinear with antialiasing, each channel by itself.
    Raises ConfigError for numbers out of range.
    Source: Szegedy et al. 2015, "Going deeper with convolutions"; the numbers are those of torchvision.

    >>> from logitstore.storage.random import row_generator
    >>> image = np.arange(48, dtype=np.uint8).reshape(6, 8)
    >>> random_resized_crop(2, scale=(0.5, 1.0))(image, row_generator(0, 1, 4)).shape
    (2, 2)
    """
    high, wide = (size, size) if isinstance(size, int) else size
    bad: tuple[str, str, object] | None = None
    if min(high, wide) < 1:
        bad = "size", "a size of 1 pixel or more", (high, wide)
    elif not 0 < scale[0] <= scale[1] <= 1:
        bad = "scale", "a scale of two ascending shares, above 0 and at most 1", tuple(scale)
    elif not (0 < ratio[0] <= ratio[1] and math.isfinite(ratio[1])):
        bad = "ratio", "a ratio of two ascending numbers above 0", tuple(ratio)
    elif not 0 <= flip <= 1:
        bad = "flip", "a flip from 0 to 1", flip
    elif channels not in ("first", "last"):
        bad = "channels", "channels 'first' or 'last'", channels
    if bad is not None:
        name, expected, found = bad
        raise ConfigError(_WHERE, expected=expected, found=str(found), remedy=f"correct {name}")
    low, top = float(scale[0]), float(scale[1])
    between = float(ratio[0]), float(ratio[1])
    return RandomResizedCrop(
        (high, wide), (low, top), between, flip, "last" if channels == "last" else "first"
    )


def _unit(word: np.uint64) -> float:
    """Return the upper 53 bits of a word as a number from 0 to below 1, exactly."""
    return (int(word) >> 11) * 2.0**-53


def _drawn_ratio(ratio: tuple[float, float], at: float) -> float:
    """Return the ratio at a share of the way between two, in logarithms.

    >>> [round(_drawn_ratio((0.5, 2.0), at), 4) for at in (0.0, 0.5, 0.75)]
    [0.5, 1.0, 1.4142]
    """
    low, high = _logarithms(ratio)
    with localcontext() as context:
        context.prec = _DIGITS
        return float((low + Decimal(at) * (high - low)).exp())


@lru_cache(maxsize=8)
def _logarithms(ratio: tuple[float, float]) -> tuple[Decimal, Decimal]:
    with localcontext() as context:
        context.prec = _DIGITS
        return Decimal(ratio[0]).ln(), Decimal(ratio[1]).ln()


def _resized(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return one channel (height, width) in another size, or as it is if it has that size already."""
    if plane.shape == size:
        return plane
    whole = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(whole.resize((size[1], size[0]), Image.Resampling.BILINEAR))
