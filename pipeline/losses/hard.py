"""Cross-entropy with labels."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ...storage.errors import ConfigError
from .checks import check_labels, widened


def hard_cross_entropy(
    logits: Float[Tensor, "rows classes"], labels: Int64[Tensor, "rows"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of q = softmax(logits) against labels, nats, over the labelled rows.

    A row of label y costs (1 - s) · (-ln q_y) + s · mean over the classes of -ln q_c, with s = label_smoothing.
    Without any labelled row the mean is 0, with a gradient of 0.

    labels: (rows,) int64, -1 where unknown.
    label_smoothing: the share of the target that is spread evenly over all classes, from 0 to below 1.
    Raises ConfigError for another label_smoothing, BadDataError for labels of other rows or classes.
    Source: Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", section 7.

    >>> hard_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(0.6931)
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(
            "label_smoothing",
            expected="a number from 0 to below 1",
            found=str(label_smoothing),
            remedy="correct label_smoothing",
        )
    wide = widened(logits)
    labels = check_labels(labels, wide, "a cross-entropy with labels", remedy="pass them (-1 where unknown)")
    return _cross_entropy(wide, labels, label_smoothing)


def plus_hard_term(loss: Tensor, hard_weight: float, logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return loss + hard_weight · cross-entropy with the labels; a weight of 0 needs no labels.

    logits: of the student, widened. Raises ConfigError without labels if `hard_weight` is above 0.
    """
    if hard_weight == 0.0:
        return loss
    remedy = "pass them (-1 where unknown), or set hard_weight to 0"
    labels = check_labels(labels, logits, f"a hard_weight of {hard_weight}", remedy)
    return loss + hard_weight * _cross_entropy(logits, labels)


def labelled_mean(row_losses: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of the (rows,) losses over labelled rows; without any, 0 with a gradient of 0."""
    labelled = labels >= 0
    return torch.where(labelled, row_losses, 0.0).sum() / labelled.sum().clamp(min=1)


def _cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing)
    return total / (labels != -1).sum().clamp(min=1)
