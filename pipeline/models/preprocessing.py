"""Preprocessing of a Hugging Face image processor without its resizing: uint8 pixels in, pixel values out.

An image processor is a file of settings and a class of transformers. The settings that change numbers are computed here,
on the device of the model. A setting that this module does not know is refused by its name. Because a class may do more
than its settings state, the result is compared once with that of the image processor itself, on a few random pixels.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from ...storage.errors import BadDataError
from ..factories.call import describe_exception
from .sources import PREPROCESSOR, read_json

log = logging.getLogger(__name__)
OBEYED: Final = (
    "do_rescale",
    "rescale_factor",
    "rescale_offset",
    "do_normalize",
    "image_mean",
    "image_std",
    "include_top",
    "do_flip_channel_order",
)
"""Settings that change numbers, in the order in which they act."""
SIZING: Final = (
    "do_resize",
    "do_center_crop",
    "do_pad",
    "do_crop_margin",
    "do_thumbnail",
    "do_align_long_axis",
)
"""Switches of steps that are left out, because images come sized from the transfer set."""
IDLE: Final = frozenset(
    {
        # how the left-out steps work
        *("size", "resample", "crop_size", "crop_pct", "pad_size", "size_divisor", "default_to_square"),
        *("keep_aspect_ratio", "ensure_multiple_of", "resize_short", "interpolation", "max_size", "min_size"),
        # names, and the form of arguments and results
        *("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"),
        *("transformers_version", "data_format", "input_data_format", "return_tensors", "device"),
        "disable_grouping",
        # images are arrays already, and label maps and boxes are not images
        *("do_convert_rgb", "do_reduce_labels", "reduce_labels", "do_convert_annotations", "format"),
    }
)
"""Settings that change no number of a sized image."""
_FLOATS = "run the image processor in the transfer set, and keep its pixel values as float32"
_TOLERANCE = 1e-4


class PixelValues(nn.Module):
    """The pixel values of uint8 pixels, by the settings of an image processor."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Mapping[str, Any], channels: int, where: str) -> None:
        """Set scale, mean and std. where: the file in messages. Raises BadDataError for settings that are no numbers."""
        super().__init__()
        self.where = where
        self.scale = _number(settings, "rescale_factor", where) if settings.get("do_rescale") else 1.0
        self.flip = bool(settings.get("do_flip_channel_order"))
        mean, std = [0.0], [1.0]
        if settings.get("do_normalize"):
            mean = _numbers(settings, "image_mean", channels, where)
            std = _numbers(settings, "image_std", channels, where)
        if settings.get("do_rescale") and settings.get("rescale_offset"):
            mean = [value + 1.0 for value in mean]  # pixels - 1 - mean
        if settings.get("include_top"):
            again = _numbers(settings, "image_std", channels, where)
            std = [one * other for one, other in _paired(std, again)]
        for name, values in {"mean": mean, "std": std}.items():
            buffer = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(
        self, pixels: UInt8[Tensor, "batch channels height width"]
    ) -> Float32[Tensor, "batch channels height width"]:
        """Return the pixel values of images."""
        # A model that is spread over devices is not moved, nor are the numbers beside it.
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        values: Tensor = (pixels * self.scale - mean) / std
        return values.flip(-3) if self.flip else values


