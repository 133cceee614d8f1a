"""Masses that q gives to groups of classes, for rows with several active specialists.

Once the classes within a group share its mass as their a_i do (see `solve`), this is left of the objective of eq. 5 with
A active specialists, over the masses q_G, with Q_m the sum of those in the dustbin of specialist m:

    - Σ_G a_G ln q_G - Σ_m p^m_d ln Q_m,   Σ_G q_G = 1.

1. EM: n_G = a_G + q_G Σ_m p^m_d / Q_m (the sum over the dustbins that hold G), q ← n / (1 + A). It never raises the
   objective. It stops on the residual Σ_G |(1 + A) q_G - n_G|, the gradient with respect to the logits of q.
2. Where a sure generalist is contradicted, EM crawls. Rows that are not at rest after `_PLAIN_STEPS` continue by Newton
   steps in ln q; of these and the step of EM, the one with the lowest objective is taken.

All in float64. Sources: Hinton et al. 2015, section 5.4; Dempster, Laird & Rubin 1977. L-BFGS in place of Newton takes
0.2 to 3 s a row of 30 classes.
"""

import logging
from typing import Final

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

log = logging.getLogger(__name__)
TOLERANCE: Final = 1e-9
"""Residual at which a row is at rest."""
_PLAIN_STEPS: Final = 36
"""Steps of EM alone."""
_STEPS: Final = 136
_SHRINK: Final = 0.9
"""Share of its mass that a group may lose in a Newton step."""
_TINY: Final = 1e-290
"""Minimum of a mass in a logarithm or a denominator."""
_WORRYING: Final = 1e-6
"""Residual above which a row is logged."""


def group_masses(
    log_sums: Float64[np.ndarray, "rows groups"],
    outside: Float64[np.ndarray, "rows slots groups"],
    log_dustbins: Float64[np.ndarray, "rows slots"],
    *,
    steps: int = _STEPS,
) -> Float64[np.ndarray, "rows groups"]:
    """Return ln q of each group, -inf of a group without classes.

    log_sums: ln a_G, -inf of a group without classes. outside: 1 where a group lies in the dustbin of a slot, else 0.
    log_dustbins: ln p^m_d. steps: maximum number of steps.
    """
    sums, dustbins, there = np.exp(log_sums), np.exp(log_dustbins), np.isfinite(log_sums)
    # A little for every group with classes: EM never moves a mass of 0.
    masses = np.where(there, sums + 1e-3, 0.0)
    masses /= masses.sum(axis=1, keepdims=True)
    going = np.arange(len(masses))
    for step in range(steps):
        given = masses[going], sums[going], outside[going], dustbins[going]
        following, residual = _em_step(*given)
        busy = residual > TOLERANCE
        if step >= _PLAIN_STEPS and busy.any():
            following[busy] = _newton_step(following[busy], *(array[busy] for array in given))
        masses[going] = following
        going = going[busy]
        if not len(going):
            break
    else:
        _, residual = _em_step(masses, sums, outside, dustbins)
        if far := int((residual > _WORRYING).sum()):
            log.warning("combination: %d rows not at rest, residual up to %.2g", far, float(residual.max()))
    with np.errstate(divide="ignore"):
        logs = np.log(masses)
    # Masses that float64 does not hold follow from their condition: q_G = a_G / (1 + A - Σ p_d / Q).
    small = there & (masses < 1e3 * _TINY)
    if small.any():
        left = 1 + outside.shape[1] - _pull(masses, outside, dustbins)
        logs[small] = np.minimum(log_sums - np.log(np.maximum(left, 1e-12)), np.log(1e3 * _TINY))[small]
    return np.asarray(logs)


def objective(
    masses: Float64[np.ndarray, "rows groups"],
    sums: Float64[np.ndarray, "rows groups"],
    outside: Float64[np.ndarray, "rows slots groups"],
    dustbins: Float64[np.ndarray, "rows slots"],
) -> Float64[np.ndarray, "rows"]:
    """Return -Σ a ln q - Σ p_d ln Q + (1 + A) Σ q of masses with any sum; the masses at the minimum sum to 1."""
    logs = np.log(np.maximum(masses, _TINY))
    in_dustbins = np.log(np.maximum(_in_dustbins(masses, outside), _TINY))
    linear = (1 + outside.shape[1]) * masses.sum(axis=1)
    return np.asarray(linear - (sums * logs).sum(axis=1) - (dustbins * in_dustbins).sum(axis=1))


def _in_dustbins(masses: NDArray[np.float64], outside: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Q of each slot."""
    return np.asarray((outside @ masses[:, :, None])[:, :, 0])


def _pull(
    masses: NDArray[np.float64], outside: NDArray[np.float64], dustbins: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return Σ_m p^m_d / Q_m of each group, over the dustbins that hold it."""
    ratio = dustbins / np.maximum(_in_dustbins(masses, outside), _TINY)
    return np.asarray((ratio[:, None, :] @ outside)[:, 0])


def _em_step(
    masses: NDArray[np.float64],
    sums: NDArray[np.float64],
    outside: NDArray[np.float64],
    dustbins: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the next masses, and the residual of the given ones."""
    wanted = sums + masses * _pull(masses, outside, dustbins)
    models = 1 + outside.shape[1]
    return wanted / models, np.abs(models * masses - wanted).sum(axis=1)


def _newton_step(
    em: NDArray[np.float64],
    masses: NDArray[np.float64],
    sums: NDArray[np.float64],
    outside: NDArray[np.float64],
    dustbins: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the best of the step of EM and of some Newton steps, row by row.

    In u = Δq/q the Hessian is diag(a) + Σ_m p^m_d s_m s_mᵀ, s_m the shares of the groups in the dustbin m. It is nearly
    singular where a is tiny: residual · diag(q) is added, which vanishes near the minimum.
    """
    total = np.maximum(_in_dustbins(masses, outside), _TINY)
    gradient = (1 + outside.shape[1]) * masses - sums - masses * _pull(masses, outside, dustbins)
    residual = np.abs(gradient).sum(axis=1, keepdims=True)
    shares = outside * masses[:, None, :] / total[:, :, None]
    hessian = np.swapaxes(shares * dustbins[:, :, None], 1, 2) @ shares
    every = np.arange(masses.shape[1])
    # 1 for groups without classes, which the gradient leaves where they are.
    hessian[:, every, every] += np.where(masses > 0, sums + residual * masses + _TINY, 1.0)
    try:
        change = np.linalg.solve(hessian, -gradient[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        return em
    change[~np.isfinite(change)] = 0
    # All of a step as far as no mass is lost, or each mass for itself: none of the four can be left out.
    whole = np.minimum(1.0, _SHRINK / np.maximum(-change.min(axis=1, keepdims=True), _TINY)) * change
    best, lowest = em, objective(em, sums, outside, dustbins)
    for factors in (whole, np.maximum(change, -_SHRINK), np.maximum(change / 4, -_SHRINK), whole / 4):
        candidate = np.where(masses > 0, np.maximum(masses * (1 + factors), _TINY), 0.0)
        value = objective(candidate, sums, outside, dustbins)
        better = value < lowest
        best, lowest = np.where(better[:, None], candidate, best), np.where(better, value, lowest)
    return best
