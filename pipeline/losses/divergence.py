"""The Kullback-Leibler divergence from a student to its soft targets, as a figure to watch: no gradient flows.

With p the targets and q = softmax(z / T), KL(p ‖ q) = Σ p ln p - Σ p ln q: the cross-entropy that a distillation minimises,
less the entropy of the targets, which no student changes. At a high T the entropy is nearly all of it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ...storage.checks import check_temperature
from .checks import check_floating, check_probabilities, check_same_shape, widened


@torch.no_grad()
def entropy(probabilities: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows"]:
    """Return the entropy of each row of probabilities, nats; a class of probability 0 adds nothing.

    >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([0.6931, 0.0000])
    """
    # Faster than torch.special.entr on a CPU. p · ln p of the smallest float is 0 to rounding.
    smallest = torch.finfo(probabilities.dtype).tiny
    return (probabilities * -probabilities.clamp(min=smallest).log()).sum(dim=-1)


@torch.no_grad()
def kl_divergence(
    student_logits: Float[Tensor, "rows classes"],
    targets: Float[Tensor, "rows classes"],
    temperature: float = 1.0,
) -> Float[Tensor, "rows"]:
    """Return KL(targets ‖ softmax(student_logits / temperature)) of each row, nats, 0 of a perfect student.

    student_logits: (rows, classes), any constant a row. targets: probabilities at this temperature, of `soft_targets`.
    Raises ConfigError for a temperature that is not above 0, BadLogitsError for other shapes.

    >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([0.6931])
    """
    check_temperature(temperature)
    student = widened(student_logits, "student_logits")
    check_same_shape(student, check_floating(targets, "targets"), "targets")
    check_probabilities(targets)
    log_q = torch.log_softmax(student / temperature, dim=-1)
    crossed = -(targets.to(log_q.dtype) * log_q).sum(dim=-1)
    return (crossed - entropy(targets.to(log_q.dtype))).clamp(min=0.0)


@torch.no_grad()
def from_cross_entropy(
    value: Float[Tensor, ""], targets: Float[Tensor, "rows classes"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean KL of a batch whose T² · cross-entropy with the targets, a mean over rows, is known."""
    rows = max(len(targets), 1)
    kl = torch.sub(value * temperature**-2, entropy(targets).sum(), alpha=1 / rows)
    return kl.clamp(min=0.0)
