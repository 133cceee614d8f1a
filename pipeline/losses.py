"""What does a student learn from logits?

With logits z of the student and v of a teacher, temperature T and N classes:

1. `soften`: probabilities at a temperature, q = softmax(z / T).
2. `soft_targets`: one distribution out of a teacher's or several teachers' logits, for any temperature,
   weights and either mean. It is what makes stored logits worth more than stored probabilities.
3. `Distillation`: T² times the cross-entropy of q against the soft targets, plus `hard_weight` times the
   cross-entropy of softmax(z) against the labels. The gradient of the former falls as 1/T²; the factor
   keeps the balance of the two terms when the temperature is changed.
4. `logit_matching`: what becomes of the soft term, up to a factor 1/N, as T grows without bound.

Everything is computed in float32, whatever the logits come in and whatever autocast says; in float64
where the logits are float64.

Source: Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network", section 2.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ..storage.errors import BadLogitsError, ConfigError


def soften(logits: Float[Tensor, "rows classes"], temperature: float) -> Float[Tensor, "rows classes"]:
    """Return softmax(logits / temperature), each row a distribution (equation 1).

    logits: (rows, classes), nats, any additive constant a row. temperature: finite, above 0.
    Raises ConfigError if the temperature is not.

    >>> soften(torch.tensor([[0.0, 0.0]]), 20.0)
    tensor([[0.5000, 0.5000]])
    """
    check_temperature(temperature)
    return torch.softmax(_widened(logits) / temperature, dim=-1)


def soft_targets(
    logits: Mapping[str, Tensor] | Float[Tensor, "rows classes"],
    temperature: float,
    weights: Mapping[str, float] | None = None,
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
) -> Float[Tensor, "rows classes"]:
    """Return the soft targets of one teacher or of an ensemble.

    logits: (rows, classes) float, nats, of one teacher, or of several by name.
    temperature: finite, above 0.
    weights: of the teachers by name, 0 or more, scaled to a sum of 1; by default all are equal.
    mean: "arithmetic" mean of the probabilities at the temperature, or "geometric" mean, normalised,
        which is the softmax of the mean logits.
    Returns (rows, classes) float32 probabilities. Raises ConfigError if the temperature or the weights are
    wrong, BadLogitsError if the teachers' shapes differ.
    Source: section 1 ("an arithmetic or geometric mean of their individual predictive distributions").
    """
    check_temperature(temperature)
    if isinstance(logits, Tensor):
        if weights is not None:
            raise ConfigError(
                "weights",
                expected="none for a single teacher",
                found=f"{len(weights)}",
                remedy="leave them out",
            )
        return soften(logits, temperature)
    shares = ensemble_shares(list(logits), weights)
    for tensor in logits.values():
        _check_floating(tensor)
    _check_shapes(logits)
    if mean == "geometric":
        mixed = _sum_of([shares[name] * _widened(tensor) for name, tensor in logits.items()])
        return soften(mixed, temperature)
    if mean != "arithmetic":
        raise ConfigError(
            "mean", expected='"arithmetic" or "geometric"', found=repr(mean), remedy="use one of the two"
        )
    return _sum_of([shares[name] * soften(tensor, temperature) for name, tensor in logits.items()])


def hard_cross_entropy(
    logits: Float[Tensor, "rows classes"], labels: Int64[Tensor, "rows"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of softmax(logits) against labels, nats, over the labelled rows.

    labels: (rows,) int64, -1 where unknown. Without any labelled row it is 0, with a gradient of 0.
    """
    total = F.cross_entropy(_widened(logits), labels, ignore_index=-1, reduction="sum")
    return total / (labels != -1).sum().clamp(min=1)


