"""The basis of the transform encoding: the principal axes of a teacher's logits, in the metric of the loss.

The KL of a small error δ of the logits at temperature T is ½ δᵀF δ / T², with F = diag(p) − ppᵀ the Fisher information of
the softmax p of row z/T. With M the mean of F / T² over calibration rows and temperatures, and R = M^½, an error of equal
length in any direction of zR costs the same KL on average. So logits are rotated into the principal axes V of zR and
rounded there:

    y = (z − centre) · forward          forward = R V        (class, component)
    z̃ = ŷ · basis + centre              basis   = Vᵀ R⁻¹     (component, class)

Everything is computed in the span of the calibration rows, a Gram matrix of rows: nothing of classes by classes exists.
Source of the metric: Amari, "Natural gradient works efficiently in learning", 1998, section 2.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from .products import one_thread, tiled_product

_LEAST_SHARE: Final = 1e-10
"""Share of the largest variance below which an axis of the calibration rows is rounding alone."""
_RIDGE: Final = 1e-6
"""Added to the metric's diagonal, in units of its mean: directions that no softmax sees stay finite."""
_PIECE: Final = 256
"""Calibration rows whose softmax is held at a time."""


@dataclass(frozen=True, eq=False)
class Basis:
    """The axes in which the rows of a capture are rounded."""

    basis: Float32[np.ndarray, "components classes"]
    """Logits of a component's unit."""
    centre: Float32[np.ndarray, " classes"]
    """Logits of the origin."""
    step: Float32[np.ndarray, " components"]
    """Step of a component in a row that is not refined."""
    weight: Float32[np.ndarray, " classes"]
    """Mean probability of each class in calibration, by 1/T²: the metric in which logits are projected on the axes."""

    @property
    def num_components(self) -> int:
        """Axes that are kept."""
        return len(self.basis)

    @property
    def num_classes(self) -> int:
        """Columns of the logits."""
        return int(self.basis.shape[1])

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays by the names that a capture stores."""
        return {"basis": self.basis, "centre": self.centre, "step": self.step, "weight": self.weight}

    @cached_property
    def digest(self) -> str:
        """ "sha256:…" of the arrays, to which every block of a capture is bound."""
        digest = hashlib.sha256()
        for name, values in self.arrays().items():
            digest.update(json.dumps([name, list(values.shape)]).encode())
            digest.update(np.ascontiguousarray(values, "<f4").tobytes())
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def forward(self) -> Float32[np.ndarray, "classes components"]:
        """The projection of logits on the axes, in the metric of `weight`: W Bᵀ (B W Bᵀ)⁻¹.

        It follows from what is stored, so that every writer of a capture has the same.
        """
        with one_thread:
            axes = self.basis.astype(np.float64)
            weighted = axes * self.weight.astype(np.float64)
            forward = np.linalg.solve(weighted @ axes.T, weighted).T
        return np.ascontiguousarray(forward, np.float32)

    def project(self, logits: Float32[np.ndarray, "rows classes"]) -> Float32[np.ndarray, "rows components"]:
        """Return logits on the axes. Inside `one_thread`."""
        return tiled_product(logits - self.centre, self.forward)


def make_basis(
    logits: Float32[np.ndarray, "rows classes"], temperatures: Sequence[float], step: float
) -> Basis:
    """Make the basis of calibration rows.

    logits: centred, the largest of each row 0; more rows than the logits have directions. temperatures: at which the error
    counts. step: of a component of the mean row, in natural-log units of the metric. Memory: a few times the logits in
    float64 and rows by rows.
    """
    with one_thread:
        centre = logits.mean(axis=0, dtype=np.float64)
        spread = logits - centre
        span, mean = _span(spread), np.zeros(logits.shape[1])
        metric = np.zeros((len(span), len(span)))
        for temperature in temperatures:
            for first in range(0, len(logits), _PIECE):
                p = _softmax(logits[first : first + _PIECE], temperature)
                inside = p @ span.T
                metric += ((span * p.sum(axis=0)) @ span.T - inside.T @ inside) / temperature**2
                mean += p.sum(axis=0) / temperature**2
        metric /= len(logits) * sum(1 / t**2 for t in temperatures)
        metric += _RIDGE * np.trace(metric) / len(metric) * np.eye(len(metric))
        lengths, directions = np.linalg.eigh(metric)
        root = np.sqrt(np.maximum(lengths, 1e-14))
        coordinates = (spread @ span.T) @ ((directions * root) @ directions.T)
        _, axes = np.linalg.eigh(coordinates.T @ coordinates)
        axes = axes[:, ::-1]
        rows = axes.T @ ((directions / root) @ directions.T) @ span
        weight = np.maximum(mean / mean.sum(), 1e-3 / len(mean))
    return Basis(
        np.ascontiguousarray(rows, np.float32),
        centre.astype(np.float32),
        np.full(len(rows), step, np.float32),
        weight.astype(np.float32),
    )


def _span(spread: Float64[np.ndarray, "rows classes"]) -> Float64[np.ndarray, "axes classes"]:
    """Return orthonormal axes of the rows, from the smaller of the two Gram matrices."""
    rows, classes = spread.shape
    if classes <= rows:
        size, axes = np.linalg.eigh(spread.T @ spread)
        kept = size > size[-1] * _LEAST_SHARE
        return np.ascontiguousarray(axes[:, kept].T[::-1])
    size, of_rows = np.linalg.eigh(spread @ spread.T)
    kept = size > size[-1] * _LEAST_SHARE
    axes = (of_rows[:, kept].T @ spread) / np.sqrt(size[kept])[:, None]
    return np.ascontiguousarray(axes[::-1])


def _softmax(
    logits: Float32[np.ndarray, "rows classes"], temperature: float
) -> Float64[np.ndarray, "rows classes"]:
    powers = np.exp(logits.astype(np.float64) / temperature)
    powers /= powers.sum(axis=1, keepdims=True)
    return powers
