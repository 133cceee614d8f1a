"""What is an encoding of logits?

An object with one small interface: which arrays it stores, a block of logits to those arrays, stored rows to float32
logits, what names it in a spec, and the error that it guarantees. There are four (`encodings`): two of floats
(`floats`), one by error budget (`error_budget`), one of the k largest (`top_k`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from ..errors import BadLogitsError


@dataclass(frozen=True)
class ArraySpec:
    """One block array that an encoding stores."""

    name: str
    """Name of the array in the capture."""
    dtype: str
    """Zarr's name of the dtype."""
    row_shape: tuple[int, ...]
    """Shape of one row."""
    attributes: Mapping[str, object] = field(default_factory=dict)
    """Its Zarr attributes."""


@runtime_checkable
class Encoding(Protocol):
    """How the logits of a capture are stored."""

    @property
    def kind(self) -> str:
        """Its name in a spec."""

    @property
    def form(self) -> str:
        """Which arrays a capture then has: one of the forms of `layouts`."""

    @property
    def decoded_from(self) -> tuple[str, ...]:
        """The arrays that `decode` needs."""

    @property
    def scale(self) -> float | None:
        """What stored integers are multiplied by; None where there are none."""

    @property
    def is_dense(self) -> bool:
        """Whether every logit is stored, so that it decodes to the same at any temperature."""

    def describe(self) -> dict[str, object]:
        """What a spec says of the encoding."""

    def arrays(self, num_classes: int) -> tuple[ArraySpec, ...]:
        """The block arrays of a capture with `num_classes` columns. Raises ConfigError where there can be none."""

    def encode(
        self, logits: Float32[np.ndarray, "rows classes"], first_row: int, where: str
    ) -> dict[str, NDArray[Any]]:
        """Rows of logits as the arrays of `arrays`, rows first; each row by itself.

        logits: any additive constant per row. first_row: the store's row of logits[0], for messages.
        Raises BadLogitsError for a row with a NaN, an infinity, or a value out of the encoding's range.
        """

    def decode(
        self, stored: Mapping[str, NDArray[Any]], num_classes: int, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Centred logits from stored rows: their softmax at `temperature`, or at any where `is_dense`."""

    def bound(self, temperature: float) -> float | None:
        """KL(teacher ‖ decoded) that no row exceeds at this temperature, in nats; None where it is only measured."""


def check_finite(logits: Float32[np.ndarray, "rows classes"], first_row: int, where: str) -> None:
    """Refuse a row with a NaN or an infinity. Raises BadLogitsError."""
    if not (
        np.isfinite(logits.max(axis=1)).all() and np.isfinite(logits.min(axis=1)).all()
    ):  # a NaN is the maximum
        raise bad_logits(~np.isfinite(logits), logits, first_row, where, expected="finite logits")


def bad_logits(
    bad: NDArray[np.bool_],
    values: Float32[np.ndarray, "rows classes"],
    first_row: int,
    where: str,
    *,
    expected: str,
    remedy: str = "mend the teacher (or its precision) and run it again",
) -> BadLogitsError:
    """The error of logits that an encoding cannot store, to be raised; it names the first.

    bad: (rows, classes), at least one of them true. values: of which that one is shown.
    """
    row, column = (int(i) for i in np.argwhere(bad)[0])
    return BadLogitsError(
        f"{where}, row {first_row + row}, class {column}",
        expected=expected,
        found=f"{values[row, column]} ({int(bad.any(axis=1).sum())} of {len(bad)} rows here are so)",
        remedy=f"{remedy}; nothing of this block was kept",
    )


# Blocks


def encoded_widths(encoding: Encoding, num_classes: int) -> list[int]:
    """Bytes of a row of each array that an encoding stores, before the codec. Raises ConfigError for too large a k."""
    return [
        math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize for spec in encoding.arrays(num_classes)
    ]
