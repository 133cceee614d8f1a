"""The error-budget encoding: as few bits as a stated KL allows, with a guarantee for every row and temperature.

If every stored logit is within ε of the true one, then KL(p_T ‖ p̃_T) ≤ ε²/(2T²) at every T (Hoeffding's lemma, applied to
the logarithm of a mean; docs/encodings.md has the proof). So a budget `max_kl` at `min_temperature` T₀ allows
ε = T₀·√(2·max_kl). Codes q = round((max − z)/Δ) with Δ = 2ε keep it: a uniform quantiser, whose codes compress well.

Δ is a little less than 2ε; the rest pays for arithmetic (in units of Δ/2, where q ≤ 2¹⁶):

    decoding, float32(q)·float32(Δ)             2⁻⁷
    a source that was centred in float32        2⁻⁷
    together                                    2⁻⁶, and (1 − 2⁻⁶)(1 + 2⁻⁶) < 1

The error u that the source already has (half a step of float16 at its largest logit) is subtracted from ε first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from ..checks import bad_logits, check_finite
from ..errors import ConfigError
from ..format.constants import ERROR_BUDGET, TEMPERATURES
from .divergence import logit_error
from .encoding import ArraySpec

_MARGIN: Final = 1 - 2**-6
"""The share of 2ε that Δ takes: the rest is for arithmetic."""
_FAST_CODES: Final = 1 << 13
"""Codes up to which float32 is exact enough: three roundings of 2⁻²⁴·2¹³ Δ are less than 2⁻⁸ of Δ/2."""
_STEPS: Final = (2.0**-100, 2.0**100)
"""Smallest and largest step: its reciprocal, its 2⁻¹⁵ and its 2¹⁶ are then normal float32."""
_USEFUL: Final = 10.0
"""Largest useful KL in nats: no distribution over 20,000 classes is farther from a uniform one."""
_CODES: Final = 1 << 15
"""Numbers that are quantised at a time: a few arrays of that many stay in a core's cache."""


