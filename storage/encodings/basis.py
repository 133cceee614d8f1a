"""The basis of the transform encoding: the principal axes of a teacher's logits, in the metric of the loss.

The KL of a small error δ of the logits at temperature T is ½ δᵀF δ / T², with F = diag(p) − ppᵀ the Fisher information of
the softmax p of row z/T. With M the mean of F / T² over calibration rows and temperatures, and R = M^½, an error of equal
length in any direction of zR costs the same KL on average. So logits are rotated into the principal axes V of zR and
rounded there:

    y = (z − centre) · forward          forward = R V        (class, component)
    z̃ = ŷ · basis + centre              basis   = Vᵀ R⁻¹     (component, class)

Everything is computed in the span of the calibration rows, or of the teacher's head (`span`): nothing of classes by classes
exists.
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

from .feature_logits import Rows, checked_rows, row_slices
from .products import TILE, one_thread, tiled_product
from .span import span_of

MOST_LOGIT: Final = 1e30
"""Magnitude of decoded logits from which float32 may overflow."""
_MOST_CODE: Final = 1 << 15
"""The largest magnitude of a signed code of 16 bits."""
_RIDGE: Final = 1e-6
"""Added to the metric's diagonal, in units of its mean: directions that no softmax sees stay finite."""
_PIECE_BYTES: Final = 32 << 20
"""Bytes of the softmax of calibration rows that is held at a time, unless a tile takes more."""
_CLASSES: Final = 2048
"""Classes whose projection is computed together."""


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

    @property
    def reach(self) -> float:
        """The largest magnitude that its logits, or coordinates on its axes, may come to."""
        with np.errstate(over="ignore", invalid="ignore"):
            steps = self.step.astype(np.float64) * _MOST_CODE
            furthest = np.abs(self.basis).max(axis=1).astype(np.float64) * steps
            return float(max(furthest.sum() + np.abs(self.centre.astype(np.float64)).max(), steps.max()))

    def some(self, axes: NDArray[np.bool_]) -> "Basis":
        """Return the basis of some of the axes."""
        return Basis(self.basis[axes], self.centre, self.step[axes], self.weight)

    def with_step(self, step: float) -> "Basis":
        """Return the same axes with one step for all. Their projection is not computed again."""
        basis = Basis(self.basis, self.centre, np.full(self.num_components, step, np.float32), self.weight)
        if "forward" in self.__dict__:
            basis.__dict__["forward"] = self.forward
        return basis

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
        number = self.num_components
        gram, forward = np.zeros((number, number)), np.empty((self.num_classes, number), np.float32)
        parts = list(row_slices(self.num_classes, _CLASSES))
        with one_thread:
            for part in parts:
                axes = self.basis[:, part].astype(np.float64)
                gram += (axes * self.weight[part]) @ axes.T
            for part in parts:
                weighted = self.basis[:, part] * self.weight[part].astype(np.float64)
                forward[part] = np.linalg.solve(gram, weighted).T
        return forward

    def project(self, logits: Float32[np.ndarray, "rows classes"]) -> Float32[np.ndarray, "rows components"]:
        """Return logits on the axes. Inside `one_thread`."""
        return tiled_product(logits - self.centre, self.forward)


def make_basis(logits: Rows, temperatures: Sequence[float], step: float, where: str = "calibration") -> Basis:
    """Make the basis of calibration rows.

    logits: finite; of an array, the largest of each row 0. temperatures: at which the error counts. step: of a component of
    the mean row, in natural-log units of the metric. Memory: of an array, a few times the logits in float64 and rows by rows;
    of features, the basis, features by features and `_PIECE_BYTES`. where: the rows in messages. Raises BadLogitsError for
    features whose logits overflow.
    """
    num_classes = logits.shape[1]
    with one_thread:
        span, mean, peak = span_of(logits), np.zeros(num_classes), np.empty(len(logits))
        seen = np.zeros(())
        for part in row_slices(len(logits), max(TILE, _PIECE_BYTES // (8 * num_classes) // TILE * TILE)):
            rows = checked_rows(logits, part, 0, where)
            peak[part] = rows.max(axis=1)
            for temperature in temperatures:
                p = _softmax(rows, temperature)
                inside = span.coordinates(p)
                seen = seen + inside.T @ inside / temperature**2
                mean += p.sum(axis=0) / temperature**2
        metric = (span.weighted(mean) - seen) / (len(logits) * sum(1 / t**2 for t in temperatures))
        metric += _RIDGE * np.trace(metric) / len(metric) * np.eye(len(metric))
        lengths, directions = np.linalg.eigh(metric)
        root = np.sqrt(np.maximum(lengths, 1e-14))
        coordinates = span.rows(peak) @ ((directions * root) @ directions.T)
        _, axes = np.linalg.eigh(coordinates.T @ coordinates)
        axes = span.combined(axes.T[::-1] @ ((directions / root) @ directions.T))
        weight = np.maximum(mean / mean.sum(), 1e-3 / len(mean))
    return Basis(
        axes,
        span.centre(peak).astype(np.float32),
        np.full(len(axes), step, np.float32),
        weight.astype(np.float32),
    )


def _softmax(
    logits: Float32[np.ndarray, "rows classes"], temperature: float
) -> Float64[np.ndarray, "rows classes"]:
    powers = logits.astype(np.float64)
    powers -= powers.max(axis=1, keepdims=True)
    powers /= temperature
    np.exp(powers, out=powers)
    powers /= powers.sum(axis=1, keepdims=True)
    return powers
