"""Logit standardisation: each row divided by its standard deviation, before a loss."""

import torch
from jaxtyping import Float
from torch import Tensor

from .checks import widened

_EPSILON = 1e-7
"""Added to the standard deviation, as in the authors' code."""


def standardise(logits: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
    """Return each row with mean 0 and standard deviation 1: (z - mean z) / (σ + 1e-7).

    σ² = Σ (z - mean z)² / (C - 1), the sample's, as in the authors' code. It goes before any loss, on the teacher's
    rows and on the student's; the temperature is then in units of the row's deviation (the authors have 2), and
    the hard term takes the student's logits as they are:

        soft = Distillation(temperature)(standardise(z), soft_targets(standardise(v), temperature))
        loss = weight * soft + hard_cross_entropy(z, labels)

    logits: (rows, classes) float, nats, any constant a row. Returns float32, float64 where they are; a constant row
    becomes 0, with a gradient as if σ were 1 there: finite, and it leads away from it.
    Source: Sun, Ren, Li, Wang & Cao 2024 (CVPR), "Logit standardization in knowledge distillation", algorithm 1.

    >>> standardise(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    tensor([[-1.0000,  0.0000,  1.0000],
            [ 0.0000,  0.0000,  0.0000]])
    """
    wide = widened(logits)
    # The largest is taken off first, so that a constant row is 0 exactly: its mean is subject to rounding.
    shifted = wide - wide.detach().amax(dim=-1, keepdim=True)
    centred = shifted - shifted.mean(dim=-1, keepdim=True)
    square = centred.square().sum(dim=-1, keepdim=True)
    is_constant = square == 0
    deviation = (torch.where(is_constant, 1.0, square) / max(wide.shape[-1] - 1, 1)).sqrt() + _EPSILON
    return centred / torch.where(is_constant, 1.0, deviation)
