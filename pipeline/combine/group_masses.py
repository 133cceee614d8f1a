"""How much mass does q give to each group of classes, where several specialists are active?

Of the objective of eq. 5 with A active specialists, this is left once the classes within a group share its mass as their
a_i do (see `combination`): over the masses q_G, with Q_m the sum of those in the dustbin of specialist m,

    - Σ_G a_G ln q_G - Σ_m p^m_d ln Q_m,   Σ_G q_G = 1.

1. The fixed point: n_G = a_G + q_G Σ_m p^m_d / Q_m (the sum over the dustbins that hold G), q ← n / (1 + A). It is the EM
   algorithm, which never raises the objective. It stops on the residual Σ_G |(1 + A) q_G - n_G|, which is that of the
   classes as well, Σ_i |(1 + A) q_i - n_i|: the gradient of the objective with respect to the logits of q.
2. Where the generalist is sure and its specialists contradict it, the steps become tiny. Rows that have not come to rest
   after a few of them go on by Newton steps in ln q, damped by the metric of the fixed point; the fixed point's own step
   is always among the candidates, and the one with the lowest objective is taken, so that it still never rises.

All in float64. Source of the objective: Hinton et al. 2015, section 5.4; of the fixed point: Dempster, Laird & Rubin 1977.
"""

import logging
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray

log = logging.getLogger(__name__)


TOLERANCE: Final = 1e-9
"""Residual at which a row has come to rest."""


_PLAIN_STEPS: Final = 36
"""Steps of the fixed point alone."""


_NEWTON_STEPS: Final = 100


_NEWTON_ROWS: Final = 1 << 18
"""Elements of the matrices that are solved at a time."""


_SHRINK: Final = 0.9
"""Of its mass, what a group may lose in a Newton step."""


_TINY: Final = 1e-290
"""A mass that is not 0, for logarithms."""


_WORRYING: Final = 1e-6
"""A residual that is worth a word."""


def group_masses(
    log_sums: Float64[np.ndarray, "groups rows"],
    outside: Float64[np.ndarray, "slots groups"],
    log_dustbins: Float64[np.ndarray, "slots rows"],
    *,
    tolerance: float = TOLERANCE,
    steps: int = _PLAIN_STEPS + _NEWTON_STEPS,
) -> Float64[np.ndarray, "groups rows"]:
    """ln q of each group, -inf of a group without classes.

    log_sums: ln a_G, of which -inf says that the group has no classes. outside: 1 where a group lies in the dustbin of
    a slot, else 0. log_dustbins: ln p^m_d. steps: at most so many; rows that are not at rest then keep what they have.
    """
    sums, dustbins = np.exp(log_sums), np.exp(log_dustbins)
    there = np.isfinite(log_sums)
    masses = _start(sums, there, outside)
    going = np.arange(sums.shape[1])
    for step in range(steps):
        part = masses[:, going]
        a, p = sums[:, going], dustbins[:, going]
        next_part, residual = _fixed_point(part, a, outside, p)
        rest = residual <= tolerance
        if step >= _PLAIN_STEPS and not rest.all():
            busy = np.flatnonzero(~rest)
            next_part[:, busy] = _newton(
                part[:, busy], next_part[:, busy], a[:, busy], p[:, busy], there[:, going[busy]], outside
            )
        masses[:, going] = next_part
        going = going[~rest]
        if not len(going):
            break
    else:
        _say(masses, sums, outside, dustbins)
    return _logarithms(masses, log_sums, outside, dustbins)


def objective(
    masses: Float64[np.ndarray, "groups rows"],
    sums: Float64[np.ndarray, "groups rows"],
    outside: Float64[np.ndarray, "slots groups"],
    dustbins: Float64[np.ndarray, "slots rows"],
) -> Float64[np.ndarray, "rows"]:
    """What is minimised, of masses with any sum: -Σ a ln q - Σ p_d ln Q + (1 + A) Σ q, whose minimum sums to 1."""
    logs = np.log(np.maximum(masses, _TINY))
    in_dustbins = np.log(np.maximum(outside @ masses, _TINY))
    linear = (1 + len(outside)) * masses.sum(axis=0)
    return np.asarray(linear - (sums * logs).sum(axis=0) - (dustbins * in_dustbins).sum(axis=0))


