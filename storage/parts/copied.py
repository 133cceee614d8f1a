"""Rows of a block that come from another capture as they are stored there, instead of being encoded.

rows of the block   0  1  2  3  4  5          positions (1, 2, 5)
from logits         a  .  .  d  e  .          encoded by the writer
as stored           .  b  c  .  .  f          put in their places, byte for byte
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ..encodings.encoding import Encoding
from .values import check_rows_of

Encode = Callable[[Any, int, str], dict[str, NDArray[Any]]]
"""`Encoding.encode`: of logits, the number of their first row, and their place in messages."""


@dataclass(frozen=True)
class CopiedRows:
    """Some rows of a block, in the encoding of the capture that takes them."""

    positions: Int64[np.ndarray, " copied"]
    """Their places in the block, ascending."""
    arrays: Mapping[str, NDArray[Any]]
    """By array of the encoding: (copied, *row shape)."""

    def check(self, encoding: Encoding, columns: int, rows: int, where: str) -> None:
        """Refuse arrays that are not those of an encoding. Raises BadDataError; KeyError for one that is missing."""
        assert len(self.positions) <= rows
        for spec in encoding.arrays(columns):
            check_rows_of(
                f"{where}/{spec.name}",
                self.arrays[spec.name],
                spec.dtype,
                (len(self.positions), *spec.row_shape),
            )

    def over(self, encode: Encode, first: int) -> Encode:
        """Return `encode` with these rows in their places; a part of copied rows alone is not encoded.

        first: number of the first row of the block.
        """

        def encoded(logits: Any, first_row: int, where: str) -> dict[str, NDArray[Any]]:
            start = first_row - first
            begin, end = np.searchsorted(self.positions, [start, start + len(logits)])
            copied = {name: values[begin:end] for name, values in self.arrays.items()}
            if end - begin == len(logits):
                return copied
            made = encode(logits, first_row, where)
            if end > begin:
                # Copies: an encoding may give one number in memory for many rows.
                made = {name: values.copy() for name, values in made.items()}
                for name, values in made.items():
                    values[self.positions[begin:end] - start] = copied[name]
            return made

        return encoded

    def with_constants(self, constants: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the constants of a block (rows,) with those of these rows in their places."""
        if "peak" not in self.arrays:
            return constants
        constants = constants.copy()
        constants[self.positions] = self.arrays["peak"]
        return constants
