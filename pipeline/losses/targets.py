"""Soft targets of one teacher or of an ensemble, at any temperature, with any weights and either mean.

1. `soften`: probabilities at a temperature, q = softmax(z / T).
2. `soft_targets`: one distribution out of a teacher's or several teachers' logits.
3. `ensemble_logits`: logits of that distribution, for losses that need its logarithm or compare logits.
4. `ensemble_shares`: each teacher's share, from weights of any scale.

Source: Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network", sections 1 and 2.
"""

from collections.abc import Mapping
from functools import reduce
from math import isfinite, log
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...storage.checks import check_temperature
from ...storage.errors import BadLogitsError, ConfigError
from .checks import check_floating, widened


def soften(logits: Float[Tensor, "rows classes"], temperature: float) -> Float[Tensor, "rows classes"]:
    """Return softmax(logits / temperature), each row a distribution (equation 1).

    logits: (rows, classes), nats, any constant a row. temperature: finite, above 0; else raises ConfigError.

    >>> soften(torch.tensor([[0.0, 0.0]]), 20.0)
    tensor([[0.5000, 0.5000]])
    """
    check_temperature(temperature)
    return torch.softmax(widened(logits) / temperature, dim=-1)


def soft_targets(
    logits: Mapping[str, Tensor] | Float[Tensor, "rows classes"],
    temperature: float,
    weights: Mapping[str, float] | None = None,
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
) -> Float[Tensor, "rows classes"]:
    """Return the soft targets of one teacher or of an ensemble.

    logits: (rows, classes) float, nats, of one teacher, or of several by name. temperature: finite, above 0.
    weights: by teacher, 0 or more, scaled to a sum of 1; all equal by default.
    mean: "arithmetic" mean of the probabilities at the temperature, or normalised "geometric" mean, the softmax of
        the mean logits.
    Returns (rows, classes) float32 probabilities. Raises ConfigError if the temperature or the weights are wrong,
    BadLogitsError if the teachers' shapes differ.
    Source: section 1 ("an arithmetic or geometric mean of their individual predictive distributions").
    """
    check_temperature(temperature)
    if isinstance(logits, Tensor):
        _check_no_weights(weights)
        return soften(logits, temperature)
    shares = _checked_shares(logits, weights, mean)
    if mean == "geometric":
        return soften(_mean_logits(logits, shares), temperature)
    return reduce(torch.add, [share * soften(logits[name], temperature) for name, share in shares.items()])


def ensemble_logits(
    logits: Mapping[str, Tensor] | Float[Tensor, "rows classes"],
    temperature: float,
    weights: Mapping[str, float] | None = None,
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
) -> Float[Tensor, "rows classes"]:
    """Return logits whose softmax at `temperature` is `soft_targets` of the same arguments.

    Of teachers m with logits v_m and shares w_m, Σ w_m = 1:

        arithmetic   T · ln Σ_m w_m · softmax(v_m / T), as T · logsumexp_m(ln w_m + log_softmax(v_m / T))
        geometric    Σ_m w_m · v_m

    Logits stay finite when the probabilities underflow. The arithmetic mean depends on the temperature; the logits of
    a single teacher are returned unchanged.

    Arguments and errors are those of `soft_targets`. Returns (rows, classes) float32, nats, any constant a row;
    float64 if the logits of a teacher are.

    >>> logits = {"wide": torch.tensor([[0.0, 2e4]]), "deep": torch.tensor([[0.0, 1e4]])}
    >>> ensemble_logits(logits, 1.0)  # probabilities of 0 and 1, to float32
    tensor([[-10000.6934,      0.0000]])
    """
    check_temperature(temperature)
    if isinstance(logits, Tensor):
        _check_no_weights(weights)
        return widened(logits)
    shares = _checked_shares(logits, weights, mean)
    if len(shares) == 1 or mean == "geometric":
        return _mean_logits(logits, shares)
    log_terms = [
        log(share) + torch.log_softmax(widened(logits[name]) / temperature, dim=-1)
        for name, share in shares.items()
    ]
    return temperature * reduce(torch.logaddexp, log_terms)  # no stack of all teachers in memory


def ensemble_shares(teachers: list[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return each teacher's share of the ensemble; the shares sum to 1.

    >>> ensemble_shares(["wide", "deep"], {"wide": 3.0, "deep": 1.0})
    {'wide': 0.75, 'deep': 0.25}

    Raises ConfigError if there are no teachers, if the names in `weights` differ from `teachers`, if a
    weight is negative or not finite, or if all are 0.
    """
    if not teachers:
        raise ConfigError("teachers", expected="1 or more teachers", found="0", remedy="name a teacher")
    if weights is None:
        return {name: 1.0 / len(teachers) for name in teachers}
    for name in weights:
        if name not in teachers:
            raise ConfigError(
                f"weights[{name!r}]",
                expected=f"a teacher among {', '.join(teachers)}",
                found=repr(name),
                remedy="correct the name, or stream that teacher too",
            )
    for name in teachers:
        if name not in weights:
            raise ConfigError(
                "weights",
                expected=f"a weight for each of {', '.join(teachers)}",
                found=f"no weight for {name!r}",
                remedy=f"add a weight for {name!r}; 0 excludes it",
            )
        if not (isfinite(weights[name]) and weights[name] >= 0):
            raise ConfigError(
                f"weights[{name!r}]",
                expected="a finite number of 0 or more",
                found=str(weights[name]),
                remedy="correct the weight",
            )
    total = sum(weights[name] for name in teachers)
    if not (isfinite(total) and total > 0):
        raise ConfigError(
            "weights",
            expected="a finite sum above 0",
            found=str(total),
            remedy="give at least one teacher a weight above 0",
        )
    return {name: weights[name] / total for name in teachers}


def _checked_shares(
    logits: Mapping[str, Tensor], weights: Mapping[str, float] | None, mean: str
) -> dict[str, float]:
    """Return the shares above 0 by teacher, after checking the logits of all teachers."""
    shares = ensemble_shares(list(logits), weights)
    for tensor in logits.values():
        check_floating(tensor)
    first, *others = logits
    for name in others:
        if logits[name].shape != logits[first].shape:
            raise BadLogitsError(
                f"teacher {name!r}",
                expected=f"logits of shape {tuple(logits[first].shape)}, like those of {first!r}",
                found=f"{tuple(logits[name].shape)}",
                remedy="combine teachers of the same classes and rows",
            )
    if mean not in ("arithmetic", "geometric"):
        raise ConfigError(
            "mean", expected="'arithmetic' or 'geometric'", found=repr(mean), remedy="correct mean"
        )
    return {name: share for name, share in shares.items() if share > 0}


def _check_no_weights(weights: Mapping[str, float] | None) -> None:
    if weights is not None:
        raise ConfigError(
            "weights",
            expected="weights=None for a single teacher",
            found=f"weights={dict(weights)}"[:80],
            remedy="remove weights",
        )


def _mean_logits(logits: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
    return reduce(torch.add, [share * widened(logits[name]) for name, share in shares.items()])
