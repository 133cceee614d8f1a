"""How do logits become arrays, and back?

An encoding is an object with one small interface: which arrays it stores (`arrays`), a block of logits
to those arrays (`encode`), stored rows to float32 logits (`decode`), and what names it in a spec
(`describe`). Format 1.0 has `float16` and `float32`: the row's maximum is taken out in float32, before
the cast, and kept in `peak`. A softmax does not see it, and float16 is finest near zero, where the
probable classes then are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from .errors import BadLogitsError, ConfigError, UnsupportedFeature


@dataclass(frozen=True)
class ArraySpec:
    """One block array that an encoding stores."""

    name: str
    """Name of the array in the capture."""
    dtype: str
    """Zarr's name of the dtype."""
    row_shape: tuple[int, ...]
    """Shape of one row."""


@dataclass(frozen=True)
class FloatEncoding:
    """Dense logits in float16 or float32, each row's maximum subtracted."""

    kind: str
    """"float16" or "float32"."""

    def describe(self) -> dict[str, object]:
        """What a spec says of the encoding."""
        return {"kind": self.kind}

    def arrays(self, num_classes: int) -> tuple[ArraySpec, ...]:
        """The block arrays of a capture with `num_classes` columns."""
        return (
            ArraySpec("logits", self.kind, (num_classes,)),
            ArraySpec("peak", "float32", ()),
        )

    def encode(
        self, logits: Float32[np.ndarray, "rows classes"], first_row: int, where: str
    ) -> dict[str, NDArray[Any]]:
        """Centre and cast a block.

        logits: any additive constant per row. first_row: the store's row of logits[0], for messages.
        Returns the arrays of `arrays`, rows first. Raises BadLogitsError for a row with a NaN, an
        infinity, or a value too far below its maximum for float16.
        """
        self._refuse(~np.isfinite(logits), logits, first_row, "finite logits", where)
        peak = logits.max(axis=1)
        with np.errstate(over="ignore"):
            centred = logits - peak[:, None]
            stored = centred.astype(self.kind)
        least = f"logits within {np.finfo(self.kind).max:.0f} of the row's maximum, {self.kind}'s range"
        self._refuse(~np.isfinite(stored), centred, first_row, least, where)
        return {"logits": stored, "peak": peak}

    def decode(self, stored: Mapping[str, NDArray[Any]]) -> Float32[np.ndarray, "rows classes"]:
        """Centred logits (the largest of a row is 0) from stored rows."""
        return stored["logits"].astype(np.float32)

    @staticmethod
    def _refuse(
        bad: NDArray[np.bool_],
        values: Float32[np.ndarray, "rows classes"],
        first_row: int,
        expected: str,
        where: str,
    ) -> None:
        if not bad.any():
            return
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise BadLogitsError(
            f"{where}, row {first_row + row}, class {column}",
            expected=expected,
            found=f"{values[row, column]} ({int(bad.any(axis=1).sum())} of {len(bad)} rows of this block are so)",
            remedy="mend the teacher (or its precision) and run it again; nothing of this block was kept",
        )


ENCODINGS: Final[Mapping[str, FloatEncoding]] = {kind: FloatEncoding(kind) for kind in ("float16", "float32")}


def encoding_named(kind: str) -> FloatEncoding:
    """The encoding that a user names. Raises ConfigError.

    >>> encoding_named("float16").describe()
    {'kind': 'float16'}
    """
    if kind not in ENCODINGS:
        raise ConfigError(
            "encoding",
            expected=" or ".join(map(repr, ENCODINGS)),
            found=repr(kind),
            remedy="choose one of these",
        )
    return ENCODINGS[kind]


def encoding_described(description: object, where: str) -> FloatEncoding:
    """The encoding that a spec describes. Raises UnsupportedFeature."""
    kind = description.get("kind") if isinstance(description, Mapping) else None
    if kind not in ENCODINGS:
        raise UnsupportedFeature(
            where,
            expected=" or ".join(map(repr, ENCODINGS)),
            found=f"the encoding {description!r}"[:120],
            remedy="open this capture with a newer logitstore",
        )
    return ENCODINGS[str(kind)]
