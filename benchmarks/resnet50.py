"""A teacher of the size of ResNet-50, without a library that brings one.

It has bottleneck blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions in four stages (3, 4, 6, 3). The stride is in
the 3 x 3 convolution. There are 25.6 million parameters, and 4.1 billion multiplications for an image of 224
x 224. Weights are as initialised. Source: He et al. 2016, "Deep residual learning".
"""

from collections.abc import Sequence

from torch import Tensor, nn

EXPANSION = 4
"""Output channels of a block for each channel of its 3 x 3 convolution."""


class Bottleneck(nn.Module):
    """A residual block."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.body = nn.Sequential(
            *_convolution(given, width, 1, 1),
            nn.ReLU(inplace=True),
            *_convolution(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *_convolution(width, wide, 1, 1),
        )
        same = given == wide and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity() if same else nn.Sequential(*_convolution(given, wide, 1, stride))
        )
        self.last = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block: (batch, channels, height, width)."""
        made: Tensor = self.last(self.body(inputs) + self.shortcut(inputs))
        return made


def _convolution(given: int, made: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
    layer = nn.Conv2d(given, made, kernel, stride, kernel // 2, bias=False)
    return layer, nn.BatchNorm2d(made)


class ResNet(nn.Module):
    """A residual network of uint8 images (batch, 3, height, width): logits (batch, classes)."""

    def __init__(self, num_classes: int, depths: Sequence[int], width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
        )
        blocks: list[nn.Module] = []
        given = width
        for stage, depth in enumerate(depths):
            for number in range(depth):
                blocks.append(Bottleneck(given, width << stage, 2 if stage and not number else 1))
                given = EXPANSION * (width << stage)
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(given, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits, nats."""
        scaled = inputs.to(self.head.weight.dtype).sub_(127.5).div_(64)
        logits: Tensor = self.head(self.stages(self.stem(scaled)).mean((2, 3)))
        return logits


def resnet50(num_classes: int) -> ResNet:
    """Build the whole network."""
    return ResNet(num_classes, (3, 4, 6, 3), 64)


def tiny_resnet(num_classes: int) -> ResNet:
    """Build a small network of the same form, for a CPU."""
    return ResNet(num_classes, (1, 1, 1, 1), 8)
