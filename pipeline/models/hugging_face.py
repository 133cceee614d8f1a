"""Teachers from folders of Hugging Face transformers: arrays in, plain logits out.

From a local folder alone, as `save_pretrained` writes it: nothing is asked of any server, only safetensors are read,
and code that a model brings along is never run. A model with a head for image or for sequence classification will
do; a weight that the folder lacks is an error, not a random number.

    images      uint8 pixels: scaled and normalised as preprocessor_config.json says, never resized
                floats: taken for pixel values as the model wants them, and passed on
                (rows, channels, height, width), or (rows, height, width) of one channel
    sequences   int64 token ids, (rows, length), padded; what is not the pad id of config.json is attended to

transformers is no dependency: it is imported when such a teacher is loaded.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ...storage.errors import BadDataError, ConfigError
from ..factories import describe_exception
from .networks import with_channels
from .sources import CONFIG, PREPROCESSOR, read_json, unchanged

log = logging.getLogger(__name__)
_HEADS = {"ForImageClassification": "image", "ForSequenceClassification": "sequence"}


class ImageClassifier(nn.Module):
    """A model of pixel values."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, channels: int, preprocessing: dict[str, Any] | None, where: str
    ) -> None:
        """Keep what turns uint8 pixels into pixel values; None of it where the folder does not say."""
        super().__init__()
        self.model = model
        self.channels = channels
        self.where = where
        self.scale: float | None = None
        mean, std = [0.0], [1.0]
        if preprocessing is not None:
            self.scale = 1.0
            if preprocessing.get("do_rescale", True):
                self.scale = float(preprocessing.get("rescale_factor", 1 / 255))
            if preprocessing.get("do_normalize", True):
                mean, std = preprocessing.get("image_mean") or mean, preprocessing.get("image_std") or std
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Return the logits of images (batch, channels, height, width), or (batch, height, width) of one channel."""
        inputs = with_channels(inputs, self.channels)
        if inputs.dtype == torch.uint8:
            if self.scale is None:
                raise BadDataError(
                    self.where,
                    expected=f"{PREPROCESSOR}, which states how uint8 pixels are normalised",
                    found=f"no {PREPROCESSOR}",
                    remedy="save the image processor there, or pass pixel values as float32",
                )
            inputs = (inputs * self.scale - self.mean) / self.std
        elif not inputs.is_floating_point():
            raise BadDataError(
                self.where,
                expected="images, uint8 pixels or float pixel values",
                found=f"inputs of {str(inputs.dtype).removeprefix('torch.')}",
                remedy="take a transfer set of images for this teacher",
            )
        return _logits(self.model(pixel_values=inputs.to(_dtype(self.model)), return_dict=True))


class SequenceClassifier(nn.Module):
    """A model of token ids."""

    def __init__(self, model: nn.Module, pad_id: int | None, where: str) -> None:
        """pad_id: of the tokens that are not attended to; None where there are none."""
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.where = where

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Return the logits of rows of token ids (batch, length), integers."""
        if inputs.ndim != 2 or inputs.is_floating_point():
            raise BadDataError(
                self.where,
                expected="rows of token ids, int64 of shape (rows, length)",
                found=f"{str(inputs.dtype).removeprefix('torch.')} of shape {tuple(inputs.shape)}",
                remedy="tokenise the texts in the transfer set, padded to one length",
            )
        ids = inputs.long()
        mask = torch.ones_like(ids) if self.pad_id is None else (ids != self.pad_id).long()
        return _logits(self.model(input_ids=ids, attention_mask=mask, return_dict=True))


def classifier(
    path: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device_map: str | None = None,
    pad_id: int | None = None,
) -> ImageClassifier | SequenceClassifier:
    """Load a classifier from its folder.

    path: the folder. dtype: of its weights; the same as computing in it. device_map: as transformers understands
    it, "auto" for a model that is too large for one device (needs accelerate). pad_id: of sequences, where
    config.json names none or another.
    Raises BadDataError where the folder holds no such model or not all of it, ConfigError where transformers is
    not installed, or where the model needs what is never done here: code of its own, or a server.
    """
    transformers = _transformers()
    with unchanged(path):
        described = read_json(path / CONFIG)
        head = _head(described, path)
        if pad_id is not None and head == "image":
            raise ConfigError(
                str(path), expected="no pad_id for images", found=str(pad_id), remedy="drop it from args"
            )
        _check_attention(described, path)
        auto = "AutoModelForImageClassification" if head == "image" else "AutoModelForSequenceClassification"
        more: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
        try:
            with _quietly(transformers):
                model, found = getattr(transformers, auto).from_pretrained(
                    str(path),
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    **more,
                )
        except Exception as error:  # transformers raises many kinds, for what is wrong with a folder
            raise BadDataError(
                str(path),
                expected=f"a model that transformers {transformers.__version__} loads, without code of its own",
                found=describe_exception(error)[:300],
                remedy="save it again with save_pretrained, or install a transformers that knows it",
            ) from error
        _check_complete(found, path)
    model = model.to(getattr(torch, dtype)) if _dtype(model) != getattr(torch, dtype) else model
    where = str(path)
    if head == "image":
        preprocessing = read_json(path / PREPROCESSOR) if (path / PREPROCESSOR).is_file() else None
        return ImageClassifier(model, int(getattr(model.config, "num_channels", 3)), preprocessing, where)
    pad = getattr(model.config, "pad_token_id", None) if pad_id is None else pad_id
    if pad is None:
        log.info("%s: config.json names no pad id; every token is attended to", where)
    return SequenceClassifier(model, pad, where)


def _transformers() -> Any:
    try:
        import transformers  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ConfigError(
            "hugging_face",
            expected="the package transformers",
            found=describe_exception(error),
            remedy="pip install transformers",
        ) from error
    return transformers


@contextlib.contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Suppress the progress bars and warnings of transformers; errors are reported by our own."""
    said = transformers.utils.logging
    level, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()


def _head(described: dict[str, Any], path: Path) -> str:
    names = described.get("architectures") or []
    for ending, head in _HEADS.items():
        if any(isinstance(name, str) and ending in name for name in names):
            return head
    raise BadDataError(
        str(path / CONFIG),
        expected="a model for image or sequence classification",
        found=", ".join(map(str, names)) or "no architectures",
        remedy="save the model with its head, such as ViTForImageClassification",
    )


def _check_attention(described: dict[str, Any], path: Path) -> None:
    """Refuse a model that asks for a kernel by its address: it would be fetched, and run. Raises ConfigError."""
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if "/" in str(described.get(key, "")):
            raise ConfigError(
                str(path / CONFIG),
                expected="an attention that transformers has itself",
                found=f"{key} = {described[key]!r}, which is fetched from a server",
                remedy=f"take {key} out of config.json",
            )


def _check_complete(found: dict[str, Any], path: Path) -> None:
    """Refuse a model of which something would be random numbers. Raises BadDataError."""
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in found.get(kind) or ())
        if names:
            lacks = "no such tensor" if kind == "missing_keys" else "it in another shape"
            raise BadDataError(
                str(path),
                expected=f"a tensor {names[0]!r} as the model has it",
                found=lacks + (f" ({len(names) - 1} more like it)" if len(names) > 1 else ""),
                remedy="save the model with its trained head",
            )
    unused = sorted(map(str, found.get("unexpected_keys") or ()))
    if unused:
        log.warning("%s: %d tensors are not used, the first is %r", path, len(unused), unused[0])


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits
