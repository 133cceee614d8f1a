"""Values of an import, checked before anything is written: finite numbers, and logits in the place of probabilities.

A softmax at another temperature follows from logits, and not from probabilities that were rounded to zero. So rows that sum to 1
are refused. Log-probabilities are logits less a constant of each row, which no softmax sees, at any temperature: they are taken
where the caller says that they are some.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...storage.errors import BadLogitsError

_SUM_ERROR: Final = 2e-2
"""Largest distance from 1 of a sum of probabilities: of 16-bit numbers, or rounded to three digits before they were saved."""
_LOG_HALF, _LOG_SINGLE = 5e-2, 1e-3
"""Largest distance from 0 of the logarithm of a sum of exponentials, in 16-bit numbers and in wider ones."""
PROBABILITIES: Final = (
    "import the logits, which go into the softmax; or the logarithm of the probabilities with --log-probabilities "
    "(log_probabilities=True), if none of them is 0"
)
_LOGARITHMS: Final = "pass --log-probabilities (log_probabilities=True) to import them as logits"


def check_values(
    values: NDArray[np.floating], first_row: int, where: str, *, is_half: bool, log_probabilities: bool
) -> None:
    """Refuse rows that are no logits. Raises BadLogitsError with the first.

    values: (rows, classes), float32 or float64. first_row: number of the first of them in the file. is_half: whether they were
    kept in 16 bits.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = (int(one) for one in np.argwhere(bad)[0])
        remedy = "correct the teacher (or its precision)"
        if values[row, column] == -np.inf:
            remedy += ", or mask a class by a finite logit such as -1e3"
        raise BadLogitsError(
            f"{where}, row {first_row + row}, class {column}",
            expected="finite logits",
            found=f"{values[row, column]} ({int(bad.any(axis=1).sum())} of {len(bad)} rows from row {first_row})",
            remedy=remedy,
        )
    _check_range(values, first_row, where)
    peak = values.max(axis=1)
    if log_probabilities:
        sums = _log_sums(values, peak)
        tolerance = _LOG_HALF if is_half else _LOG_SINGLE
        other = np.flatnonzero(abs(sums) > tolerance)
        if len(other):
            raise BadLogitsError(
                f"{where}, row {first_row + int(other[0])}",
                expected="log-probabilities, whose exponentials sum to 1",
                found=f"a sum of e^{sums[other[0]]:.4g} ({len(other)} of {len(sums)} rows from row {first_row})",
                remedy="leave out --log-probabilities (log_probabilities) for logits",
            )
        return
    if _are_probabilities(values):
        raise BadLogitsError(
            f"{where}, rows {first_row} to {first_row + len(values) - 1}",
            expected="logits",
            found=f"probabilities: every row lies in 0…1 and sums to 1 (row {first_row}: {values[0].sum():.6f})",
            remedy=PROBABILITIES,
        )
    tolerance = _LOG_HALF if is_half else _LOG_SINGLE
    # Centred logits of a certain teacher sum to nearly 1, too: their largest is 0.
    if (peak <= 0).all() and (peak < -tolerance).any() and (abs(_log_sums(values, peak)) <= tolerance).all():
        raise BadLogitsError(
            f"{where}, rows {first_row} to {first_row + len(values) - 1}",
            expected="logits",
            found="log-probabilities: the exponentials of every row sum to 1",
            remedy=_LOGARITHMS,
        )


def _check_range(values: NDArray[np.floating], first_row: int, where: str) -> None:
    """Refuse float64 whose distances from the row's maximum float32 does not hold."""
    if values.dtype != np.float64:
        return
    peak = values.max(axis=1)
    far = (peak - values.min(axis=1) > np.finfo(np.float32).max) | (abs(peak) > np.finfo(np.float32).max)
    if far.any():
        row = int(np.flatnonzero(far)[0])
        raise BadLogitsError(
            f"{where}, row {first_row + row}",
            expected="logits within float32's range",
            found=f"{values[row].min()} to {peak[row]}",
            remedy="correct the teacher",
        )


def _are_probabilities(values: NDArray[np.floating]) -> bool:
    if values.min() < 0 or values.max() > 1:
        return False
    return bool(abs(values.sum(axis=1, dtype=np.float64) - 1).max() <= _SUM_ERROR)


def _log_sums(values: NDArray[np.floating], peak: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logarithm of the sum of the exponentials of each row."""
    sums = np.exp(values - peak[:, None]).sum(axis=1, dtype=np.float64)
    logarithms: NDArray[np.float64] = np.log(sums) + peak
    return logarithms
