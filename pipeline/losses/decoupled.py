"""DKD: knowledge distillation with the target class weighted apart from the others.

At temperature T let p be the teacher's distribution of a row, q the student's, t the row's label, and p̂, q̂ the
distributions over the other classes alone, p̂_i = p_i / (1 - p_t). Then

    KL(p ‖ q) = TCKD + (1 - p_t) · NCKD
    TCKD = p_t ln(p_t / q_t) + (1 - p_t) ln((1 - p_t) / (1 - q_t))      target class against the rest
    NCKD = Σ_{i ≠ t} p̂_i ln(p̂_i / q̂_i)                                   among the rest

In distillation a confident teacher therefore gives NCKD a small weight. DKD weights both terms independently.

Source: Zhao, Cui, Song, Qiu & Liang 2022 (CVPR), "Decoupled knowledge distillation", equations 5 to 7; weights and T²
as in the authors' code. The code also raises the soft terms from 0 over the first 20 of 240 epochs; this module does
not.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...storage.errors import BadLogitsError
from .base import WeightedLoss
from .checks import check_labels, widened_pair
from .hard import labelled_mean, plus_hard_term


class DecoupledDistillation(WeightedLoss):
    """T² · (α · TCKD + β · NCKD) + w · hard cross-entropy (DKD)."""

    alpha: float
    beta: float

    def __init__(
        self, temperature: float, alpha: float = 1.0, beta: float = 8.0, hard_weight: float = 1.0
    ) -> None:
        """Keep the four numbers; the defaults are those of the authors' code.

        temperature: T, finite, above 0; the authors use 4 on CIFAR-100. alpha, beta, hard_weight: α, β and w, finite,
        0 or more. Raises ConfigError for other numbers.
        """
        super().__init__(temperature=temperature, alpha=alpha, beta=beta, hard_weight=hard_weight)

    def forward(
        self,
        student_logits: Float[Tensor, "rows classes"],
        teacher_logits: Float[Tensor, "rows classes"],
        labels: Int64[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, nats, a mean over the labelled rows; of a perfect student only the hard term remains.

        student_logits, teacher_logits: (rows, classes), nats, any constant a row, two classes or more; of an ensemble
        `ensemble_logits` at this temperature. labels: (rows,) int64, needed whatever the weights; -1 where unknown.
        Every term skips rows without a label, which have no target class. Without any labelled row the loss is 0, with
        a gradient of 0.
        Raises ConfigError without labels, BadLogitsError for other shapes, BadDataError for labels out of range.
        """
        student, teacher = widened_pair(student_logits, teacher_logits)
        if student.shape[1] < 2:
            raise BadLogitsError(
                "student_logits",
                expected="2 or more classes",
                found=f"{student.shape[1]}",
                remedy="use another loss, such as `Distillation`",
            )
        remedy = "pass them (-1 where unknown), or use `Distillation`, which needs none"
        labels = check_labels(labels, student, "decoupled distillation", remedy)
        target = labels.clamp(min=0)[:, None]  # class 0 without a label; `labelled_mean` skips the row
        log_q_target, log_q_rest, log_q_others = _decoupled(student / self.temperature, target)
        log_p_target, log_p_rest, log_p_others = _decoupled(teacher / self.temperature, target)
        target_class = log_p_target.exp() * (log_p_target - log_q_target)
        target_class = target_class + log_p_rest.exp() * (log_p_rest - log_q_rest)
        p_others = log_p_others.scatter(1, target, -torch.inf).exp()
        non_target_classes = (p_others * (log_p_others - log_q_others)).sum(dim=-1)
        rows = self.alpha * target_class + self.beta * non_target_classes
        soft = self.temperature**2 * labelled_mean(rows, labels)
        return plus_hard_term(soft, self.hard_weight, student, labels)


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ln p_t and ln(1 - p_t), (rows,), and ln p̂, (rows, classes), of softmax(logits).

    target: (rows, 1). ln p̂ of the target class is a finite placeholder, so that no infinities are subtracted.
    """
    log_sum = logits.logsumexp(dim=-1)
    log_rest = logits.scatter(1, target, -torch.inf).logsumexp(dim=-1)
    return (
        logits.gather(1, target).squeeze(1) - log_sum,
        log_rest - log_sum,
        logits - log_rest[:, None],
    )
