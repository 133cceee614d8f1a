"""Divergence of stored logits from their source: KL(p_T ‖ p̃_T) of each row, in nats, at the usual temperatures.

The difference of two close cross-entropies would lose all digits. With the error of a logit d = (z − z̃)/T, centred so
that E_p[d] = 0 (a softmax does not see a constant), the same KL is

    KL = ln E_p[exp(−d)] = ln(1 + E_p[g(d)]),    g(d) = exp(−d) − 1 + d ≥ 0,

a sum of non-negative terms, accurate to float32's last digits but one (`divergence`).

At several temperatures at once it is cheaper from the moments of e = z − z̃, with no centre (`divergences`):

    KL = ln(1 + Σ (−1)ⁿ E_p[eⁿ]/(n! Tⁿ)) + E_p[e]/T

The weights of one temperature are the squares of those of twice that temperature, the powers of e serve all of them, and all
sums of a row are one small matrix product. The mean cancels out, which costs digits where E_p[e]² is close to E_p[e²].
The product sums in float32 over a few hundred classes, float64 adds these sums: the order of a row's terms depends on
nothing but the number of classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int64
from numpy.typing import NDArray

from ..format.constants import TEMPERATURES

_PIECE: Final = 1 << 16
"""Logits that are compared at a time: their arrays stay in a core's cache."""
_NEAR: Final = 0.5
"""Errors up to which g is computed from its series, whose remainder is 1e-5 of it."""
_POWERS: Final = 9
"""Powers of an error of which moments are taken."""
_CLOSE: Final = 1.0
"""Errors up to which these moments have six digits of the KL: their remainder is 6e-7 of it, four times that at `_SPREAD`."""
_TILE: Final = 20_000
"""Logits whose moments are computed at a time. Not a power of 2: the arrays of all powers would share few lines of the cache."""
_ROWS: Final = 4096
"""Rows whose moments are held: some megabytes."""
_SUMMED: Final = 512
"""Classes over which float32 sums: few, so that no digit that counts is lost."""
_SPREAD: Final = 0.75
"""Largest square of a mean error, of the mean square, at which moments have six digits of the KL."""

