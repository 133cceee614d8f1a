"""Logit matching: the squared difference of centred logits.

Source: Bucila, Caruana & Niculescu-Mizil 2006, "Model compression", as a limit of distillation: Hinton, Vinyals &
Dean 2015, section 2.1.
"""

from jaxtyping import Float, Int64
from torch import Tensor

from .base import WeightedLoss
from .checks import mean_over_rows, widened_pair
from .hard import plus_hard_term


def logit_matching(
    student_logits: Float[Tensor, "rows classes"], teacher_logits: Float[Tensor, "rows classes"]
) -> Float[Tensor, ""]:
    """Return half the squared distance of the zero-meaned logits, summed over classes, mean over rows.

    The gradient is (z - v) / rows with both rows zero-meaned. For T → ∞ the gradient of T² · soft cross-entropy
    approaches it, divided by the number of classes (equation 4), with a relative error that falls as 1/T. The limit
    needs zero means, because a softmax ignores a constant that is added to a row.
    Raises BadLogitsError if the shapes differ.

    >>> import torch
    >>> logit_matching(torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 5.0]]))
    tensor(1.)
    """
    student, teacher = widened_pair(student_logits, teacher_logits)
    student = student - student.mean(dim=-1, keepdim=True)
    teacher = teacher - teacher.mean(dim=-1, keepdim=True)
    return 0.5 * mean_over_rows((student - teacher).square().sum(dim=-1))


class LogitMatching(WeightedLoss):
    """½ Σ (z - v)² of zero-mean rows, + w · hard cross-entropy.

    With C classes, the soft term is C times that of `Distillation` at a high temperature. The same balance needs a
    `hard_weight` C times as large; the same step a learning rate C times as small.
    """

    def __init__(self, hard_weight: float = 0.0) -> None:
        """Keep the number. hard_weight: w, finite, 0 or more. Raises ConfigError for another number."""
        super().__init__(hard_weight=hard_weight)

    def forward(
        self,
        student_logits: Float[Tensor, "rows classes"],
        teacher_logits: Float[Tensor, "rows classes"],
        labels: Int64[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, nats squared, a mean over rows; of a perfect student only the hard term remains.

        student_logits, teacher_logits: (rows, classes), nats, any constant a row. labels: (rows,) int64, -1 where
        unknown. Raises ConfigError without labels if `hard_weight` is above 0, BadLogitsError for other shapes.
        """
        student, teacher = widened_pair(student_logits, teacher_logits)
        return plus_hard_term(logit_matching(student, teacher), self.hard_weight, student, labels)
