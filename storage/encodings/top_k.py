"""The top-k encoding, for rows too wide to keep dense: the k largest logits, and three figures of the others.

The n classes that are left out are decoded as one level, the mean of their weights at the requested temperature. With
x = z − max z of those classes and β = 1/T, the logarithm of that mean is a cumulant function,

    K(β) = ln((1/n) Σ exp(βx)) ≈ μβ + σ²β² / (2(1 + aβ)),        a = σ²/(2(K(1) − μ)) − 1,

whose first two derivatives at β = 0 are the mean and the variance of x, and whose value at β = 1 is stored, too. The
fraction has all three, and is convex like K. (A cubic is not: for left-out logits with a standard deviation of 9, its
mean KL is 1.2 times that of the true mass, the fraction's 1.006 times.)

The level, T·K(1/T), is clipped to bounds that hold for any x. As a power mean it lies between μ and K(1) for T ≥ 1, and
above K(1) for T < 1. No x is above M, the smallest logit that was kept, so T·K(1) + (1 − T)·M is a lower bound for
T ≥ 1 and an upper one for T < 1. There Bennett's inequality is another upper bound, tight if all x are close together.
The error is *measured* and recorded, not bounded.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from ..checks import bad_logits, check_finite
from ..errors import ConfigError
from ..format.constants import TEMPERATURES, TOP_K
from .divergence import error_of_kl
from .encoding import ArraySpec

_LOGITS: Final = 1 << 18
"""Logits that are sorted at a time."""
_WIDE: Final = 4096
"""Classes from which rows are sorted one by one."""
_LARGEST: Final = np.float32(65504.0)
"""The largest float16."""
_FURTHEST: Final = np.float32(1e19)
"""Largest distance of a logit below its row's maximum: float32 must hold the variance of the others."""
_COLDEST: Final = 1e-6
"""The lowest temperature of decoding."""


