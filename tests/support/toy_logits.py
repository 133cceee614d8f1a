"""Random logits and their gradients for the tests of losses."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ROWS, CLASSES = 512, 10


def random_logits(seed: int, rows: int = ROWS, classes: int = CLASSES, *, zero_mean: bool = True) -> Tensor:
    """Return random logits, (rows, classes) float64 of standard deviation 4."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(scale=4.0, size=(rows, classes)))
    return logits - logits.mean(dim=1, keepdim=True) if zero_mean else logits


def gradient_of(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Return the gradient of each row's own loss: `loss` is a mean over rows."""
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient * len(logits)


def relative_error(approximation: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference, as a share of that of the exact tensor."""
    return float((approximation - exact).norm() / exact.norm())
