"""The interface of an encoding of logits, and the errors that encodings share.

There are five (`named`): float16 and float32 (`half`), by error budget (`error_budget`), the k largest (`top_k`), and whole rows
in the axes of a basis (`transform`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray


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
    """An encoding: the arrays that store a capture's logits, and the way there and back."""

    @property
    def kind(self) -> str:
        """Its name in a spec."""

    @property
    def form(self) -> str:
        """The form of such a capture, which names its arrays: see `layouts`."""

    @property
    def decoded_from(self) -> tuple[str, ...]:
        """The arrays that `decode` needs."""

    @property
    def scale(self) -> float | None:
        """The factor of stored integers; None for floats."""

    @property
    def is_dense(self) -> bool:
        """Whether every logit is stored, so that it decodes to the same at any temperature."""

    def describe(self) -> dict[str, object]:
        """Describe the encoding for a spec."""

    def arrays(self, num_classes: int) -> tuple[ArraySpec, ...]:
        """Return the block arrays of a capture with `num_classes` columns. Raises ConfigError for too few classes."""

    def encode(
        self, logits: Float32[np.ndarray, "rows classes"], first_row: int, where: str
    ) -> dict[str, NDArray[Any]]:
        """Encode rows of logits as the arrays of `arrays`, rows first; each row by itself.

        logits: any additive constant per row. first_row: the store's row of logits[0], for messages.
        Raises BadLogitsError for a row with a NaN, an infinity, or a value outside the encoding's range.
        """

    def decode(
        self, stored: Mapping[str, NDArray[Any]], num_classes: int, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Decode stored rows to centred logits, for a softmax at `temperature`; at any temperature if `is_dense`."""

    def bound(self, temperature: float) -> float | None:
        """Return a bound of KL(teacher ‖ decoded) of every row, in nats; None if it is measured instead."""
