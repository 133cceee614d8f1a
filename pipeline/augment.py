"""How is a view of a row made, so that anyone can make the same one again?

1. Every (seed, view, row) has a random generator of its own, a Philox counter that depends on nothing
   else: not on the batch, the order, the process or the number of draws made for other rows.
2. An augmentation is a pure function of the input and that generator.
3. `augment_rows` gives each row of a batch its generator. Views below `first_view` are the rows as they are.

So the input that a teacher saw can be replayed next to its stored logits, one row at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped

from ..storage.errors import ConfigError, FactoryError, LogitStoreError

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(input, generator) -> input: same shape, same dtype, and a pure function of both arguments."""


def row_generator(seed: int, view: int, row: int) -> np.random.Generator:
    """Return the random generator of one (seed, view, row), each 0 ≤ n < 2⁶⁴.

    Philox is counter-based: the key is (seed, view) and the row is the highest word of the counter, so
    that no two rows share a draw before one of them has made 2¹⁹² of them.
    Raises ConfigError if one of the three is out of range.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    >>> int(row_generator(0, 1, 5).integers(100)) == int(row_generator(0, 1, 5).integers(100))
    True
    """
    for name, value in (("seed", seed), ("view", view), ("row", row)):
        if not 0 <= value < 2**64:
            raise ConfigError(
                name, expected="an integer from 0 to 2**64 - 1", found=str(value), remedy=f"correct {name}"
            )
    # As uint64 arrays: NumPy takes a list of such integers through float64 and would round the large ones.
    key = np.array([seed, view], dtype=np.uint64)
    counter = np.array([0, 0, 0, row], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def augment_rows(
    inputs: Shaped[np.ndarray, "rows ..."],
    augmentation: Augmentation,
    seed: int,
    view: int,
    rows: Int64[np.ndarray, "rows"],
    first_view: int = 1,
) -> Shaped[np.ndarray, "rows ..."]:
    """Make one view of some rows.

    inputs: (rows, …), any dtype, as the transfer set gives them; never changed.
    seed: of the augmentation.
    view: which view; below `first_view` the inputs are returned as they are, uncopied.
    rows: (rows,) int64, each input's row *in the store*.
    Returns (rows, …) of the same dtype. Raises FactoryError if the augmentation fails or gives another
    shape or dtype, ConfigError if a number is out of range.
    """
    if view < first_view:
        return inputs
    views = np.empty_like(inputs)
    for position, row in enumerate(rows.tolist()):
        generator = row_generator(seed, view, row)
        # A copy, so that an augmentation that works in place spoils nobody's data set.
        views[position] = _augmented(inputs[position].copy(), augmentation, generator, view, row)
    return views


@dataclass(frozen=True)
class Identity:
    """The augmentation that changes nothing."""

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return `example`."""
        return example


@dataclass(frozen=True)
class Shift:
    """Moves an image by whole pixels, each direction drawn uniformly and by itself."""

    pixels: int = 2
    """Largest distance along each axis, pixels; both directions are drawn from -pixels … pixels."""
    fill: float = 0.0
    """Value of the pixels that come into sight."""

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Move the last two axes, height and width, of an image (…, height, width) of any dtype."""
        if example.ndim < 2:
            raise ConfigError(
                "augmentation shift",
                expected="inputs of shape (…, height, width)",
                found=f"inputs of shape {example.shape}",
                remedy="choose another augmentation",
            )
        if example.dtype == np.uint8 and not 0 <= self.fill <= 255:
            raise ConfigError(
                "augmentation shift",
                expected="a fill from 0 to 255 for uint8 inputs",
                found=str(self.fill),
                remedy="correct fill",
            )
        # The raw stream: NumPy promises to keep it for ever, but not how its methods draw from it (NEP 19).
        # 2⁶⁴ is no multiple of the number of distances; the bias, below 2⁻⁵⁰, is never seen.
        raw = np.asarray(generator.bit_generator.random_raw(2))
        down, right = (int(draw) % (2 * self.pixels + 1) - self.pixels for draw in raw)
        height, width = example.shape[-2:]
        moved = np.full_like(example, self.fill)
        target = (..., _overlap(down, height), _overlap(right, width))
        moved[target] = example[(..., _overlap(-down, height), _overlap(-right, width))]
        return moved


def identity() -> Identity:
    """Make the augmentation that changes nothing."""
    return Identity()


def shift(pixels: int = 2, fill: float = 0.0) -> Shift:
    """Make an augmentation that moves images by up to `pixels` in any direction.

    pixels: largest distance, whole pixels ≥ 0. fill: value of the pixels that come into sight, the
    background's (0 for MNIST, 255 for Omniglot).
    Raises ConfigError if `pixels` is negative or `fill` not finite.
    Source: Hinton et al. 2015, section 3 ("jittered by up to two pixels in any direction").

    >>> image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    >>> shift(pixels=1)(image, row_generator(0, 1, 4))
    array([[5, 6, 0],
           [8, 9, 0],
           [0, 0, 0]], dtype=uint8)
    """
    if pixels < 0:
        raise ConfigError(
            "augmentation shift", expected="pixels of 0 or more", found=str(pixels), remedy="correct pixels"
        )
    if not math.isfinite(fill):
        raise ConfigError(
            "augmentation shift", expected="a finite fill", found=str(fill), remedy="correct fill"
        )
    return Shift(pixels, fill)


def _augmented(
    example: np.ndarray, augmentation: Augmentation, generator: np.random.Generator, view: int, row: int
) -> np.ndarray:
    where = f"augmentation of row {row}, view {view}"
    shape, dtype = example.shape, example.dtype
    try:
        made = np.asarray(augmentation(example, generator))
    except LogitStoreError:
        raise
    except Exception as error:
        raise FactoryError(
            where,
            expected="an augmented input",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}",
            remedy="correct the augmentation",
        ) from error
    if made.shape != shape or made.dtype != dtype:
        raise FactoryError(
            where,
            expected=f"{dtype} of shape {shape}, like the input",
            found=f"{made.dtype} of shape {made.shape}",
            remedy="return the shape and the dtype that came in",
        )
    return made


def _overlap(distance: int, length: int) -> slice:
    """Return which part of an axis is covered after moving by `distance`.

    >>> _overlap(2, 5), _overlap(-2, 5), _overlap(9, 5)
    (slice(2, 5, None), slice(0, 3, None), slice(5, 5, None))
    """
    return slice(min(max(distance, 0), length), min(max(length + distance, 0), length))
