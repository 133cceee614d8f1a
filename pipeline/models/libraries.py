"""Networks of timm and torchvision by name, without weights.

Nothing is downloaded: the weights come from a file of the experiment's, or from a training here. Their names are those
of the library, as what turns pixels into its inputs is a hook and not a layer.

    uint8 pixels   scaled to 0 … 1, then normalised with `mean` and `std` of each channel
    floats         taken for inputs as the network wants them, and passed on
    images         (rows, channels, height, width), or (rows, height, width) of one channel

Neither library is a dependency: each is imported when a network of it is made.
"""

import importlib
import re
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...storage.errors import ConfigError
from ..factories import describe_exception, suggest
from .networks import with_channels

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""What the classifiers of both libraries are mostly trained with."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FETCHING = frozenset(
    {
        "checkpoint_path",
        "cache_dir",
        "pretrained",
        "pretrained_backbone",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "weights",
        "weights_backbone",
    }
)
"""Arguments of the libraries that read weights from elsewhere."""


class PixelsToInputs:
    """A forward pre-hook that makes the inputs of a network out of what the transfer set gives."""

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the number of channels, and the mean and std of each channel of pixels between 0 and 1."""
        self.channels = channels
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Convert the first argument, (batch, channels, height, width) or (batch, height, width)."""
        inputs, *others = arguments
        return (self.convert(inputs), *others)

    def convert(self, inputs: Tensor) -> Tensor:
        """Convert inputs to floats with the network's number of channels."""
        inputs = with_channels(inputs, self.channels)
        if inputs.dtype != torch.uint8:
            return inputs
        numbers = inputs.to(torch.float32) / 255
        mean = torch.tensor(self.mean, device=inputs.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=inputs.device).view(-1, 1, 1)
        return (numbers - mean) / std


def timm_model(
    model: str,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    options: dict[str, Any] | None = None,
    *,
    input_shape: Sequence[int],
    num_classes: int,
) -> nn.Module:
    """Build a network of timm by its name there, such as "resnet18", freshly initialised.

    mean, std: of each channel; the network's own where they are left out. options: further arguments of
    `timm.create_model`, such as `{ drop_path_rate = 0.1 }`. Raises ConfigError.
    """
    timm = _library("timm")
    _check(timm, "timm", model, options)
    channels = _channels(input_shape)
    more = dict(options or {})
    channels = int(more.pop("in_chans", channels))
    network: nn.Module = timm.create_model(
        model, pretrained=False, num_classes=num_classes, in_chans=channels, **more
    )
    known = getattr(network, "pretrained_cfg", None) or {}
    return _with_pixels(
        network, channels, mean or known.get("mean", IMAGENET_MEAN), std or known.get("std", IMAGENET_STD)
    )


def torchvision_model(
    model: str,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    options: dict[str, Any] | None = None,
    *,
    input_shape: Sequence[int],
    num_classes: int,
) -> nn.Module:
    """Build a classifier of torchvision by its name, such as "resnet18", freshly initialised, of three channels.

    mean, std: of each channel; ImageNet's where they are left out. options: further arguments of
    `torchvision.models.get_model`. Raises ConfigError.
    """
    models = _library("torchvision").models
    _check(models, "torchvision", model, options)
    _channels(input_shape)
    network: nn.Module = models.get_model(model, weights=None, num_classes=num_classes, **(options or {}))
    return _with_pixels(network, 3, mean or IMAGENET_MEAN, std or IMAGENET_STD)


def _with_pixels(network: nn.Module, channels: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    def fitted(values: Sequence[float], key: str) -> Sequence[float]:
        if len(values) == channels or len(values) == 1:
            return values
        if channels == 1:  # a network of grey images: the mean of what is known of colours
            return (sum(values) / len(values),)
        raise ConfigError(
            f"args.{key}", expected=f"{channels} numbers", found=f"{len(values)}", remedy="one a channel"
        )

    network.register_forward_pre_hook(PixelsToInputs(channels, fitted(mean, "mean"), fitted(std, "std")))
    return network


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # half-installed libraries of this kind fail in many ways
        raise ConfigError(
            name,
            expected=f"the package {name}",
            found=describe_exception(error)[:300],
            remedy=f"pip install {name}, in the version for the torch that is installed",
        ) from error


def _check(library: Any, name: str, model: str, options: dict[str, Any] | None) -> None:
    """Refuse an unknown name, one that is an address, and options that read weights from elsewhere."""
    if not _NAME.fullmatch(model):
        raise ConfigError(
            name,
            expected="the name of a network, such as 'resnet18'",
            found=repr(model[:100]),
            remedy="name a network of the library; nothing is downloaded",
        )
    known = library.list_models()
    if model.partition(".")[0] not in known:
        raise ConfigError(
            name,
            expected=f"one of its {len(known)} networks",
            found=repr(model),
            remedy=suggest(model, known) if len(known) < 10 else _near(model, known),
        )
    for key in options or {}:
        if key in _FETCHING:
            raise ConfigError(
                f"args.options.{key}",
                expected="no weights from elsewhere",
                found=repr((options or {})[key]),
                remedy="name a local file in weights",
            )


def _near(model: str, known: list[str]) -> str:
    near = suggest(model, known)
    return near if near.startswith("did") else "correct the name"


def _channels(input_shape: Sequence[int]) -> int:
    if len(input_shape) not in (2, 3):
        raise ConfigError(
            "transfer_set",
            expected="images, (channels, height, width) or (height, width)",
            found=f"inputs of shape {tuple(input_shape)}",
            remedy="take another transfer set for this teacher, or another teacher",
        )
    return 1 if len(input_shape) == 2 else int(input_shape[0])