@dataclass(frozen=True)
class TopK:
    """The k largest logits of a row in float16, their classes, and three figures of the classes left out."""

    k: int
    """Classes that are kept."""

    form = TOP_K
    kind = TOP_K
    decoded_from = ("index", "logits", "tail")
    scale = None
    is_dense = False

    def __post_init__(self) -> None:
        """Refuse a k below 1. Raises ConfigError."""
        if self.k < 1:
            raise bad_k(self.k, "an integer of at least 1")

    def describe(self) -> dict[str, object]:
        return {"kind": self.kind, "k": self.k}

    def bound(self, temperature: float) -> float | None:
        return None

    def arrays(self, num_classes: int) -> tuple[ArraySpec, ...]:
        if self.k > num_classes:
            raise bad_k(self.k, f"at most {num_classes}, the classes of this capture")
        # The fill value is the largest one, which no class may have.
        dtype = "uint16" if num_classes <= np.iinfo(np.uint16).max else "uint32"
        return (
            ArraySpec("index", dtype, (self.k,)),
            ArraySpec("logits", "float16", (self.k,)),
            ArraySpec("tail", "float32", (3,)),
            ArraySpec("peak", "float32", ()),
            ArraySpec("error", "float16", (len(TEMPERATURES),), {"temperature": list(TEMPERATURES)}),
        )

    def encode(
        self, logits: Float32[np.ndarray, "rows classes"], first_row: int, where: str
    ) -> dict[str, NDArray[Any]]:
        """Encode rows as `index`, `logits`, `tail`, `peak` and the `error` of each row: see `Encoding.encode`."""
        num_classes = logits.shape[1]
        arrays = {
            spec.name: np.empty((len(logits), *spec.row_shape), spec.dtype)
            for spec in self.arrays(num_classes)
        }
        step = max(1, _LOGITS // num_classes)
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            for name, values in self._encode(logits[rows], first_row + start, where).items():
                arrays[name][rows] = values
        return arrays

    def _encode(self, logits: NDArray[np.float32], first_row: int, where: str) -> dict[str, NDArray[Any]]:
        check_finite(logits, first_row, where)
        peak = logits.max(axis=1)
        with np.errstate(over="ignore"):
            centred = logits - peak[:, None]
        index = largest(centred, self.k)
        kept = np.take_along_axis(centred, index, axis=1)
        if not (kept[:, -1] >= -_LARGEST).all():
            far = np.zeros(logits.shape, np.bool_)
            np.put_along_axis(far, index, kept < -_LARGEST, axis=1)
            raise bad_logits(
                far,
                centred,
                first_row,
                where,
                expected="the k largest logits within float16's range of 65504",
                remedy="keep fewer of them, or store the logits by error budget or as float32",
            )
        if not (centred.min(axis=1) >= -_FURTHEST).all():
            raise bad_logits(
                ~(centred >= -_FURTHEST),
                centred,
                first_row,
                where,
                expected=f"logits within {_FURTHEST:.0e} of the row's maximum",
                remedy="leave masked classes out of the capture (classes=…)",
            )
        stored = {
            "index": index,
            # Adding 0 turns negative zeros into positive ones.
            "logits": kept.astype(np.float16) + np.float16(0),
            "tail": tail_figures(centred, index),
        }
        error = error_of_kl(top_k_divergence(centred, stored))
        return {**stored, "peak": peak, "error": error}

    def decode(
        self, stored: Mapping[str, NDArray[Any]], num_classes: int, temperature: float | None = None
    ) -> Float32[np.ndarray, "rows classes"]:
        """Decode stored rows to dense logits, for a softmax at `temperature` only.

        Raises ConfigError for no temperature, or one below 1e-6.
        """
        if temperature is None or not _COLDEST <= temperature < math.inf:
            raise ConfigError(
                "temperature",
                expected=f"a temperature from {_COLDEST:g}: top-k rows decode differently at each",
                found=repr(temperature),
                remedy="pass the temperature of the softmax as temperature=…, or read the rows as stored",
            )
        kept = stored["logits"].astype(np.float32)
        dense = np.empty((len(kept), num_classes), np.float32)
        if self.k < num_classes:
            level = tail_level(stored["tail"], kept[:, -1], num_classes - self.k, temperature)
            dense[...] = level.astype(np.float32)[:, None]
        np.put_along_axis(dense, stored["index"].astype(np.int64), kept, axis=1)
        return dense


def tell_apart(
    dense: Float32[np.ndarray, "rows classes"], index: NDArray[Any]
) -> Float32[np.ndarray, "rows classes"]:
    """Return decoded rows whose k largest are in the order in which they were given, which `index` has.

    float16 makes some neighbours equal, and may round the last below the tail. Each is raised just above the next.

    >>> tell_apart(np.array([[-5.0, -5.0, 0.0]], np.float32), np.array([[2, 1, 0]])).argsort(axis=1).tolist()
    [[0, 1, 2]]
    """
    index, told = index.astype(np.int64), dense.copy()
    kept = np.take_along_axis(dense, index, axis=1)
    np.put_along_axis(told, index, -np.inf, axis=1)
    below = told.max(axis=1)
    for place in reversed(range(index.shape[1])):
        below = kept[:, place] = np.maximum(kept[:, place], np.nextafter(below, np.float32(np.inf)))
    np.put_along_axis(told, index, kept, axis=1)
    return told


def largest(logits: Float32[np.ndarray, "rows classes"], k: int) -> NDArray[np.int64]:
    """Return the classes of the k largest logits of each row, in descending order; of equal ones the lower class first.

    >>> largest(np.array([[0.0, -1.0, 0.0, -2.0]], np.float32), 3).tolist()
    [[0, 2, 1]]
    """
    if logits.shape[1] > _WIDE:
        return np.stack([_largest_of_row(row, k) for row in logits])
    # One integer a logit that sorts as (−logit, class): the bits of −logit ≥ 0, as an integer, grow with it.
    size = (np.float32(0) - logits).view(np.uint32).astype(np.uint64)
    keys = (size << np.uint64(32)) | np.arange(logits.shape[1], dtype=np.uint64)
    if k < logits.shape[1]:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys.sort(axis=1)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _largest_of_row(row: Float32[np.ndarray, " classes"], k: int) -> NDArray[np.int64]:
    """Return `largest` of one row of many classes, in a third of the time: only candidates are sorted."""
    size = np.float32(0) - row
    candidates = np.flatnonzero(size <= np.partition(size, k - 1)[k - 1])
    return candidates[np.argsort(size[candidates], kind="stable")[:k]]


def tail_figures(
    centred: Float32[np.ndarray, "rows classes"], index: NDArray[np.int64]
) -> Float32[np.ndarray, "rows 3"]:
    """Compute ln Σ exp(x), mean and variance of the classes outside `index`; zeros if there are none."""
    left_out = centred.shape[1] - index.shape[1]
    figures = np.zeros((len(centred), 3), np.float32)
    if not left_out:
        return figures
    tail = centred.astype(np.float64)
    np.put_along_axis(tail, index, 0.0, axis=1)
    mean = tail.sum(axis=1) / left_out
    np.put_along_axis(tail, index, -np.inf, axis=1)
    top = tail.max(axis=1, keepdims=True)
    weights = tail - top
    np.exp(weights, out=weights)
    figures[:, 0] = top[:, 0] + np.log(weights.sum(axis=1))
    figures[:, 1] = mean
    np.subtract(tail, mean[:, None], out=tail)
    np.put_along_axis(tail, index, 0.0, axis=1)
    figures[:, 2] = np.einsum("rc,rc->r", tail, tail) / left_out
    return figures


def top_k_divergence(
    centred: Float32[np.ndarray, "rows classes"],
    stored: Mapping[str, NDArray[Any]],
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[Float64[np.ndarray, " rows"]]:
    """Compute KL(softmax(centred / T) ‖ softmax(decoded / T)) of each row, in nats, for each temperature.

    stored: "index", "logits" and "tail" of the rows. Equals `divergence` of the decoded rows, in a fraction of the time:
    all classes left out have one probability, so only sums over them are needed. In float64, since it is a difference.
    """
    index = stored["index"].astype(np.int64)
    left_out = centred.shape[1] - index.shape[1]
    smallest = stored["logits"][:, -1].astype(np.float32)
    exact, scaled = centred.astype(np.float64), np.empty(centred.shape)
    weights = np.empty(centred.shape)
    divergences = []
    for temperature in temperatures:
        np.divide(exact, temperature, out=scaled)
        np.exp(scaled, out=weights)
        total = weights.sum(axis=1)
        negative_entropy = np.einsum("rc,rc->r", weights, scaled) / total - np.log(total)
        p = np.take_along_axis(weights, index, axis=1) / total[:, None]
        kept = stored["logits"].astype(np.float64) / temperature
        mass, expected = np.exp(kept).sum(axis=1), (p * kept).sum(axis=1)
        if left_out:
            level = tail_level(stored["tail"], smallest, left_out, temperature)
            level = level.astype(np.float32).astype(np.float64)  # as it is decoded
            mass += left_out * np.exp(level / temperature)
            # Their mass is summed by itself: 1 − Σ p would lose its digits if it is small.
            np.put_along_axis(weights, index, 0.0, axis=1)
            expected += weights.sum(axis=1) / total * (level / temperature)
        divergences.append(np.maximum(negative_entropy - expected + np.log(mass), 0.0))
    return divergences


def tail_level(
    figures: Float32[np.ndarray, "rows 3"],
    smallest: Float32[np.ndarray, " rows"],
    left_out: int,
    temperature: float,
) -> Float64[np.ndarray, " rows"]:
    """Return the logit, at `temperature`, of each class that was left out: T·K(1/T).

    figures: from `tail_figures`. smallest: the smallest logit that was kept.
    """
    log_sum, mean, variance = figures.astype(np.float64).T
    beta = 1 / temperature
    at_one = np.maximum(log_sum - np.log(left_out), mean)
    rise = at_one - mean
    below = 2 * rise * (1 - beta) + variance * beta
    # Below T = 1 the fraction may have a pole: the level is then the upper bound.
    level = np.where(below > 0, mean + rise * variance * beta / np.where(below > 0, below, 1.0), np.inf)
    largest = np.maximum(smallest, at_one)
    by_largest = temperature * at_one + (1 - temperature) * largest
    if temperature >= 1:
        return np.asarray(np.clip(level, np.maximum(mean, by_largest), at_one))
    width = np.maximum(largest - mean, 1e-30)
    power = np.minimum(beta * width, 500)  # beyond, the other bound is the lower one
    by_variance = mean + temperature * variance * (np.expm1(power) - power) / width**2
    return np.asarray(np.clip(level, at_one, np.maximum(at_one, np.minimum(by_largest, by_variance))))


def bad_k(found: object, expected: str) -> ConfigError:
    """Make the error of a k."""
    return ConfigError("encoding: top_k", expected=expected, found=repr(found), remedy="choose another k")
