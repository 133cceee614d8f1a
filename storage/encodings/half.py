"""Float encodings: float16, by fast conversions of our own, and float32.

The row's maximum is subtracted in float32, before the cast, and kept in `peak`. A softmax does not see it, and float16
is finest near zero, where the probable classes then are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float16, Float32
from numpy.typing import NDArray

from ..checks import bad_logits, check_finite
from ..format.constants import CAPTURE
from .encoding import ArraySpec

_ROUNDS_TO_INFINITY: Final = {"float16": np.float32(65520), "float32": np.float32(np.inf)}
"""The smallest magnitude that rounds to infinity: half a step beyond the dtype's largest number."""
_CACHED: Final = 1 << 15
"""Elements that are converted at a time: a few arrays of that many stay in a core's cache."""
_EXPONENT: Final = np.int16(0x7C00)
_SIGN_EXPONENT_DIGITS: Final = np.int32(0x8FFFE000 - (1 << 32))
_REBIAS_FACTOR: Final = np.float32(2.0 ** (127 - 15))
"""From the exponents of float16 to those of float32."""
_REBIAS: Final = np.uint32((((15 - 127) << 23) + 0xFFF + (1 << 28)) % 2**32)
"""From float32's exponents to float16's, plus half of the last digit less one bit (ties to even), plus the sign."""
_LEAST_NORMAL: Final = np.uint32(113 << 23)
"""Bits of 2⁻¹⁴, the least normal float16."""
_SHIFT: Final = np.float32(0.5)
_SHIFT_BITS: Final = _SHIFT.view(np.uint32)
"""At 0.5 the last digit of a float32 is 2⁻²⁴, the last digit of a subnormal float16."""


@dataclass(frozen=True)
class FloatEncoding:
    """Dense logits in float16 or float32, each row's maximum subtracted."""

    kind: str
    """"float16" or "float32"."""

    form = CAPTURE
    decoded_from = ("logits",)
    scale = None
    is_dense = True

    def describe(self) -> dict[str, object]:
        return {"kind": self.kind}

    def arrays(self, num_classes: int) -> tuple[ArraySpec, ...]:
        return ArraySpec("logits", self.kind, (num_classes,)), ArraySpec("peak", "float32", ())

    def encode(
        self, logits: Float32[np.ndarray, "rows classes"], first_row: int, where: str
    ) -> dict[str, NDArray[Any]]:
        """Centre and cast a block: `logits` and `peak`.

        Raises BadLogitsError for a row with a NaN, an infinity, or a value too far below its maximum for float16.
        """
        peak, least = check_finite(logits, first_row, where)
        with np.errstate(over="ignore"):
            if not ((least - peak) > -_ROUNDS_TO_INFINITY[self.kind]).all():
                centred, most = logits - peak[:, None], f"{np.finfo(self.kind).max:.0f}"
                far = ~np.isfinite(centred.astype(self.kind))
                expected = f"logits within {most} of the row's maximum, {self.kind}'s range"
                raise bad_logits(far, centred, first_row, where, expected=expected)
        stored = logits - peak[:, None] if self.kind == "float32" else _centred_float16(logits, peak)
        return {"logits": stored, "peak": peak}

    def decode(
        self, stored: Mapping[str, NDArray[Any]], num_classes: int = 0, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Decode stored rows to centred logits: the largest of a row is 0."""
        logits = stored["logits"]
        return widened(logits) if logits.dtype == np.float16 else logits.astype(np.float32)

    def bound(self, temperature: float) -> float | None:
        """Return 0 for float32; None for float16, whose error grows with a row's range: see `rounding_error`."""
        return 0.0 if self.kind == "float32" else None


def rounding_error(kind: str, largest: float) -> float:
    """Return the largest rounding error of a stored logit of magnitude `largest`: half a step.

    >>> rounding_error("float16", 20.0), rounding_error("float32", 20.0)
    (0.0078125, 0.0)
    """
    return 0.0 if kind == "float32" else float(np.spacing(np.float16(largest))) / 2


def widened(stored: Float16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Convert to float32, bit for bit as `astype`, in a fifth of its time: numpy converts one number at a time.

    >>> widened(np.array([-0.0, 1 / 3, 6e-8, 65504], np.float16)).tolist()
    [-0.0, 0.333251953125, 5.960464477539063e-08, 65504.0]
    """
    out = np.empty(stored.shape, np.float32)
    halves, words = np.ascontiguousarray(stored).reshape(-1).view(np.int16), out.reshape(-1).view(np.int32)
    for start in range(0, len(halves), _CACHED):
        half, word = halves[start : start + _CACHED], words[start : start + _CACHED]
        if ((half & _EXPONENT).max(initial=0)) == _EXPONENT:
            return stored.astype(np.float32)  # infinity or NaN, which no writer stores
        # int16 to int32 extends the sign over the upper bits, of which all but the first are cleared. Sign, exponent
        # and digits then stand where float32 has them; a product corrects the exponent, of subnormal numbers too.
        word[...] = half
        word <<= 13
        word &= _SIGN_EXPONENT_DIGITS
        number = word.view(np.float32)
        number *= _REBIAS_FACTOR
    return out


def _centred_float16(
    logits: Float32[np.ndarray, "rows classes"], peak: Float32[np.ndarray, " rows"]
) -> Float16[np.ndarray, "rows classes"]:
    """Compute logits - peak, rounded to nearest even as `astype` does, in half of its time: most of a write.

    The differences are finite in float16 and not positive. numpy converts one number at a time; this makes some passes
    over a piece that stays in the cache. Source: F. Giesen, "Float to half conversion", public domain, 2012.
    """
    stored = np.empty(logits.shape, np.float16)
    peak = peak + np.float32(0)  # so that the difference of two zeros is not a negative one
    step = max(1, _CACHED // max(1, logits.shape[1]))
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        # Not negative here: its bits, as an integer, are in the order of its magnitude. C order, whatever that of the
        # logits, so that `reshape` below makes views and no copies.
        size = np.subtract(peak[rows, None], logits[rows], order="C")
        bits = size.view(np.uint32)
        rounded = bits >> np.uint32(13)
        rounded &= np.uint32(1)
        rounded += bits
        rounded += _REBIAS
        rounded >>= np.uint32(13)
        # Subnormal results; few but the zeros are so small. Adding 0.5 shifts their digits into place and rounds them.
        tiny = np.flatnonzero(bits < _LEAST_NORMAL)
        small = size.reshape(-1)[tiny]
        digits = (small + _SHIFT).view(np.uint32) - _SHIFT_BITS
        sign = (digits > 0).astype(np.uint32) << np.uint32(15)  # none for what rounds to zero
        rounded.reshape(-1)[tiny] = digits | sign
        stored[rows].view(np.uint16)[...] = rounded
    return stored


FLOATS: Final[Mapping[str, FloatEncoding]] = {kind: FloatEncoding(kind) for kind in ("float16", "float32")}
