"""Divergence of stored logits from their source: KL(p_T ‖ p̃_T) of each row, in nats, at the usual temperatures.

The difference of two close cross-entropies would lose all digits. With the error of a logit d = (z − z̃)/T, centred so
that E_p[d] = 0 (a softmax does not see a constant), the same KL is

    KL = ln E_p[exp(−d)] = ln(1 + E_p[g(d)]),    g(d) = exp(−d) − 1 + d ≥ 0,

a sum of non-negative terms, accurate to float32's last digits but one.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float16, Float32, Float64
from numpy.typing import NDArray

from ..format.constants import TEMPERATURES

_PIECE: Final = 1 << 16
"""Logits that are compared at a time: their arrays stay in a core's cache."""
_NEAR: Final = 0.5
"""Errors up to which g is computed from its series, whose remainder is 1e-5 of it."""


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


def logit_error(
    exact: Float32[np.ndarray, "rows classes"],
    decoded: Float32[np.ndarray, "rows classes"],
) -> Float16[np.ndarray, "rows temperatures"]:
    """Compute T·√(2·KL) of each row at each of `TEMPERATURES`, rounded up to float16, in nats of a logit.

    If every logit is within ε, it is at most ε at any temperature (Hoeffding: KL ≤ ε²/(2T²)): one scale serves them all.
    decoded: the same logits at every temperature.
    """
    return error_of_kl([divergence(exact, decoded, t) for t in TEMPERATURES])


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
