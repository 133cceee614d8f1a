"""Reference minimisers of the objective of a combination, over all classes and without its structure.

`lbfgs` is the reference that `solve` is tested against, row by row in float64. `gradient_descent` is the paper's method:
steps against the gradient on the logits of q, from those of the generalist.

Source: Hinton et al. 2015, section 5.4, eq. 5. With q = softmax(z) the gradient is (1 + A) q - n(q), where
n_i = p^g_i + Σ_m (p^m_i in the set, p^m_d q_i / Q_m outside it).
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, Int64

STEPS: Final = 5_000
"""Default maximum of steps of gradient descent."""
_AT_REST: Final = 1e-6
"""Residual at which gradient descent stops."""


def objective(
    logits: Float64[np.ndarray, "rows classes"],
    generalist: Float64[np.ndarray, "rows classes"],
    classes: Sequence[Int64[np.ndarray, "_"]],
    specialists: Sequence[Float64[np.ndarray, "rows _"]],
) -> tuple[Float64[np.ndarray, "rows"], Float64[np.ndarray, "rows classes"]]:
    """Return KL(p^g, q) + Σ KL(p^m, q) of q = softmax(logits), in nats, and its gradient with respect to the logits.

    generalist, specialists: ln p, normalised; -inf is a probability of 0. classes: of the columns, -1 the dustbin.
    """
    return _objective(logits, generalist, classes, specialists)


def _objective(logits: Any, generalist: Any, classes: Any, specialists: Any) -> tuple[Any, Any]:
    """Compute `objective` without the shape checks of the tests, which take longer than it does."""
    log_q = logits - _log_sum(logits)[:, None]
    q = np.exp(log_q)
    p = np.exp(generalist)
    value = (p * _difference(generalist, log_q)).sum(axis=1)
    gradient = (1 + len(classes)) * q - p
    for own, said in zip(classes, specialists, strict=True):
        special, dustbin = own[own >= 0], int(np.flatnonzero(own < 0)[0])
        outside = np.ones(logits.shape[1], bool)
        outside[special] = False
        log_mass = _log_sum(log_q[:, outside])
        probabilities = np.exp(said)
        in_set, in_dustbin = probabilities[:, own >= 0], probabilities[:, dustbin]
        value += (in_set * _difference(said[:, own >= 0], log_q[:, special])).sum(axis=1)
        value += in_dustbin * _difference(said[:, dustbin], log_mass)
        gradient[:, special] -= in_set
        gradient[:, outside] -= in_dustbin[:, None] * np.exp(log_q[:, outside] - log_mass[:, None])
    return value, gradient


def lbfgs(
    generalist: Float64[np.ndarray, "rows classes"],
    classes: Sequence[Int64[np.ndarray, "_"]],
    specialists: Sequence[Float64[np.ndarray, "rows _"]],
) -> Float64[np.ndarray, "rows classes"]:
    """Compute ln q by L-BFGS, row by row, from the generalist's. All specialists are active in all rows.

    Source: Byrd, Lu, Nocedal & Zhu 1995, as scipy has it.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    found = np.empty_like(generalist)
    for row in range(len(generalist)):
        of_row = generalist[row : row + 1]
        said = [one[row : row + 1] for one in specialists]

        def value(z: Any, of_row: Any = of_row, said: Any = said) -> tuple[float, Any]:
            cost, gradient = _objective(z[None], of_row, classes, said)
            return float(cost[0]), gradient[0]

        start = np.maximum(of_row[0], -50.0)
        options = {"maxiter": 5000, "maxfun": 20_000, "ftol": 0.0, "gtol": 1e-10, "maxcor": 40}
        z = minimize(value, start, jac=True, method="L-BFGS-B", options=options).x
        found[row] = z - _log_sum(z[None])[0]
    return found


def gradient_descent(
    generalist: Float64[np.ndarray, "rows classes"],
    classes: Sequence[Int64[np.ndarray, "_"]],
    specialists: Sequence[Float64[np.ndarray, "rows _"]],
    *,
    steps: int | None = None,
    at_rest: float = _AT_REST,
) -> Float64[np.ndarray, "rows classes"]:
    """Compute ln q by the paper's gradient descent on logits, from the generalist's. All specialists are active in all rows.

    Each step is 2/(1 + A), the inverse of the largest curvature: the objective never rises. A row is done when Σ |gradient|
    is at most `at_rest`, or after `steps` (`STEPS` unless given).
    """
    logits = generalist.copy()
    going = np.arange(len(logits))
    size = 2 / (1 + len(classes))
    for _ in range(STEPS if steps is None else steps):
        part = logits[going]
        _, gradient = _objective(part, generalist[going], classes, [one[going] for one in specialists])
        busy = np.abs(gradient).sum(axis=1) > at_rest
        going = going[busy]
        if not len(going):
            break
        logits[going] = part[busy] - size * gradient[busy]
    return np.asarray(logits - _log_sum(logits)[:, None])


def _difference(log_p: Any, log_q: Any) -> Any:
    """Return ln p - ln q, and 0 where p is 0, as their product is."""
    there = np.isfinite(log_p)
    return np.where(there, np.where(there, log_p, 0) - np.where(there, log_q, 0), 0)


def _log_sum(values: Any) -> Any:
    """Return ln Σ exp along the last axis."""
    base = np.maximum(values.max(axis=-1, keepdims=True), np.finfo(np.float64).min)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(values - base).sum(axis=-1)) + base[..., 0])
