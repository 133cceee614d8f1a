"""Logit standardisation: each row divided by its standard deviation, before a loss."""

import torch
from jaxtyping import Float
from torch import Tensor

from .checks import widened

_EPSILON = 1e-7
"""Added to the standard deviation, as in the authors' code."""


def standardise(logits: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
    """Return each row with mean 0 and standard deviation 1: (z - mean z) / (σ + 1e-7).

    σ² = Σ (z - mean z)² / (C - 1), the sample variance, as in the authors' code. Standardise the teacher's rows and the
    student's before any loss; the temperature is then in units of a row's deviation (the authors use 2). The hard term
    takes the student's original logits:

        soft = Distillation(temperature)(standardise(z), soft_targets(standardise(v), temperature))
        loss = weight * soft + hard_cross_entropy(z, labels)

    logits: (rows, classes) float, nats, any constant a row. Returns float32, or float64 for float64. A constant row
    becomes 0, with the finite gradient of σ = 1.
    Source: Sun, Ren, Li, Wang & Cao 2024 (CVPR), "Logit standardization in knowledge distillation", algorithm 1.

    >>> standardise(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    tensor([[-1.0000,  0.0000,  1.0000],
            [ 0.0000,  0.0000,  0.0000]])
    """
    wide = widened(logits)
    # Subtract the maximum first, so that a constant row is exactly 0: the mean is rounded.
    shifted = wide - wide.detach().amax(dim=-1, keepdim=True)
    centred = shifted - shifted.mean(dim=-1, keepdim=True)
    square = centred.square().sum(dim=-1, keepdim=True)
    is_constant = square == 0
    deviation = (torch.where(is_constant, 1.0, square) / max(wide.shape[-1] - 1, 1)).sqrt() + _EPSILON
    return centred / torch.where(is_constant, 1.0, deviation)
