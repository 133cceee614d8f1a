"""Networks of timm and torchvision by name, without weights.

Nothing is downloaded: the weights come from a file of the experiment, or are trained here. Parameters keep the library's
names, because a hook and not a layer turns pixels into inputs.

    images         (rows, channels, height, width), or (rows, height, width) of one channel
    uint8 pixels   scaled to 0 … 1, then normalised with `mean` and `std` of each channel
    floats         passed on as the inputs of the network

Published weights come with more than tensors: mean and std, and a switch of the network in torchvision's Inception. A tag
after the name says whose they are ("vgg16.IMAGENET1K_FEATURES", "resnet34.bt_in1k"); without one the library's default
weights are assumed, with a warning where others differ.

Neither library is a dependency: each is imported on first use.
"""

import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.errors import ConfigError
from ..factories.call import describe_exception, suggest
from .networks import with_channels

log = logging.getLogger(__name__)
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
_OWN = {"num_classes", "model_name", "name"}
"""Arguments of the libraries that come from the transfer set, or from the name."""


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
    """Build a freshly initialised network of timm by its name there, such as "resnet18" or "resnet18.a1_in1k".

    mean, std: of each channel; by default those of the weights that the name or its tag stands for. options: further
    arguments of `timm.create_model`, such as `{ drop_path_rate = 0.1 }`. Raises ConfigError.
    """
    timm = import_library("timm")
    more = dict(options or {})
    name, tag = _check(timm, "timm", model, more, input_shape)
    published = {
        full.partition(".")[2]: (tuple(config.mean), tuple(config.std))
        for full, config in timm.models.get_arch_pretrained_cfgs(name).items()
    }
    _check_tag("timm", name, tag, published)
    channels = int(more.pop("in_chans", 1 if len(input_shape) == 2 else input_shape[0]))
    network: nn.Module = timm.create_model(
        model, pretrained=False, num_classes=num_classes, in_chans=channels, **more
    )
    config = getattr(network, "pretrained_cfg", None) or {}
    if not tag and not (mean and std):
        _warn_of_others("timm", name, str(config.get("tag", "")), published)
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

    A tag names published weights, as in "vgg16.IMAGENET1K_FEATURES": the network then is that of
    `get_model("vgg16", weights="IMAGENET1K_FEATURES")`, but for its numbers.
    mean, std: of each channel; by default those of the published weights. options: further arguments of
    `torchvision.models.get_model`. Raises ConfigError.
    """
    models = import_library("torchvision").models
    more = dict(options or {})
    name, tag = _check(models, "torchvision", model, more, input_shape)
    weights = models.get_model_weights(name)
    published = {one.name: _mean_and_std(one.transforms()) for one in weights}
    _check_tag("torchvision", name, tag, published)
    if name.endswith(("googlenet", "inception_v3")):
        more.setdefault("init_weights", not tag)  # their default, of which they warn
    if tag and name.endswith("googlenet"):
        more.setdefault("aux_logits", False)  # torchvision drops its auxiliary heads after loading
    network: Any = models.get_model(name, weights=None, num_classes=num_classes, **more)
    if not published:
        return _with_pixels(network, 3, mean or _IMAGENET_MEAN, std or _IMAGENET_STD)
    chosen = tag or weights.DEFAULT.name
    if hasattr(network, "transform_input") and "transform_input" not in more:
        # Inception and GoogLeNet normalise anew inside, if they are built with published weights.
        network.transform_input = True
        if not tag:
            log.warning(
                "torchvision %s: transform_input is on, as in the published weights; write torchvision = %r for those, or "
                "options = { transform_input = false } for weights that were trained without it",
                name,
                f"{name}.{chosen}",
            )
    if not tag and not (mean and std):
        _warn_of_others("torchvision", name, chosen, published)
    return _with_pixels(network, 3, mean or published[chosen][0], std or published[chosen][1])


_Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std of each channel."""


def _mean_and_std(transforms: Any) -> _Normalisation:
    """Return the numbers of a preset of torchvision; ImageNet's where it states none."""
    mean, std = getattr(transforms, "mean", _IMAGENET_MEAN), getattr(transforms, "std", _IMAGENET_STD)
    return tuple(map(float, mean)), tuple(map(float, std))


def _check_tag(library: str, name: str, tag: str, published: Mapping[str, _Normalisation]) -> None:
    """Refuse a tag that no published weights have. Raises ConfigError."""
    if tag and tag not in published:
        raise ConfigError(
            library,
            expected=f"a tag of the published weights of {name}",
            found=repr(f"{name}.{tag}"),
            remedy=suggest(tag, filter(None, published), f"write {library} = {name!r}"),
        )


def _warn_of_others(library: str, name: str, chosen: str, published: Mapping[str, _Normalisation]) -> None:
    """Warn if the published weights of a network differ in their mean and std, and none was named."""
    used = published.get(chosen)
    others = sorted(tag for tag, numbers in published.items() if tag and numbers != used)
    if used is not None and others:
        log.warning(
            "%s %s: pixels are normalised by mean %s and std %s, as for its weights %s; those of %s differ: name yours, as "
            "in %s = %r, or set mean and std in args",
            library,
            name,
            list(used[0]),
            list(used[1]),
            chosen,
            others[0] + (f" (and {len(others) - 1} more)" if len(others) > 1 else ""),
            library,
            f"{name}.{others[0]}",
        )


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


def _check(
    library: Any, name: str, model: str, options: dict[str, Any], input_shape: Sequence[int]
) -> tuple[str, str]:
    """Return the name of a network and its tag.

    Refuses an unknown name, an address, options that read weights from elsewhere, and inputs that are no images.
    """
    if not _NAME.fullmatch(model):
        raise ConfigError(
            name,
            expected="the name of a network, such as 'resnet18'",
            found=repr(model[:100]),
            remedy="name a network of the library; nothing is downloaded",
        )
    known = library.list_models()
    network, _, tag = model.partition(".")
    if network not in known:
        raise ConfigError(
            name,
            expected=f"one of its {len(known)} networks",
            found=repr(model),
            remedy=suggest(network, known, "correct the name"),
        )
    for key in sorted(options.keys() & _FETCHING):
        raise ConfigError(
            f"args.options.{key}",
            expected="no weights from elsewhere",
            found=f"{key} = {options[key]!r}",
            remedy="remove it, and name a local file in weights",
        )
    for key in sorted(options.keys() & _OWN):
        raise ConfigError(
            f"args.options.{key}",
            expected="options without it, as name and classes are set already",
            found=f"{key} = {options[key]!r}",
            remedy="remove it",
        )
    if len(input_shape) not in (2, 3):
        raise ConfigError(
            "transfer_set",
            expected="images of shape (channels, height, width) or (height, width)",
            found=f"inputs of shape {tuple(input_shape)}",
            remedy="use a transfer set of images, or another teacher",
        )
    return network, tag