class Distillation(nn.Module):
    """T² · soft cross-entropy + w · hard cross-entropy, of the same student logits.

    The soft term is at temperature T, the hard one at 1. The weight w is relative to 1 for the soft term:
    the paper's speech experiment has 0.5.
    """

    def __init__(self, temperature: float, hard_weight: float = 0.0) -> None:
        """Keep the two numbers.

        temperature: T, finite, above 0; that of the targets. hard_weight: w, finite, 0 or more.
        Raises ConfigError if they are not.
        """
        super().__init__()
        check_temperature(temperature)
        if not (isfinite(hard_weight) and hard_weight >= 0):
            raise ConfigError(
                "hard_weight",
                expected="a finite number of 0 or more",
                found=str(hard_weight),
                remedy="correct hard_weight",
            )
        self.temperature = temperature
        self.hard_weight = hard_weight

    def forward(
        self,
        student_logits: Float[Tensor, "rows classes"],
        targets: Float[Tensor, "rows classes"],
        labels: Int64[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, nats, a mean over rows.

        student_logits: (rows, classes). targets: (rows, classes), probabilities at this temperature, as
        `soft_targets` gives them. labels: (rows,) int64, -1 where unknown; the hard term is the mean over
        the rows that have one, and 0 if none has.
        The soft term's gradient is T · (q - p) / rows, T² times equation 2. Its entropy is not taken off,
        so the loss of a perfect student is T² times the entropy of the targets.
        Raises ConfigError without labels if `hard_weight` is above 0.
        """
        log_q = F.log_softmax(_widened(student_logits) / self.temperature, dim=-1)
        soft = -(targets.to(log_q.dtype) * log_q).sum(dim=-1).mean()
        loss = self.temperature**2 * soft
        if self.hard_weight == 0.0:
            return loss
        if labels is None:
            raise ConfigError(
                "labels",
                expected=f"labels, for a hard_weight of {self.hard_weight}",
                found="none",
                remedy="pass them (-1 where unknown), or set hard_weight to 0",
            )
        return loss + self.hard_weight * hard_cross_entropy(student_logits, labels)

    def extra_repr(self) -> str:
        """Show the two numbers in `repr`."""
        return f"temperature={self.temperature}, hard_weight={self.hard_weight}"


def logit_matching(
    student_logits: Float[Tensor, "rows classes"], teacher_logits: Float[Tensor, "rows classes"]
) -> Float[Tensor, ""]:
    """Return half the squared distance of the zero-meaned logits, summed over classes, mean over rows.

    Its gradient is (z - v) / rows with both rows zero-meaned. For T → ∞ the gradient of T² · soft
    cross-entropy becomes this one divided by the number of classes (equation 4), with a relative error
    that falls as 1/T. Without taking out the means the two do not agree: a softmax does not see them.
    """
    student, teacher = _widened(student_logits), _widened(teacher_logits)
    student = student - student.mean(dim=-1, keepdim=True)
    teacher = teacher - teacher.mean(dim=-1, keepdim=True)
    return 0.5 * (student - teacher).square().sum(dim=-1).mean()


def ensemble_shares(teachers: list[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return each teacher's share of the ensemble; the shares sum to 1.

    >>> ensemble_shares(["wide", "deep"], {"wide": 3.0, "deep": 1.0})
    {'wide': 0.75, 'deep': 0.25}

    Raises ConfigError if there are no teachers, if `weights` names others than `teachers`, or if a weight
    is negative or not finite, or all are 0.
    """
    if not teachers:
        raise ConfigError("teachers", expected="one or more", found="none", remedy="name a teacher")
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
                found=f"none for {name!r}",
                remedy="give it one (0 leaves it out)",
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


def check_temperature(temperature: float) -> None:
    """Raise ConfigError if a temperature is not finite or not above 0."""
    if not (isfinite(temperature) and temperature > 0):
        raise ConfigError(
            "temperature",
            expected="a finite number above 0",
            found=str(temperature),
            remedy="correct temperature",
        )


def _sum_of(terms: list[Tensor]) -> Tensor:
    """Add tensors of one shape, in their order."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _widened(logits: Tensor) -> Tensor:
    _check_floating(logits)
    # Enough under autocast too: it lowers matrix products and convolutions, and there are none here.
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_floating(logits: object) -> None:
    """Refuse codes and top-k rows: what a stream with decode=False gives. Raises BadLogitsError."""
    if not (isinstance(logits, Tensor) and logits.is_floating_point()):
        found = f"{logits.dtype} codes" if isinstance(logits, Tensor) else type(logits).__name__
        raise BadLogitsError(
            "logits",
            expected="floating logits",
            found=f"{found}, as they are stored",
            remedy="decode them first: `batch.teacher_logits(temperature)`, or a stream with decode=True",
        )


def _check_shapes(logits: Mapping[str, Tensor]) -> None:
    first, *others = logits
    for name in others:
        if logits[name].shape != logits[first].shape:
            raise BadLogitsError(
                f"teacher {name!r}",
                expected=f"logits of shape {tuple(logits[first].shape)}, like those of {first!r}",
                found=f"{tuple(logits[name].shape)}",
                remedy="combine teachers of the same classes and rows",
            )
