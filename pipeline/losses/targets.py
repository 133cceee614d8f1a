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
    teachers = _with_shares(logits, weights, mean)
    if mean == "geometric":
        return soften(_weighted_sum(teachers), temperature)
    return reduce(torch.add, [share * soften(one, temperature) for share, one in teachers])


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
    teachers = _with_shares(logits, weights, mean)
    if len(teachers) == 1 or mean == "geometric":
        return _weighted_sum(teachers)
    log_terms = [
        log(share) + torch.log_softmax(widened(one) / temperature, dim=-1) for share, one in teachers
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


def _with_shares(
    logits: Mapping[str, Tensor] | Tensor, weights: Mapping[str, float] | None, mean: str
) -> list[tuple[float, Tensor]]:
    """Return the teachers with a share above 0, after checking the logits of all; a single tensor has share 1."""
    if isinstance(logits, Tensor):
        if weights is not None:
            raise ConfigError(
                "weights",
                expected="weights=None for a single teacher",
                found=f"weights={dict(weights)}"[:80],
                remedy="remove weights",
            )
        return [(1.0, check_floating(logits))]
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
    return [(share, logits[name]) for name, share in shares.items() if share > 0]


def _weighted_sum(teachers: list[tuple[float, Tensor]]) -> Tensor:
    return reduce(torch.add, [share * widened(one) for share, one in teachers])