@dataclass(frozen=True)
class ErrorBudget:
    """Integer codes with a step that keeps every row within a KL of `max_kl` nats, at any T ≥ `min_temperature`."""

    max_kl: float
    """The budget: KL(teacher ‖ decoded) at `min_temperature`, in nats."""
    min_temperature: float = 1.0
    """The lowest temperature at which the budget holds; above it KL falls as 1/T²."""
    source_error: float = 0.0
    """u: the largest error of the given logits against the teacher's; 0 for the teacher's own."""
    dtype: str = "uint16"
    """"uint16", or "uint8" if every code is known to fit."""
    shift: int = 0
    """Codes are stored times 2^shift, which only lets blosc pack their two bytes better."""

    form = ERROR_BUDGET
    kind = ERROR_BUDGET
    decoded_from = ("logits",)
    is_dense = True

    def __post_init__(self) -> None:
        """Refuse a budget without a step that keeps it. Raises ConfigError."""
        if not (math.isfinite(self.max_kl) and self.max_kl > 0):
            found = repr(self.max_kl)
            raise _refused("max_kl", "a positive number of nats", found, "choose one, such as 1e-3")
        if not (math.isfinite(self.min_temperature) and self.min_temperature > 0):
            found = repr(self.min_temperature)
            raise _refused("min_temperature", "a positive number", found, "leave it out for 1")
        bits = {"uint8": 8, "uint16": 16}.get(self.dtype, 0)
        if not (0 <= self.shift < bits and 0 <= self.source_error < math.inf):
            expected = "uint8 or uint16, a shift below its bits, and an error of at least 0"
            found = f"{self.dtype}, {self.shift}, {self.source_error}"
            raise _refused("dtype, shift, source_error", expected, found, "leave them out")
        least, most = _STEPS
        if not self.step >= least:
            expected, remedy = f"at least {two_digits_up(self._budget_of_step(2 * least)):g}", "raise max_kl"
            if self.source_error:
                expected += ", since the given logits are already rounded"
                remedy += ", or capture the teacher in float32"
            raise _refused("max_kl", expected, repr(self.max_kl), remedy)
        if not self.step <= most:
            expected = f"a budget with a step of at most {most:g}"
            found = f"max_kl {self.max_kl!r} at temperature {self.min_temperature!r}"
            raise _refused(
                "max_kl, min_temperature", expected, found, "choose a smaller budget, such as 1e-3"
            )

    @cached_property
    def step(self) -> float:
        """Δ in nats: a float32, rounded down."""
        return float(float32_down(2 * _MARGIN * (self.epsilon - self.source_error)))

    @property
    def epsilon(self) -> float:
        """The largest error of a decoded logit against the teacher's, up to a constant per row."""
        return self.min_temperature * math.sqrt(2 * self.max_kl)

    @property
    def scale(self) -> float:
        """The factor of a stored code: −Δ / 2^shift."""
        return -math.ldexp(self.step, -self.shift)

    @property
    def fill(self) -> int:
        """The fill value: the largest code."""
        return int(np.iinfo(self.dtype).max)

    @property
    def most_codes(self) -> int:
        """The largest q that fits."""
        return (self.fill - 1) >> self.shift

    def budget_of(self, spread: float) -> float:
        """Return the smallest budget whose codes reach `spread` below a row's maximum.

        >>> ErrorBudget(1e-4).budget_of(3000.0) < 1e-3
        True
        """
        return self._budget_of_step(spread / self.most_codes)

    def _budget_of_step(self, step: float) -> float:
        # A thousandth more, for the rounding of the step.
        epsilon = step / (2 * _MARGIN) + self.source_error
        return 1.001 * (epsilon / self.min_temperature) ** 2 / 2

    def bound(self, temperature: float) -> float:
        return self.epsilon**2 / (2 * temperature**2)

    def describe(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "max_kl": self.max_kl,
            "min_temperature": self.min_temperature,
            "source_error": self.source_error,
            "dtype": self.dtype,
            "step": self.step,
            "shift": self.shift,
        }

    def arrays(self, num_classes: int) -> tuple[ArraySpec, ...]:
        decoded_by = {"scale_factor": self.scale, "_FillValue": self.fill}
        return (
            ArraySpec("logits", self.dtype, (num_classes,), decoded_by),
            ArraySpec("peak", "float32", ()),
            ArraySpec("error", "float16", (len(TEMPERATURES),), {"temperature": list(TEMPERATURES)}),
        )

    def encode(
        self, logits: Float32[np.ndarray, "rows classes"], first_row: int, where: str
    ) -> dict[str, NDArray[Any]]:
        """Encode rows as codes, `peak`, and the `error` of each row: see `Encoding.encode`."""
        peak, least = check_finite(logits, first_row, where)
        below = peak.astype(np.float64) - least
        if (below >= self._reach).any():
            raise self._too_wide(logits, peak, below, first_row, where)
        codes = np.empty(logits.shape, self.dtype)
        step = max(1, _CODES // max(1, logits.shape[1]))
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            codes[part] = self._codes(logits[part], peak[part])

        def pair(rows: slice | NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return logits[rows] - peak[rows, None], self.decode({"logits": codes[rows]})

        return {"logits": codes, "peak": peak, "error": logit_error(logits.shape, pair)}

    @property
    def _reach(self) -> float:
        """The distance below its row's maximum from which a logit has no code."""
        return (self.most_codes + 0.5) * self.step

    def _codes(self, logits: NDArray[np.float32], peak: NDArray[np.float32]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            below = peak[:, None] - logits
            quotient = below * np.float32(1 / self.step)
        np.rint(quotient, out=quotient)
        large = ~(quotient.max(axis=1) <= _FAST_CODES)
        if large.any():
            exact = (peak[large, None].astype(np.float64) - logits[large]) / self.step
            quotient[large] = np.minimum(np.rint(exact), self.most_codes)
        codes = quotient.astype(self.dtype)
        codes <<= np.array(self.shift, self.dtype)
        return codes

    def _too_wide(
        self,
        logits: NDArray[np.float32],
        peak: NDArray[np.float32],
        below: NDArray[np.float64],
        first_row: int,
        where: str,
    ) -> Exception:
        with np.errstate(over="ignore"):
            centred = logits - peak[:, None]
        fits = two_digits_up(self.budget_of(float(below.max())))
        return bad_logits(
            peak[:, None].astype(np.float64) - logits >= self._reach,
            centred,
            first_row,
            where,
            expected=f"logits within {self._reach:.6g} of the row's maximum, the reach of {self.dtype} at max_kl {self.max_kl:g}",
            remedy=(
                f"set max_kl to {fits:g}, the smallest for these rows (others may need more), or capture in float32 and "
                "compress that"
                if fits <= _USEFUL
                else "store them as float32: no useful budget fits these rows"
            ),
        )

    def decode(
        self, stored: Mapping[str, NDArray[Any]], num_classes: int = 0, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Decode stored rows to centred logits (the largest of a row is 0): float32(code) · float32(scale)."""
        decoded: NDArray[np.float32] = stored["logits"].astype(np.float32)
        decoded *= np.float32(self.scale)
        return decoded


def _refused(keys: str, expected: str, found: str, remedy: str) -> ConfigError:
    return ConfigError(f"encoding: {keys}", expected=expected, found=found, remedy=remedy)


def float32_down(value: float) -> np.float32:
    """Round down to float32.

    >>> float(float32_down(0.1)) <= 0.1 < float(np.float32(0.1))
    True
    """
    with np.errstate(over="ignore"):
        nearest = np.float32(value)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest


def two_digits_up(value: float) -> float:
    """Round up to two digits.

    >>> two_digits_up(0.00123), two_digits_up(0.0012)
    (0.0013, 0.0012)
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")
