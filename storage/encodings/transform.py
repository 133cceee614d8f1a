"""The transform encoding: whole rows in the principal axes of the loss's metric, a guarantee for each row.

A row is projected on the axes of a basis (`basis`), rounded there, and refined until its recomputed KL is within the budget
at every temperature (`refine`). So the guarantee never depends on the calibration rows: they decide about bytes alone. A row
that no refinement serves is escaped: it is stored in the codes of the error budget, which need no basis.

    z̃ = (codes · step · 2^(−refine/2)) · basis + centre        up to a constant a row

Codes are stored as zigzag, 0, −1, 1, −2 … as 0, 1, 2, 3 …, so that small ones have few bits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Float32, Int32, UInt16
from numpy.typing import NDArray

from ..errors import BadLogitsError, ConfigError
from ..format.constants import MAX_TEMPERATURES, TRANSFORM
from ..processors import processors
from .basis import MOST_LOGIT, Basis, make_basis
from .divergence import coarser_up, divergence, error_of_kl
from .encoding import ArraySpec
from .error_budget import ErrorBudget
from .feature_logits import FeatureLogits, Rows, check_finite_rows, checked_rows, row_slices
from .products import TILE, one_thread
from .refine import ESCAPED, GUESS, refine_rows, step_factor

TEMPERATURES: Final = (1.0, 2.0, 4.0, 8.0)
"""Temperatures of the guarantee, unless others are given."""
CALIBRATION_ROWS: Final = 2048
"""Calibration rows, unless another number is given."""
_PIECE: Final = 2 * TILE
"""Rows that a thread encodes at a time, unless they are wide."""
_PIECE_BYTES: Final = 16 << 20
"""Bytes of the logits that a thread encodes at a time, unless a tile takes more."""
_MOST_THREADS: Final = 8
_DENSE_BYTES: Final = 256 << 20
"""Bytes of the logits that all threads encode at a time, unless a tile takes more."""
_ARRAYS: Final = 4
"""Arrays of that size: logits, centred, decoded, and one more for a moment."""
_SPARE: Final = 1 / 32
"""Share of the finest calibration row's step that an axis must reach to be kept: other rows may need finer ones."""
_CONSTANT: Final = 1e-3
"""Share of its largest number by which the numbers of an axis may differ that moves all classes alike."""
_MOSTLY: Final = 7 / 8
"""Share of components with a code from which all are multiplied."""
_MOST_TEMPERATURE: Final = 1000
"""Largest temperature of the guarantee: above, every softmax is flat."""
_DIGITS: Final = 5
"""Significant bits of a recorded error: more would cost more than they tell."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Transform:
    """Codes in the axes of a basis; every row within a KL of `max_kl` nats at each of `temperatures`."""

    max_kl: float
    """The budget: KL(teacher ‖ decoded), nats."""
    temperatures: tuple[float, ...] = TEMPERATURES
    """Where it is kept, ascending."""
    rows: int = CALIBRATION_ROWS
    """Calibration rows that are drawn; all if there are fewer."""
    seed: int = 0
    """Seed of the draw."""
    keeps_peak: bool = False
    """Whether the constant of each row is stored."""
    basis: Basis | None = None
    """The axes; None before the calibration."""

    form = TRANSFORM
    kind = TRANSFORM
    decoded_from = ("codes", "refine")
    scale = None
    is_dense = True

    def __post_init__(self) -> None:
        """Refuse a budget that cannot be kept. Raises ConfigError."""
        _ = self._escape  # its own checks of the budget
        good = [1 <= t <= _MOST_TEMPERATURE for t in self.temperatures]
        if (
            not good
            or len(good) > MAX_TEMPERATURES
            or not all(good)
            or list(self.temperatures) != sorted(set(self.temperatures))
        ):
            raise ConfigError(
                "encoding: temperatures",
                expected=f"1 to {MAX_TEMPERATURES} ascending temperatures from 1 to {_MOST_TEMPERATURE}",
                found=str(list(self.temperatures))[:80],
                remedy="leave them out for 1, 2, 4 and 8, or use { max_kl = …, min_temperature = … }",
            )
        if self.rows < 2:
            raise ConfigError(
                "encoding: rows",
                expected="at least 2 calibration rows",
                found=str(self.rows),
                remedy="leave it out",
            )

    @cached_property
    def _escape(self) -> ErrorBudget:
        """The encoding of escaped rows, whose bound holds at every temperature from the lowest."""
        # Half of the step that the budget allows: see `_keep_largest`.
        return ErrorBudget(self.max_kl / 4, min(self.temperatures, default=1.0))

    @property
    def escape_scale(self) -> float:
        """The factor of the codes of escaped rows, natural-log units a code, negative."""
        return self._escape.scale

    def describe(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "max_kl": self.max_kl,
            "temperatures": list(self.temperatures),
            "calibration": {"rows": self.rows, "seed": self.seed},
            "peak": self.keeps_peak,
        }

    def with_basis(self, basis: Basis) -> "Transform":
        """Return this encoding with a basis, so that it encodes and decodes."""
        return replace(self, basis=basis)

    def calibrated(self, logits: Rows, where: str) -> "Transform":
        """Return this encoding with a basis made of calibration rows.

        logits: of the teacher, any additive constant a row. Raises BadLogitsError for rows that are not finite, or are all
        the same.
        """
        check_finite_rows(logits, 0, where)
        if not isinstance(logits, FeatureLogits):
            logits = logits - logits.max(axis=1, keepdims=True)
        if not _differ(logits, where):
            raise BadLogitsError(
                where,
                expected="calibration rows that differ",
                found=f"{len(logits)} rows of the same logits",
                remedy="check the teacher and its weights, or store its logits as float16",
            )
        _check_spread(logits, where)
        step = 4 * math.sqrt(2 * self.max_kl)
        basis = make_basis(logits, self.temperatures, step, where)
        refine, extent = self._tried(logits, basis, where)
        fine = refine[refine != ESCAPED]
        # Half of the rows are to need no more than GUESS.
        step *= 2.0 ** ((GUESS - float(np.median(fine)) if len(fine) else 0.0) / 2)
        # Rows unlike these may need every axis of a head. One without a code takes hardly a byte.
        if not isinstance(logits, FeatureLogits):
            finest = step_factor(fine).min(initial=1.0) * basis.step
            used = extent > _SPARE * finest
            used[0] = True
            # No softmax sees a constant, but the projection does: without that axis it would lay it on the others.
            highest, lowest = basis.basis.max(axis=1), basis.basis.min(axis=1)
            used |= highest - lowest < _CONSTANT * np.maximum(highest, -lowest)
            basis = basis.some(used)
        return self.with_basis(basis.with_step(step))

    def _tried(
        self, logits: Rows, basis: Basis, where: str
    ) -> tuple[NDArray[np.uint8], Float32[np.ndarray, " components"]]:
        """Return the refinement of each row in a basis, and the largest coordinate on each of its axes."""

        def piece(part: slice) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
            centred = checked_rows(logits, part, 0, where)
            centred = centred - centred.max(axis=1, keepdims=True)
            projected = basis.project(centred)
            found = refine_rows(centred, projected, basis, self.max_kl, self.temperatures)
            return found.refine, np.abs(projected).max(axis=0)

        _ = basis.forward  # once, not in each thread
        refine, extents = zip(*_by_threads(piece, logits.shape), strict=True)
        return np.concatenate(refine), np.max(extents, axis=0)

    def arrays(self, num_classes: int) -> tuple[ArraySpec, ...]:
        basis = self._basis
        escape, *_ = self._escape.arrays(num_classes)
        peak = (ArraySpec("peak", "float32", ()),) if self.keeps_peak else ()
        return (
            ArraySpec("codes", "uint16", (basis.num_components,)),
            ArraySpec("refine", "uint8", ()),
            ArraySpec(
                "error", "float16", (len(self.temperatures),), {"temperature": list(self.temperatures)}
            ),
            replace(escape, name="escape"),
            *peak,
        )

    @property
    def _basis(self) -> Basis:
        if self.basis is None:
            raise ConfigError(
                "encoding: transform",
                expected="calibration rows, from which the basis is made",
                found="none",
                remedy="pass calibration=…, logits of some 2,000 rows of the teacher",
            )
        return self.basis

    def encode(self, logits: Rows, first_row: int, where: str) -> dict[str, NDArray[Any]]:
        """Encode rows as `codes`, `refine`, `error` and `escape`: see `Encoding.encode`.

        logits: an array, or features and their head, of which a few rows are made at a time. `escape` of fill alone takes
        no memory.
        """
        check_finite_rows(logits, first_row, where)
        basis, codes = self._basis, np.empty((len(logits), self._basis.num_components), np.uint16)
        refine, peak = np.empty(len(logits), np.uint8), np.empty(len(logits), np.float32)
        error = np.empty((len(logits), len(self.temperatures)), np.float16)

        def piece(part: slice) -> list[tuple[int, NDArray[np.uint16]]]:
            rows = checked_rows(logits, part, first_row, where)
            peak[part] = rows.max(axis=1)
            centred = rows - peak[part, None]
            found = refine_rows(centred, basis.project(centred), basis, self.max_kl, self.temperatures)
            codes[part], refine[part] = zigzag(found.codes), found.refine
            error[part] = self._recorded(list(found.kl.T))
            out = np.flatnonzero(found.refine == ESCAPED)
            if not out.size:
                return []
            escaped = self._escaped(rows[out], first_row + part.start + int(out[0]), where)
            _keep_largest(escaped["logits"], centred[out].argmax(axis=1))
            decoded = self._escape.decode(escaped)
            kl = [divergence(centred[out], decoded, t) for t in self.temperatures]
            error[part.start + out] = self._recorded(kl)
            return list(zip((part.start + out).tolist(), escaped["logits"], strict=True))

        _ = basis.forward  # once, not in each thread
        escaped = [row for rows in _by_threads(piece, logits.shape) for row in rows]
        escape = np.broadcast_to(np.uint16(self._escape.fill), logits.shape)
        if escaped:
            escape = escape.copy()
            for row, values in escaped:
                escape[row] = values
        arrays: dict[str, NDArray[Any]] = {
            "codes": codes,
            "refine": refine,
            "error": error,
            "escape": escape,
        }
        return arrays | ({"peak": peak} if self.keeps_peak else {})

    def _recorded(self, kl: Sequence[NDArray[np.float64]]) -> NDArray[np.float16]:
        """Return the KL at each temperature as it is recorded: rounded up, but to no more than the budget."""
        exact = error_of_kl(kl, self.temperatures)
        most = np.array(self.temperatures) * math.sqrt(2 * self.max_kl)
        budget = most.astype(np.float16)
        budget = np.where(budget > most, np.nextafter(budget, np.float16(0)), budget)
        recorded: NDArray[np.float16] = np.maximum(exact, np.minimum(coarser_up(exact, _DIGITS), budget))
        return recorded

    def _escaped(self, logits: NDArray[np.float32], first_row: int, where: str) -> dict[str, NDArray[Any]]:
        """Encode rows that the basis does not serve. Raises BadLogitsError."""
        try:
            return self._escape.encode(logits, first_row, where)
        except BadLogitsError as error:
            raise BadLogitsError(
                error.where,
                expected=f"logits within {self._escape.most_codes * self._escape.step:.6g} of the row's maximum, "
                f"the reach of max_kl {self.max_kl:g}",
                found=error.found,
                remedy="raise max_kl or store these logits as float32, under another name if the capture was begun; nothing of "
                "this block was kept",
            ) from None

    def decode(
        self, stored: Mapping[str, NDArray[Any]], num_classes: int = 0, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Decode stored rows to centred logits: the largest of a row is 0.

        stored: `codes` and `refine`; `escape`, the rows of those with refine 255 alone, in order.
        """
        basis, refine = self._basis, stored["refine"]
        codes = stored["codes"]
        used = codes.any(axis=0)
        # A copy of nearly all of the basis would take longer than products by zero.
        alive = slice(None) if used.mean() > _MOSTLY else np.flatnonzero(used)
        factor = step_factor(refine)
        values = unzigzag(codes[:, alive]).astype(np.float32)
        values *= basis.step[alive]
        values *= factor[:, None]
        decoded: NDArray[np.float32] = values @ basis.basis[alive]
        decoded += basis.centre
        decoded -= decoded.max(axis=1, keepdims=True)
        if (escaped := refine == ESCAPED).any():
            decoded[escaped] = self._escape.decode({"logits": stored["escape"]})
        return np.asarray(decoded)

    def bound(self, temperature: float) -> float | None:
        """Return the budget at the temperatures where it is kept; None between them, where it is measured."""
        return self.max_kl if temperature in self.temperatures else None