Pair = Callable[[slice | Int64[np.ndarray, " rows"]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Makes rows by number: their exact logits, and the decoded ones, which are the same at every temperature."""


def divergence(
    exact: Float32[np.ndarray, "rows classes"],
    decoded: Float32[np.ndarray, "rows classes"],
    temperature: float,
) -> Float64[np.ndarray, " rows"]:
    """Compute KL(softmax(exact / T) ‖ softmax(decoded / T)) of each row, in nats; each row by itself.

    >>> divergence(np.array([[0.0, -1.0]], np.float32), np.array([[0.0, -1.5]], np.float32), 1.0).round(6).tolist()
    [0.022622]
    """
    kl = np.empty(len(exact))
    step = max(1, _PIECE // max(1, exact.shape[1]))
    for start in range(0, len(exact), step):
        rows = slice(start, start + step)
        kl[rows] = _divergence(exact[rows], decoded[rows], temperature)
    return kl


def _divergence(
    exact: NDArray[np.float32], decoded: NDArray[np.float32], temperature: float
) -> NDArray[np.float64]:
    """Compute `divergence` of rows that fit into a cache."""
    with np.errstate(over="ignore", invalid="ignore"):  # in far rows, which are replaced
        kl, far = _near_divergence(exact, decoded, temperature)
    if far.any():
        kl[far] = _far_divergence(exact[far], decoded[far], temperature)
    return kl


def _near_divergence(
    exact: NDArray[np.float32], decoded: NDArray[np.float32], temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Compute `divergence` in float32, for small errors; return also which rows have larger ones."""
    inverse = np.float32(1 / temperature)
    peak = exact.max(axis=1, keepdims=True)
    weights = exact - peak
    weights *= inverse
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    error = exact - decoded
    moved = peak[:, 0] != decoded.max(axis=1)
    if moved.any():  # A constant between the two would leave float32 few digits for the difference.
        precise = exact[moved].astype(np.float64) - decoded[moved]
        error[moved] = precise - precise.max(axis=1, keepdims=True)
    error -= (weights * error).sum(axis=1, keepdims=True)
    error *= inverse
    near = (error.max(axis=1) <= _NEAR) & (error.min(axis=1) >= -_NEAR)  # false for an overflow
    series = error * np.float32(1 / 720)
    for term in (-1 / 120, 1 / 24, -1 / 6, 1 / 2):
        series += np.float32(term)
        series *= error
    series *= error
    series *= weights
    kl: NDArray[np.float64] = np.log1p(series.sum(axis=1).astype(np.float64))
    return kl, ~near


def _far_divergence(
    exact: NDArray[np.float32], decoded: NDArray[np.float32], temperature: float
) -> NDArray[np.float64]:
    """Compute `divergence` in float64, for errors of any size: Σ p·(ln p − ln p̃), without overflow."""
    ln_p, ln_q = _log_softmax(exact, temperature), _log_softmax(decoded, temperature)
    kl: NDArray[np.float64] = (np.exp(ln_p) * (ln_p - ln_q)).sum(axis=1)
    return np.maximum(kl, 0.0)


def _log_softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    scaled = logits.astype(np.float64)
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled /= temperature
    scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return scaled


def divergences(shape: tuple[int, ...], pair: Pair) -> Float64[np.ndarray, "rows temperatures"]:
    """Compute `divergence` of rows at each of `TEMPERATURES`, to six digits; each row by itself.

    shape: (rows, classes). pair: makes some rows, a few at a time, so that they are compared while they are in a core's
    cache. Fast if all are centred (the largest logit of a row 0) and close.
    """
    kl, is_sound = np.empty((shape[0], len(TEMPERATURES))), np.empty((shape[0], len(TEMPERATURES)), np.bool_)
    # Ignored in rows that are not sound, which are replaced.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, shape[0], _ROWS):
            rows = range(start, min(start + _ROWS, shape[0]))
            kl[start : rows.stop], is_sound[start : rows.stop] = _from_moments(
                *_moments(rows, shape[1], pair)
            )
    for column, temperature in enumerate(TEMPERATURES):
        others = np.flatnonzero(~is_sound[:, column])
        if len(others):
            kl[others, column] = divergence(*pair(others), temperature)
    return kl


def _from_moments(
    moments: Float64[np.ndarray, "rows temperatures powers"], largest: Float32[np.ndarray, " rows"]
) -> tuple[Float64[np.ndarray, "rows temperatures"], Bool[np.ndarray, "rows temperatures"]]:
    """Compute KL from the results of `_moments`; return also where that is sound."""
    temperatures = np.array(TEMPERATURES)
    total = moments[:, :, 0]
    means = moments[:, :, 1:] / total[:, :, None]
    mean, square = means[:, :, 0], means[:, :, 1]
    factors = [(-1 / temperatures) ** power / math.factorial(power) for power in range(1, _POWERS + 1)]
    kl = np.log1p((means * np.stack(factors, axis=1)).sum(axis=2)) + mean / temperatures
    is_close = largest[:, None] <= (_CLOSE * temperatures) ** 2
    # Centred logits have a total of at least 1. A NaN or an overflow makes one of these false.
    is_sound = is_close & (total >= 1) & (mean * mean <= _SPREAD * square)
    return np.maximum(kl, 0.0), is_sound


def _moments(
    numbers: range, num_classes: int, pair: Pair
) -> tuple[Float64[np.ndarray, "rows temperatures powers"], Float32[np.ndarray, " rows"]]:
    """Return Σ exp(exact/T)·eⁿ of some rows, for each temperature and n = 0 … 9, and the largest e² of each."""
    num_rows = len(numbers)
    count, width = len(TEMPERATURES), min(num_classes, _SUMMED)
    sums = np.empty((num_rows, -(-num_classes // _SUMMED), count, _POWERS + 1), np.float32)
    largest = np.zeros(num_rows, np.float32)
    step = max(1, min(num_rows, _TILE // width))
    most = max(width, _TILE // step // width * width)
    buffers = np.empty((count + _POWERS + 1) * step * most, np.float32)
    for start in range(0, num_rows, step):
        rows = slice(start, min(start + step, num_rows))
        exact, decoded = pair(slice(numbers[rows.start], numbers[rows.start] + rows.stop - rows.start))
        for part, summed in _tiles(num_classes, most):
            logits, first = exact[:, part], part.start // _SUMMED
            tile = buffers[: (count + _POWERS + 1) * logits.size].reshape(-1, *logits.shape)
            weights, powers = tile[:count], tile[count:]
            powers[0] = 1
            np.subtract(logits, decoded[:, part], out=powers[1])
            for power in range(2, _POWERS + 1):
                np.multiply(powers[power // 2], powers[power - power // 2], out=powers[power])
            np.maximum(largest[rows], powers[2].max(axis=1), out=largest[rows])
            for place in reversed(range(count)):
                if place + 1 < count and TEMPERATURES[place + 1] == 2 * TEMPERATURES[place]:
                    np.square(weights[place + 1], out=weights[place])
                else:
                    np.multiply(logits, np.float32(1 / TEMPERATURES[place]), out=weights[place])
                    np.exp(weights[place], out=weights[place])
            # For each row and group of classes: (temperatures, classes) @ (classes, powers).
            left = weights.reshape(count, -1, summed).transpose(1, 0, 2)
            right = powers.reshape(_POWERS + 1, -1, summed).transpose(1, 2, 0)
            into = sums[rows, first : first + logits.shape[1] // summed]
            into[...] = (left @ right).reshape(into.shape)
    return sums.sum(axis=1, dtype=np.float64), largest


def _tiles(classes: int, most: int) -> Iterator[tuple[slice, int]]:
    """Yield parts of the classes, of about `most`, and how many are summed together in each, which divides it.

    >>> [(part.start, part.stop, summed) for part, summed in _tiles(1000, 500)]
    [(0, 512, 512), (512, 1000, 488)]
    """
    whole = classes - classes % _SUMMED
    step = max(1, most // _SUMMED) * _SUMMED
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole)), _SUMMED
    if whole < classes:
        yield slice(whole, classes), classes - whole


def logit_error(shape: tuple[int, ...], pair: Pair) -> Float16[np.ndarray, "rows temperatures"]:
    """Compute T·√(2·KL) of each row at each of `TEMPERATURES`, rounded up to float16, in nats of a logit.

    If every logit is within ε, it is at most ε at any temperature (Hoeffding: KL ≤ ε²/(2T²)): one scale serves them all.
    shape, pair: as those of `divergences`.
    """
    return error_of_kl(list(divergences(shape, pair).T))


def error_of_kl(
    kl: Sequence[Float64[np.ndarray, " rows"]], temperatures: Sequence[float] = TEMPERATURES
) -> Float16[np.ndarray, "rows temperatures"]:
    """Convert the KL at each of `temperatures` to T·√(2·KL), rounded up to float16."""
    columns = [t * np.sqrt(2 * values) for t, values in zip(temperatures, kl, strict=True)]
    return float16_up(np.stack(columns, axis=1))


def kl_of_error(
    error: Float16[np.ndarray, "rows temperatures"], temperatures: Sequence[float] = TEMPERATURES
) -> Float64[np.ndarray, "rows temperatures"]:
    """Convert the result of `error_of_kl` to the KL at each of `temperatures`."""
    kl: NDArray[np.float64] = np.square(error.astype(np.float64)) / (2 * np.square(np.array(temperatures)))
    return kl


def float16_up(values: Float64[np.ndarray, "..."]) -> Float16[np.ndarray, "..."]:
    """Round up to float16.

    >>> float16_up(np.array([0.1, 0.25])).tolist()
    [0.10003662109375, 0.25]
    """
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float16)
        return np.where(nearest < values, np.nextafter(nearest, np.float16(np.inf)), nearest)


def coarser_up(error: Float16[np.ndarray, "..."], digits: int) -> Float16[np.ndarray, "..."]:
    """Round up to a number of significant bits, of the 11 that float16 has: fewer compress better.

    >>> coarser_up(np.array([1.0, 1.001, 1.97], np.float16), 5).tolist()
    [1.0, 1.0625, 2.0]
    """
    dropped = np.uint16((1 << (11 - digits)) - 1)
    # Of positive numbers the bits, as an integer, are in the order of their values.
    bits = np.ascontiguousarray(error).view(np.uint16)
    return ((bits + dropped) & ~dropped).view(np.float16)
