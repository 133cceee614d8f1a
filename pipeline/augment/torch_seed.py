"""Augmentations that draw from a `torch.Generator`.

`torch_seeded` gives it a generator whose seed is a word of the row's own: a pure function of (seed, view, row).

Functions that draw from the global generator of torch, as the transforms of torchvision do when they are called, cannot
be had so: inputs are made by threads, beside a network that may draw from it too. Their functional forms can:
`torchvision.transforms.v2.functional` with numbers that are drawn here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...storage.errors import FactoryError
from .rows import Augmentation


def torch_seeded(function: Callable[..., Any]) -> Augmentation:
    """Make an augmentation of a function (tensor, torch.Generator) -> tensor.

    The tensor is of the input's shape and dtype, on the CPU, and the function may change it; so is the generator.
    The view is as stable as torch's random numbers are: another version of torch may draw others, which is then found
    by the digests of what the teacher saw.

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
    """An object and no closure: a stream is sent to other processes, and its augmentation with it."""

    function: Callable[..., Any]

    def __call__(self, example: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        import torch

        seeded = torch.Generator().manual_seed(int(generator.bit_generator.random_raw()))
        made = self.function(torch.from_numpy(example), seeded)
        if not isinstance(made, torch.Tensor):
            raise FactoryError(
                "torch_seeded",
                expected="a function that returns a tensor",
                found=type(made).__name__,
                remedy="return the tensor, of the shape and dtype that came in",
            )
        array: np.ndarray = made.detach().cpu().numpy()
        return array