def pixel_values(transformers: Any, folder: Path, config: Any, channels: int) -> PixelValues:
    """Return the preprocessing of a model's folder, compared with its image processor.

    transformers: the module. config: of the model. channels: of an image.
    Raises BadDataError if the folder has no image processor, or one with other steps than are known here.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise BadDataError(
            str(folder),
            expected=f"{PREPROCESSOR}, which states how uint8 pixels are normalised",
            found=f"no {PREPROCESSOR}",
            remedy="save the image processor there, or pass pixel values as float32",
        )
    stated = read_json(path)
    _check_keys(stated, str(path))
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            str(path), config=config, local_files_only=True, trust_remote_code=False
        )
    except (
        Exception
    ) as error:  # of many kinds: an unknown class, a package that is missing, a setting of another type
        raise _refused(
            path,
            f"an image processor that transformers {transformers.__version__} makes",
            describe_exception(error)[:300],
        ) from error
    _check_class(stated, type(processor).__name__, path)
    settings = {key: getattr(processor, key, None) for key in OBEYED}
    left_out = [key for key in SIZING if getattr(processor, key, None)]
    if left_out:
        log.info("%s: %s left out, as images come sized from the transfer set", path, ", ".join(left_out))
    values = PixelValues(settings, channels, str(path))
    _compare(values, processor, dict.fromkeys(left_out, False), channels, path)
    return values


def _check_keys(stated: Mapping[str, Any], where: str) -> None:
    """Refuse a setting that is on and unknown. Raises BadDataError."""
    for key in sorted(stated.keys() - {*OBEYED, *SIZING, *IDLE}):
        if stated[key]:
            raise _refused(
                where, "settings of the image processor that are known here", _shown(key, stated[key])
            )


def _check_class(stated: Mapping[str, Any], made: str, path: Path) -> None:
    """Refuse another class than the file names, which transformers makes if that class cannot be imported."""
    wanted = str(stated.get("image_processor_type") or stated.get("feature_extractor_type") or "")
    plain = wanted.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if plain and plain != made.removesuffix("Fast").removesuffix("Pil"):
        raise _refused(
            path, f"the image processor {wanted}", f"{made}, as transformers cannot make {wanted} here"
        )


def _compare(
    values: PixelValues, processor: Any, switches: Mapping[str, bool], channels: int, path: Path
) -> None:
    """Compare our pixel values with those of the image processor. switches: its steps to leave out."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, channels, 32, 32), dtype=np.uint8)
    ours, name = values(torch.from_numpy(pixels)), type(processor).__name__
    expected = f"the pixel values of {name}"
    try:
        made = processor(
            images=list(pixels), input_data_format="channels_first", return_tensors="pt", **switches
        )
        theirs = torch.as_tensor(made["pixel_values"], dtype=torch.float32)
    except Exception as error:  # code of transformers that was made for other images
        raise _refused(path, expected, describe_exception(error)[:300]) from error
    if theirs.shape != ours.shape:
        raise _refused(
            path, f"pixel values of shape {tuple(ours.shape)}", f"{tuple(theirs.shape)} from {name}"
        )
    difference = float((ours - theirs).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(theirs.abs().max())):
        on = [key for key in OBEYED if getattr(processor, key, None)]
        raise _refused(
            path, expected, f"values that differ by {difference:.3g} (by {', '.join(on) or 'no setting'})"
        )


def _number(settings: Mapping[str, Any], key: str, where: str) -> float:
    (number,) = _numbers(settings, key, 1, where)
    return number


def _numbers(settings: Mapping[str, Any], key: str, channels: int, where: str) -> list[float]:
    """Return a setting as one number, or as one a channel. Raises BadDataError."""
    found: Any = settings.get(key)
    listed = (
        list(found) if isinstance(found, Sequence | np.ndarray) and not isinstance(found, str) else [found]
    )
    plain = all(isinstance(one, int | float) and not isinstance(one, bool) for one in listed)
    if not plain or len(listed) not in (1, channels) or (key == "image_std" and 0 in listed):
        many = "" if channels == 1 else f", or {channels}"
        raise _refused(where, f"{key} of 1 number{many}", _shown(key, found))
    return [float(one) for one in listed]


def _paired(one: list[float], other: list[float]) -> list[tuple[float, float]]:
    """Return pairs of two lists, of which one may have a single number for all channels."""
    length = max(len(one), len(other))
    return [(one[n % len(one)], other[n % len(other)]) for n in range(length)]


def _shown(key: str, value: object) -> str:
    return f"{key} = {value!r}"[:120]


def _refused(where: object, expected: str, found: str) -> BadDataError:
    return BadDataError(str(where), expected=expected, found=found, remedy=_FLOATS)
