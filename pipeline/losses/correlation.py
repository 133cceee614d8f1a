"""DIST: a student whose predictions correlate with its teacher's.

With p = softmax(v / T) and q = softmax(z / T) of a batch of B rows and C classes, and ρ Pearson's correlation,

    inter-class   1 - 1/B Σ_rows    ρ(q_row, p_row)           relations of the classes in a row
    intra-class   1 - 1/C Σ_classes ρ(q_·class, p_·class)     relations of the rows in a class

Source: Huang, You, Wang, Qian & Xu 2022 (NeurIPS), "Knowledge distillation from a stronger teacher".
Weights, T and T² as in the authors' code. The code adds 1e-8 to the product of the two norms; this module does not.
At high temperatures, and for classes that no row resembles, the constant would dominate the denominator.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .base import WeightedLoss
from .checks import widened_pair
from .hard import plus_hard_term


class Dist(WeightedLoss):
    """T² · (β · inter-class + γ · intra-class) + w · hard cross-entropy (DIST)."""

    inter: float
    intra: float

    def __init__(
        self, temperature: float = 1.0, inter: float = 1.0, intra: float = 1.0, hard_weight: float = 1.0
    ) -> None:
        """Keep the four numbers; the defaults are those of the authors' code.

        temperature: T, finite, above 0. inter, intra, hard_weight: β, γ and w, finite, 0 or more.
        A correlation does not shrink as T grows, so T² makes the soft terms large: tune the weights with T.
        Raises ConfigError for other numbers.
        """
        super().__init__(temperature=temperature, inter=inter, intra=intra, hard_weight=hard_weight)

    def forward(
        self,
        student_logits: Float[Tensor, "rows classes"],
        teacher_logits: Float[Tensor, "rows classes"],
        labels: Int64[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss: without the hard term from 0, of a perfect student, to 2 · T² · (β + γ).

        student_logits, teacher_logits: (rows, classes), nats, any constant a row; of an ensemble `ensemble_logits` at
        this temperature. labels: (rows,) int64, -1 where unknown.
        The correlation of a constant row or column counts as 0, with a finite gradient: a batch of one row learns
        nothing from its columns.
        Raises ConfigError without labels if `hard_weight` is above 0, BadLogitsError for other shapes.
        """
        student, teacher = widened_pair(student_logits, teacher_logits)
        if not len(student):  # a rank's share of a step may be empty
            return plus_hard_term(student.sum(), self.hard_weight, student, labels)
        log_q = torch.log_softmax(student / self.temperature, dim=-1)
        log_p = torch.log_softmax(teacher / self.temperature, dim=-1)
        inter = 1 - _correlation(log_q, log_p, dim=1).mean()
        intra = 1 - _correlation(log_q, log_p, dim=0).mean()
        soft = self.temperature**2 * (self.inter * inter + self.intra * intra)
        return plus_hard_term(soft, self.hard_weight, student, labels)


def _correlation(log_q: Tensor, log_p: Tensor, dim: int) -> Tensor:
    """Compute Pearson's correlation of exp(log_q) and exp(log_p) along a dimension; 0 where either is constant."""
    return (_unit_vectors(log_q, dim) * _unit_vectors(log_p, dim)).sum(dim=dim)


def _unit_vectors(log_probabilities: Tensor, dim: int) -> Tensor:
    """Subtract the mean of the probabilities and divide by their norm, along a dimension.

    The probabilities are scaled to a maximum of 1, which leaves a correlation as it is: the squares of small ones do
    not underflow. A vector that is constant up to rounding is divided by 1 instead of a norm of 0 or of noise.
    """
    largest = log_probabilities.detach().amax(dim=dim, keepdim=True)
    scaled = torch.exp(log_probabilities - largest)
    centred = scaled - scaled.mean(dim=dim, keepdim=True)
    square = centred.square().sum(dim=dim, keepdim=True)
    noise = 4 * torch.finfo(square.dtype).eps * (1 + largest.abs())
    is_constant = square <= scaled.shape[dim] * noise.square()
    return centred / torch.where(is_constant, 1.0, square).sqrt()
