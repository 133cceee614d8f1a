"""Networks of timm and torchvision by name, without weights.

Nothing is downloaded: the weights come from a file of the experiment, or are trained here. Parameters keep the library's
names, because a hook and not a layer turns pixels into inputs.

    images         (rows, channels, height, width), or (rows, height, width) of one channel
    uint8 pixels   scaled to 0 … 1, then normalised with `mean` and `std` of each channel
    floats         passed on as the inputs of the network

Neither library is a dependency: each is imported on first use.
"""

import importlib
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.errors import ConfigError
from ..factories import describe_exception, suggest
from .networks import with_channels

# The mean and std that most classifiers of both libraries were trained with.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FETCHING = {
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_backbone",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "weights",
    "weights_backbone",
}
"""Arguments of the libraries that read weights from elsewhere."""


class PixelsToInputs:
    """A forward pre-hook that converts inputs of the transfer set to inputs of a network."""

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the number of channels, and the mean and std of each channel of pixels between 0 and 1."""
        self.channels = channels
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Convert the first argument, (batch, channels, height, width) or (batch, height, width)."""
        inputs: Tensor = with_channels(arguments[0], self.channels)
        if inputs.dtype == torch.uint8:
            mean = torch.tensor(self.mean, device=inputs.device).view(-1, 1, 1)
            std = torch.tensor(self.std, device=inputs.device).view(-1, 1, 1)
            inputs = (inputs.to(torch.float32) / 255 - mean) / std
        return (inputs, *arguments[1:])


def timm_model(
    model: str,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    options: dict[str, Any] | None = None,
    *,
    input_shape: Sequence[int],
    num_classes: int,
) -> nn.Module:
    """Build a freshly initialised network of timm by its name there, such as "resnet18".

    mean, std: of each channel; by default the network's own. options: further arguments of `timm.create_model`, such as
    `{ drop_path_rate = 0.1 }`. Raises ConfigError.
    """
    timm = import_library("timm")
    more = dict(options or {})
    _check(timm, "timm", model, more, input_shape)
    channels = int(more.pop("in_chans", 1 if len(input_shape) == 2 else input_shape[0]))
    network: nn.Module = timm.create_model(
        model, pretrained=False, num_classes=num_classes, in_chans=channels, **more
    )
    config = getattr(network, "pretrained_cfg", None) or {}
    return _with_pixels(
        network, channels, mean or config.get("mean", _IMAGENET_MEAN), std or config.get("std", _IMAGENET_STD)
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
    """Build a freshly initialised classifier of torchvision by its name, such as "resnet18", of three channels.

    mean, std: of each channel; by default ImageNet's. options: further arguments of `torchvision.models.get_model`.
    Raises ConfigError.
    """
    models = import_library("torchvision").models
    more = dict(options or {})
    _check(models, "torchvision", model, more, input_shape)
    network: nn.Module = models.get_model(model, weights=None, num_classes=num_classes, **more)
    return _with_pixels(network, 3, mean or _IMAGENET_MEAN, std or _IMAGENET_STD)


def import_library(name: str) -> Any:
    """Import an optional package. Raises ConfigError if it is not installed or fails."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # half-installed libraries of this kind fail in many ways
        raise ConfigError(
            name,
            expected=f"the package {name}",
            found=describe_exception(error)[:300],
            remedy=f"pip install {name}, in the version for the installed torch",
        ) from error


def _with_pixels(network: nn.Module, channels: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    def fitted(values: Sequence[float], key: str) -> Sequence[float]:
        if len(values) in (channels, 1):
            return values
        if channels == 1:  # a network of grey images takes the mean of the colours
            return (sum(values) / len(values),)
        raise ConfigError(
            f"args.{key}",
            expected=f"{channels} numbers",
            found=f"{len(values)} numbers",
            remedy="give one number per channel",
        )

    network.register_forward_pre_hook(PixelsToInputs(channels, fitted(mean, "mean"), fitted(std, "std")))
    return network


def _check(library: Any, name: str, model: str, options: dict[str, Any], input_shape: Sequence[int]) -> None:
    """Refuse an unknown name, an address, options that read weights from elsewhere, and inputs that are no images."""
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
            remedy=suggest(model, known, "correct the name"),
        )
    for key in sorted(options.keys() & _FETCHING):
        raise ConfigError(
            f"args.options.{key}",
            expected="no weights from elsewhere",
            found=f"{key} = {options[key]!r}",
            remedy="remove it, and name a local file in weights",
        )
    if len(input_shape) not in (2, 3):
        raise ConfigError(
            "transfer_set",
            expected="images of shape (channels, height, width) or (height, width)",
            found=f"inputs of shape {tuple(input_shape)}",
            remedy="use a transfer set of images, or another teacher",
        )