def _check_spread(logits: Rows, where: str) -> None:
    """Refuse calibration rows whose logits lie too far apart for any basis. Raises BadLogitsError."""
    for part in row_slices(len(logits), max(TILE, _PIECE_BYTES // (4 * logits.shape[1]))):
        rows = checked_rows(logits, part, 0, where)
        below = rows.max(axis=1).astype(np.float64) - rows.min(axis=1)
        bad = np.flatnonzero(~(below <= MOST_LOGIT / 10))
        if bad.size:
            row = int(bad[0])
            raise BadLogitsError(
                f"{where}, row {part.start + row}, class {int(rows[row].argmin())}",
                expected=f"logits within {MOST_LOGIT / 10:g} of the row's maximum",
                found=f"{below[row]:.3g} below it",
                remedy="mask a class by a logit such as -1e3, or capture the other classes alone (classes=…)",
            )


def escaped_alone(encoded: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return arrays of `Transform.encode` as its `decode` takes them: of `escape`, the escaped rows alone."""
    return {**encoded, "escape": encoded["escape"][encoded["refine"] == ESCAPED]}


def _keep_largest(codes: NDArray[Any], largest: NDArray[np.int64]) -> None:
    """Move classes before the largest of a row out of the smallest code, in place, so that it is the first of it.

    Classes of equal codes before it get the next code: an error of at most a step, which is half of what is allowed.
    """
    before = np.arange(codes.shape[1]) < largest[:, None]
    codes[before & (codes == 0)] = 1


def _differ(logits: Rows, where: str) -> bool:
    """Return whether rows differ by more than a constant. Raises BadLogitsError for features whose logits overflow."""
    first = None
    for part in row_slices(len(logits), TILE):
        rows = checked_rows(logits, part, 0, where)
        rows = rows - rows.max(axis=1, keepdims=True)
        first = rows[:1] if first is None else first
        if np.any(rows != first):
            return True
    return False


def _division(num_classes: int) -> tuple[int, int]:
    """Return the rows that a thread encodes at a time, and the threads."""
    row_bytes = 4 * num_classes
    rows = min(_PIECE, max(TILE, _PIECE_BYTES // row_bytes // TILE * TILE))
    return rows, max(1, min(_threads(), _DENSE_BYTES // (rows * row_bytes)))


def working_bytes(num_classes: int) -> int:
    """Return the most bytes of the rows that are encoded at a time, and of their decoded ones."""
    rows, threads = _division(num_classes)
    return rows * threads * num_classes * 4 * _ARRAYS


def _by_threads(piece: Callable[[slice], Result], shape: tuple[int, ...]) -> list[Result]:
    """Return the results of a function of some rows of each piece of logits of a shape, in order."""
    rows, threads = _division(shape[1])
    with one_thread, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(piece, row_slices(shape[0], rows)))


def _threads() -> int:
    return min(_MOST_THREADS, processors())


def zigzag(codes: Int32[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Map signed codes to unsigned ones, small to small.

    >>> zigzag(np.array([0, -1, 1, -2], np.int32)).tolist()
    [0, 1, 2, 3]
    """
    return ((codes << 1) ^ (codes >> 31)).astype(np.uint16)


def unzigzag(codes: UInt16[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape"]:
    """Map unsigned codes back: see `zigzag`.

    >>> unzigzag(np.array([0, 1, 2, 65535], np.uint16)).tolist()
    [0, -1, 1, -32768]
    """
    wide = codes.astype(np.int32)
    return (wide >> 1) ^ -(wide & 1)
