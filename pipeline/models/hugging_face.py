"""Teachers from folders of Hugging Face transformers: arrays in, plain logits out.

The folder is local, as `save_pretrained` writes it. No server is contacted, only safetensors are read, and code of a model
is never run. The model needs a head for image or sequence classification. A missing weight is an error, not a random number.

    images      (rows, channels, height, width), or (rows, height, width) of one channel; never resized
                uint8: scaled and normalised by preprocessor_config.json
                floats: passed on as the pixel values of the model
    sequences   int64 token ids, (rows, length); all tokens but the pad id of config.json are attended to

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
from .libraries import import_library
from .networks import with_channels
from .sources import CONFIG, PREPROCESSOR, read_json, unchanged

log = logging.getLogger(__name__)


class ImageClassifier(nn.Module):
    """A model of pixel values."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, channels: int, preprocessing: dict[str, Any] | None, where: str
    ) -> None:
        """Keep the scale, mean and std of uint8 pixels. preprocessing: None if the folder has none."""
        super().__init__()
        self.model, self.channels, self.where = model, channels, where
        self.scale: float | None = None
        mean, std = [0.0], [1.0]
        if preprocessing is not None:
            self.scale = 1.0
            if preprocessing.get("do_rescale", True):
                self.scale = float(preprocessing.get("rescale_factor", 1 / 255))
            if preprocessing.get("do_normalize", True):
                mean, std = preprocessing.get("image_mean") or mean, preprocessing.get("image_std") or std
        for name, values in {"mean": mean, "std": std}.items():
            buffer = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

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
                remedy="use a transfer set of images for this teacher",
            )
        logits: Tensor = self.model(pixel_values=inputs.to(_dtype(self.model)), return_dict=True).logits
        return logits


class SequenceClassifier(nn.Module):
    """A model of token ids."""

    def __init__(self, model: nn.Module, pad_id: int | None, where: str) -> None:
        """pad_id: of the tokens that are not attended to; None if there are none."""
        super().__init__()
        self.model, self.pad_id, self.where = model, pad_id, where

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Return the logits of rows of token ids (batch, length), integers."""
        if inputs.ndim != 2 or inputs.is_floating_point():
            raise BadDataError(
                self.where,
                expected="token ids, int64 of shape (rows, length)",
                found=f"{str(inputs.dtype).removeprefix('torch.')} of shape {tuple(inputs.shape)}",
                remedy="tokenise the texts in the transfer set, padded to one length",
            )
        ids = inputs.long()
        mask = torch.ones_like(ids) if self.pad_id is None else (ids != self.pad_id).long()
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, return_dict=True).logits
        return logits


def classifier(
    path: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device_map: str | None = None,
    pad_id: int | None = None,
) -> ImageClassifier | SequenceClassifier:
    """Load a classifier from its folder.

    dtype: of the weights and the computation. device_map: passed to transformers; "auto" spreads a large model over devices
    (needs accelerate). pad_id: of sequences; by default that of config.json.
    Raises BadDataError if the folder holds no such model or an incomplete one. Raises ConfigError if transformers is not
    installed, or if the model needs code of its own or a server.
    """
    transformers, where = import_library("transformers"), str(path)
    with unchanged(path):
        config = read_json(path / CONFIG)
        head = _head(config, path)
        if pad_id is not None and head == "Image":
            raise ConfigError(
                where,
                expected="no pad_id for images",
                found=f"pad_id = {pad_id}",
                remedy="remove it from args",
            )
        _check_attention(config, path)
        more: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
        try:
            with _quiet(transformers):
                model, loading = getattr(transformers, f"AutoModelFor{head}Classification").from_pretrained(
                    where,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    **more,
                )
        except Exception as error:  # transformers raises many kinds for a damaged folder
            raise BadDataError(
                where,
                expected=f"a model that transformers {transformers.__version__} loads, without code of its own",
                found=describe_exception(error)[:300],
                remedy="save it again with save_pretrained, or install the transformers that wrote it",
            ) from error
        _check_complete(loading, path)
    if _dtype(model) != getattr(torch, dtype):
        model = model.to(getattr(torch, dtype))
    if head == "Image":
        preprocessing = read_json(path / PREPROCESSOR) if (path / PREPROCESSOR).is_file() else None
        return ImageClassifier(model, int(getattr(model.config, "num_channels", 3)), preprocessing, where)
    pad = getattr(model.config, "pad_token_id", None) if pad_id is None else pad_id
    if pad is None:
        log.info("%s: config.json has no pad id; every token is attended to", where)
    return SequenceClassifier(model, pad, where)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Suppress the progress bars and warnings of transformers; its errors become ours."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def _head(config: dict[str, Any], path: Path) -> str:
    """Return the head of a model, "Image" or "Sequence". Raises BadDataError for another one."""
    names = list(map(str, config.get("architectures") or []))
    for head in ("Image", "Sequence"):
        if any(f"For{head}Classification" in name for name in names):
            return head
    raise BadDataError(
        str(path / CONFIG),
        expected="a model for image or sequence classification",
        found=", ".join(names) or "no architectures",
        remedy="save the model with its head, such as ViTForImageClassification",
    )


def _check_attention(config: dict[str, Any], path: Path) -> None:
    """Refuse a model that names an attention kernel by its address, which transformers would download and run."""
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if "/" in str(config.get(key, "")):
            raise ConfigError(
                str(path / CONFIG),
                expected=f"{key} of an attention in transformers, such as 'sdpa'",
                found=f"{key} = {config[key]!r}, a kernel on a server",
                remedy=f"remove {key} from config.json",
            )


def _check_complete(loading: dict[str, Any], path: Path) -> None:
    """Refuse a model with weights that transformers had to draw at random. Raises BadDataError."""
    for kind, found in {"missing_keys": "no such tensor", "mismatched_keys": "another shape"}.items():
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in loading.get(kind) or ())
        if names:
            raise BadDataError(
                str(path),
                expected=f"a tensor {names[0]!r} of the model's shape",
                found=found + (f" (and {len(names) - 1} more)" if len(names) > 1 else ""),
                remedy="save the model with its trained head",
            )
    unused = sorted(map(str, loading.get("unexpected_keys") or ()))
    if unused:
        log.warning("%s: %d tensors are not used, the first is %r", path, len(unused), unused[0])


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
