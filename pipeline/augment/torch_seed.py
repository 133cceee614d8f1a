"""Augmentations that draw from a `torch.Generator`.

`torch_seeded` passes a generator whose seed is a pure function of (seed, view, row).

Functions that draw from torch's global generator, such as the transforms of torchvision, are for `transforms.seeded`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...storage.errors import FactoryError
from .rows import Augmentation


def torch_seeded(function: Callable[..., Any]) -> Augmentation:
    """Make an augmentation of a function (tensor, torch.Generator) -> tensor.

    Tensor and generator are on the CPU. The function may change its input, and returns the same dtype.
    Another version of torch may draw other numbers; the digests of the teacher's inputs then refuse the view.

    >>> import torch
    >>> from logitstore.pipeline.augment import row_generator
    >>> noise = torch_seeded(lambda image, generator: image + torch.randn(image.shape, generator=generator))
    >>> image = np.zeros((2, 2), dtype=np.float32)
    >>> bool((noise(image, row_generator(0, 1, 5)) == noise(image, row_generator(0, 1, 5))).all())
    True
    """
    return _TorchSeeded(function)


@dataclass(frozen=True)
class _TorchSeeded:
    """A class instead of a closure, because a stream pickles its augmentation for other processes."""

    function: Callable[..., Any]

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        import torch

        seeded = torch.Generator().manual_seed(int(generator.bit_generator.random_raw()))
        made = self.function(torch.from_numpy(example), seeded)
        if not isinstance(made, torch.Tensor):
            raise FactoryError(
                "torch_seeded",
                expected="a function that returns a Tensor",
                found=f"a function that returns {type(made).__name__}",
                remedy="return a tensor of the dtype of the input",
            )
        array: np.ndarray = made.detach().cpu().numpy()
        return array
