"""Small networks of our own: a multilayer perceptron and a convolutional net.

`mlp` is the paper's: fully connected layers with dropout and a bound on the norm of each hidden unit's weights. `convnet`
is a small convolutional net. Both take the inputs of a transfer set (uint8 pixels or floats) and return plain logits.

Names of parameters depend on the layers alone, never on dropout: `hidden.<n>`, `features.<n>`, `head`. Weights are drawn
from torch's global generator: call `torch.manual_seed` before.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, prod

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage.errors import BadDataError, ConfigError


class Pixels(nn.Module):
    """The first layer: scales uint8 0 … 255 to 0 … 1, and converts all inputs to the dtype of the module."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A buffer, as `.to()` moves and converts it with the weights.
        self.register_buffer("scale", torch.tensor(255.0), persistent=False)

    def forward(self, inputs: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Convert inputs of any shape."""
        numbers = inputs.to(self.scale.dtype)
        return numbers / self.scale if inputs.dtype == torch.uint8 else numbers


class MLP(nn.Module):
    """A fully connected network of ReLU units, made by `mlp`."""

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden: Sequence[int],
        num_classes: int,
        *,
        dropout: float,
        input_dropout: float,
        max_norm: float | None,
    ) -> None:
        """Make the layers; the arguments are those of `mlp`."""
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.dropout, self.input_dropout, self.max_norm = dropout, input_dropout, max_norm
        self.pixels = Pixels()
        widths = [prod(self.input_shape), *hidden]
        self.hidden = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Return the logits, nats, of inputs (batch, *input_shape)."""
        _check_inputs("mlp", inputs, self.input_shape)
        units = F.dropout(self.pixels(inputs).flatten(1), self.input_dropout, self.training)
        for layer in self.hidden:
            units = F.dropout(F.relu(layer(units)), self.dropout, self.training)
        logits: Tensor = self.head(units)
        return logits

    @torch.no_grad()
    def apply_constraints(self) -> None:
        """Scale down, in place, the weights of each hidden unit whose norm is above `max_norm`, if it is set.

        The training loop calls this after every step of the optimiser.
        Source: Hinton et al. 2012, "Improving neural networks by preventing co-adaptation", appendix A.
        """
        if self.max_norm is not None:
            for layer in self.hidden:
                assert isinstance(layer, nn.Linear)
                layer.weight.renorm_(p=2, dim=0, maxnorm=self.max_norm)


class ConvNet(nn.Module):
    """Stages of convolution, ReLU and 2 x 2 maximum, then fully connected layers, made by `convnet`."""

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int],
        hidden: Sequence[int],
        num_classes: int,
        *,
        kernel: int,
        dropout: float,
    ) -> None:
        """Make the layers; the arguments are those of `convnet`."""
        super().__init__()
        self.input_shape, self.dropout = tuple(input_shape), dropout
        self.pixels = Pixels()
        planes, height, width = (1, *input_shape) if len(input_shape) == 2 else input_shape
        self.features = nn.ModuleList(
            nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2)
            for fan_in, fan_out in pairwise([planes, *channels])
        )
        shrunk = 2 ** len(channels)
        widths = [channels[-1] * (height // shrunk) * (width // shrunk), *hidden]
        self.hidden = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Return the logits, nats, of inputs (batch, *input_shape)."""
        _check_inputs("convnet", inputs, self.input_shape)
        units = self.pixels(inputs)
        if len(self.input_shape) == 2:
            units = units.unsqueeze(1)
        for stage in self.features:
            units = F.max_pool2d(F.relu(stage(units)), 2)
        units = F.dropout(units.flatten(1), self.dropout, self.training)
        for layer in self.hidden:
            units = F.dropout(F.relu(layer(units)), self.dropout, self.training)
        logits: Tensor = self.head(units)
        return logits


def mlp(
    hidden: Sequence[int],
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    max_norm: float | None = None,
    *,
    input_shape: Sequence[int],
    num_classes: int,
) -> MLP:
    """Make a fully connected network.

    hidden: units of each hidden layer; an empty list is softmax regression.
    dropout: probability that a hidden unit is dropped, 0 ≤ p < 1. input_dropout: the same for inputs.
    max_norm: maximum Euclidean norm of each hidden unit's incoming weights (`MLP.apply_constraints`); the paper's teacher has
        √15 = 3.87.
    input_shape: of one input, without the batch. num_classes: logits of one input.
    Raises ConfigError if a number is out of range.
    Source: Hinton et al. 2015, section 3: teacher [1200, 1200] with dropout 0.5 and 0.2, student [800, 800].

    >>> count_parameters(mlp([1200, 1200], input_shape=(28, 28), num_classes=10))
    2395210
    """
    _check_sizes("mlp", hidden=hidden, input_shape=input_shape, num_classes=[num_classes])
    _check_probabilities("mlp", dropout=dropout, input_dropout=input_dropout)
    if max_norm is not None and not (isfinite(max_norm) and max_norm > 0):
        raise _refused("mlp", "max_norm above 0", max_norm, "correct max_norm, or remove it")
    return MLP(
        input_shape, hidden, num_classes, dropout=dropout, input_dropout=input_dropout, max_norm=max_norm
    )


def convnet(
    channels: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (128,),
    kernel: int = 3,
    dropout: float = 0.0,
    *,
    input_shape: Sequence[int],
    num_classes: int,
) -> ConvNet:
    """Make a small convolutional network.

    channels: of each stage; a stage halves height and width. hidden: units of each fully connected layer.
    kernel: side of the convolutions, pixels, odd.
    dropout: probability that a unit before a fully connected layer is dropped, 0 ≤ p < 1.
    input_shape: (height, width) or (channels, height, width). num_classes: logits of one input.
    Raises ConfigError if a number is out of range or the images are too small for the stages.

    >>> count_parameters(convnet([4], [], input_shape=(8, 8), num_classes=10))
    690
    """
    _check_sizes(
        "convnet", channels=channels, hidden=hidden, input_shape=input_shape, num_classes=[num_classes]
    )
    _check_probabilities("convnet", dropout=dropout)
    if kernel < 1 or kernel % 2 == 0:
        raise _refused("convnet", "an odd kernel", kernel, "use 3 or 5")
    if len(input_shape) not in (2, 3):
        wanted, remedy = (
            "inputs of shape (height, width) or (channels, height, width)",
            "use mlp, or your own model",
        )
        raise _refused("convnet", wanted, f"inputs of shape {tuple(input_shape)}", remedy)
    height, width = input_shape[-2:]
    if not channels or min(height, width) < 2 ** len(channels):
        stages = f"1 to {min(height, width).bit_length() - 1} stages for images of {height} x {width}"
        raise _refused("convnet", stages, f"{len(channels)} stages ({list(channels)})", "correct channels")
    return ConvNet(input_shape, channels, hidden, num_classes, kernel=kernel, dropout=dropout)


def count_parameters(module: nn.Module) -> int:
    """Return the number of learned numbers of a module: without buffers, shared weights once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _check_inputs(where: str, inputs: Tensor, input_shape: tuple[int, ...]) -> None:
    if inputs.shape[1:] != input_shape:
        raise BadDataError(
            where,
            expected=f"inputs of shape {('batch', *input_shape)}".replace("'", ""),
            found=f"inputs of shape {tuple(inputs.shape)}",
            remedy="pass inputs of the shape that the model was made for",
        )


def _check_sizes(where: str, **sizes: Sequence[int]) -> None:
    for name, numbers in sizes.items():
        if any(number < 1 for number in numbers):
            raise _refused(where, f"{name} of 1 or more", list(numbers), f"correct {name}")


def _check_probabilities(where: str, **probabilities: float) -> None:
    for name, probability in probabilities.items():
        if not 0.0 <= probability < 1.0:
            raise _refused(where, f"{name} from 0 to below 1", probability, f"correct {name}")


def _refused(where: str, expected: str, found: object, remedy: str) -> ConfigError:
    return ConfigError(where, expected=expected, found=str(found), remedy=remedy)


def with_channels(inputs: Shaped[Tensor, "batch ..."], channels: int) -> Shaped[Tensor, "batch ..."]:
    """Return images (batch, channels, height, width), with a single channel repeated.

    inputs: (batch, height, width) or (batch, 1, height, width); other inputs are returned unchanged.

    >>> import torch
    >>> with_channels(torch.zeros(2, 5, 4), 3).shape
    torch.Size([2, 3, 5, 4])
    """
    if inputs.ndim == 3:
        inputs = inputs.unsqueeze(1)
    if inputs.ndim == 4 and inputs.shape[1] == 1 != channels:
        inputs = inputs.expand(-1, channels, -1, -1)
    return inputs
