"""Distillation: cross-entropy with soft targets, plus cross-entropy with labels.

T² times the cross-entropy of q = softmax(z / T) against the soft targets, plus `hard_weight` times the
cross-entropy of softmax(z) against the labels. The gradient of the soft term falls as 1/T², so the factor T² keeps
the balance of the two terms at every temperature.

Source: Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network", section 2.
"""

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from .base import WeightedLoss
from .checks import check_floating, check_probabilities, check_same_shape, mean_over_rows, widened
from .hard import plus_hard_term


class Distillation(WeightedLoss):
    """T² · soft cross-entropy + w · hard cross-entropy, of the same student logits.

    The soft term is at temperature T, the hard one at 1. The soft term has weight 1; the paper's speech experiment
    uses w = 0.5.
    """

    def __init__(self, temperature: float, hard_weight: float = 0.0) -> None:
        """Keep the two numbers.

        temperature: T of the targets, finite, above 0. hard_weight: w, finite, 0 or more.
        Raises ConfigError for other numbers.
        """
        super().__init__(temperature=temperature, hard_weight=hard_weight)

    def forward(
        self,
        student_logits: Float[Tensor, "rows classes"],
        targets: Float[Tensor, "rows classes"],
        labels: Int64[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, nats, a mean over rows.

        student_logits: (rows, classes). targets: (rows, classes), probabilities at this temperature, from
        `soft_targets`. labels: (rows,) int64, -1 where unknown; the hard term is the mean over labelled rows, or 0
        without any.
        The soft term's gradient is T · (q - p) / rows, T² times equation 2. The loss of a perfect student is T² times
        the entropy of the targets.
        Raises ConfigError without labels if `hard_weight` is above 0, BadLogitsError for other shapes, and on the CPU
        for logits in place of probabilities.
        """
        student = widened(student_logits, "student_logits")
        check_same_shape(student, check_floating(targets, "targets"), "targets")
        check_probabilities(targets)
        log_q = F.log_softmax(student / self.temperature, dim=-1)
        soft = mean_over_rows(-(targets.to(log_q.dtype) * log_q).sum(dim=-1))
        return plus_hard_term(self.temperature**2 * soft, self.hard_weight, student, labels)