def _start(
    sums: NDArray[np.float64], there: NDArray[np.bool_], outside: NDArray[np.float64]
) -> NDArray[np.float64]:
    """As the sums have it, but with a little for every group: what is 0 stays 0."""
    masses = np.where(there, sums + 1e-3, 0.0)
    return np.asarray(masses / masses.sum(axis=0))


def _fixed_point(
    masses: NDArray[np.float64],
    sums: NDArray[np.float64],
    outside: NDArray[np.float64],
    dustbins: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The next masses, and the residual of the ones that are given."""
    ratio = dustbins / np.maximum(outside @ masses, _TINY)
    wanted = sums + masses * (outside.T @ ratio)
    models = 1 + len(outside)
    residual = np.abs(models * masses - wanted).sum(axis=0)
    return wanted / models, residual


def _newton(
    masses: NDArray[np.float64],
    plain: NDArray[np.float64],
    sums: NDArray[np.float64],
    dustbins: NDArray[np.float64],
    there: Bool[np.ndarray, "groups rows"],
    outside: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The best of the fixed point's step and of some Newton steps, of each row.

    In u = Δq/q the Hessian is diag(a) + Σ_m p^m_d s_m s_mᵀ, s_m the shares of the groups in the dustbin m. It is nearly
    singular where a is tiny: residual · diag(q) is added, which is nothing near the end.
    """
    best, lowest = plain.copy(), objective(plain, sums, outside, dustbins)
    groups, rows = masses.shape
    step = max(1, _NEWTON_ROWS // groups**2)
    change = np.empty_like(masses)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        q, a, p, is_there = masses[:, part].T, sums[:, part].T, dustbins[:, part].T, there[:, part].T
        total = np.maximum(q @ outside.T, _TINY)
        gradient = (1 + len(outside)) * q - a - q * ((p / total) @ outside)
        residual = np.abs(gradient).sum(axis=1, keepdims=True)
        shares = outside * q[:, None, :] / total[:, :, None]
        hessian = np.einsum("rm,rmg,rmh->rgh", p, shares, shares)
        diagonal = np.where(is_there, a + residual * q + _TINY, 1.0)
        hessian[:, np.arange(groups), np.arange(groups)] += diagonal
        try:
            solved = np.linalg.solve(hessian, -gradient[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:
            solved = np.zeros_like(q)
        change[:, part] = np.where(np.isfinite(solved), solved, 0.0).T
    down = np.maximum(-change.min(axis=0), _TINY)
    whole = np.minimum(1.0, _SHRINK / down) * change
    for factors in (whole, np.maximum(change, -_SHRINK), np.maximum(change / 4, -_SHRINK), whole / 4):
        candidate = np.where(there, np.maximum(masses * (1 + factors), _TINY), 0.0)
        value = objective(candidate, sums, outside, dustbins)
        better = value < lowest
        best[:, better], lowest[better] = candidate[:, better], value[better]
    return best


def _logarithms(
    masses: NDArray[np.float64],
    log_sums: NDArray[np.float64],
    outside: NDArray[np.float64],
    dustbins: NDArray[np.float64],
) -> NDArray[np.float64]:
    """ln of the masses; of those that are too small for float64, by q_G = a_G / (1 + A - Σ p_d / Q)."""
    there = np.isfinite(log_sums)
    with np.errstate(divide="ignore"):
        logs = np.where(there, np.log(np.where(there, masses, 1.0)), -np.inf)
    small = there & (masses < 1e3 * _TINY)
    if small.any():
        ratio = dustbins / np.maximum(outside @ masses, _TINY)
        left = 1 + len(outside) - outside.T @ ratio
        logs[small] = np.minimum(log_sums - np.log(np.maximum(left, 1e-12)), np.log(1e3 * _TINY))[small]
    return np.asarray(logs)


def _say(
    masses: NDArray[np.float64],
    sums: NDArray[np.float64],
    outside: NDArray[np.float64],
    dustbins: NDArray[np.float64],
) -> None:
    """A word in the log where rows are far from rest."""
    _, residual = _fixed_point(masses, sums, outside, dustbins)
    far = residual > _WORRYING
    if far.any():
        log.warning(
            "combination: %d of %d rows have not come to rest, the residual is up to %.2g",
            int(far.sum()),
            len(far),
            float(residual.max()),
        )
