"""How do grey images become inputs of a network that takes colours?"""

from jaxtyping import Shaped
from torch import Tensor


def with_channels(inputs: Shaped[Tensor, "batch ..."], channels: int) -> Shaped[Tensor, "batch ..."]:
    """Images of as many channels, (batch, channels, height, width): the one that there is stands for each.

    inputs: (batch, height, width), or (batch, 1, height, width); what is neither is returned as it is.

    >>> import torch
    >>> with_channels(torch.zeros(2, 5, 4), 3).shape
    torch.Size([2, 3, 5, 4])
    """
    if inputs.ndim == 3:
        inputs = inputs.unsqueeze(1)
    if inputs.ndim == 4 and inputs.shape[1] == 1 != channels:
        inputs = inputs.expand(-1, channels, -1, -1)
    return inputs
