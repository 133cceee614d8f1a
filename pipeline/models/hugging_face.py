"""Teachers from folders of Hugging Face transformers: arrays in, plain logits out.

The folder is local, as `save_pretrained` writes it. No server is contacted, only safetensors are read, and code of a model
is never run. The model needs a head for image or sequence classification. A missing weight is an error, not a random number.

    images      (rows, channels, height, width), or (rows, height, width) of one channel; never resized
                uint8: scaled and normalised by preprocessor_config.json
                floats: passed on as the pixel values of the model
    sequences   int64 token ids, (rows, length), or (rows, 2, length) with the token types of pairs of texts
                all tokens but the pad id are attended to; a head that reads one token finds it by the pad id

transformers is no dependency: it is imported when such a teacher is loaded.
"""

import contextlib
import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ...storage.errors import BadDataError, ConfigError, LogitStoreError
from ..factories.call import describe_exception
from .libraries import import_library
from .networks import with_channels
from .preprocessing import PixelValues, pixel_values
from .sources import CONFIG, PREPROCESSOR, read_json, unchanged

log = logging.getLogger(__name__)
_ONE_CLASS: Final = "use a teacher that gives one class for each input"


class _Classifier(nn.Module):
    """A model of transformers that gives plain logits."""

    model: Any
    where: str

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder that `from_pretrained` reads, with the image processor that it was made with."""
        self.model.save_pretrained(folder)
        place = Path(self.where)
        processor = (place if place.is_dir() else place.parent) / PREPROCESSOR
        if processor.is_file():
            (Path(folder) / PREPROCESSOR).write_bytes(processor.read_bytes())


class ImageClassifier(_Classifier):
    """A model of pixel values."""

    def __init__(
        self, model: nn.Module, channels: int, preprocessing: PixelValues | LogitStoreError, where: str
    ) -> None:
        """Keep the preprocessing of uint8 pixels, or the error to raise for them if the folder states none."""
        super().__init__()
        self.model, self.channels, self.where = model, channels, where
        self.preprocessing = preprocessing

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Return the logits of images (batch, channels, height, width), or (batch, height, width) of one channel."""
        inputs = with_channels(inputs, self.channels)
        if inputs.dtype == torch.uint8:
            if isinstance(self.preprocessing, LogitStoreError):
                raise self.preprocessing
            inputs = self.preprocessing(inputs)
        elif not inputs.is_floating_point():
            raise BadDataError(
                self.where,
                expected="images, uint8 pixels or float pixel values",
                found=f"inputs of {str(inputs.dtype).removeprefix('torch.')}",
                remedy="use a transfer set of images for this teacher",
            )
        logits: Tensor = self.model(pixel_values=inputs.to(_dtype(self.model)), return_dict=True).logits
        return logits


class SequenceClassifier(_Classifier):
    """A model of token ids."""

    def __init__(self, model: nn.Module, pad_id: int | None, where: str) -> None:
        """pad_id: of the tokens that are not attended to; None if there are none."""
        super().__init__()
        self.model, self.pad_id, self.where = model, pad_id, where
        self._arguments = inspect.signature(model.forward).parameters.keys()
        # XLNet reads the last token of a row, whatever it is.
        self._reads_last = getattr(model.config, "summary_type", None) == "last"

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Return the logits of rows of token ids (batch, length), integers, or (batch, 2, length) with token types."""
        if inputs.is_floating_point() or not (
            inputs.ndim == 2 or (inputs.ndim == 3 and inputs.shape[1] == 2)
        ):
            raise self._refused(
                "token ids, int64 of shape (rows, length), or (rows, 2, length) with token types",
                f"{str(inputs.dtype).removeprefix('torch.')} of shape {tuple(inputs.shape)}",
                "tokenise the texts in the transfer set, padded to one length",
            )
        ids, more = inputs.long(), {}
        if ids.ndim == 3:
            if "token_type_ids" not in self._arguments:
                name = type(self.model).__name__
                raise self._refused(
                    "token ids alone", f"token types, which {name} lacks", "keep the ids alone"
                )
            ids, more["token_type_ids"] = ids[:, 0], ids[:, 1]
        is_token = torch.ones_like(ids) if self.pad_id is None else (ids != self.pad_id).long()
        if self._reads_last and not is_token[:, -1].all():
            raise self._refused(
                "rows that are padded at their beginning, as the model reads the last token",
                f"a row that ends in the pad id {self.pad_id}",
                "pad at the left in the transfer set",
            )
        if "attention_mask" in self._arguments:
            more["attention_mask"] = is_token
        try:
            logits: Tensor = self.model(input_ids=ids, return_dict=True, **more).logits
        except ValueError as error:
            if self.pad_id is not None or not re.search("padding token|pad_token_id", str(error)):
                raise
            raise self._refused(
                "a pad id, by which the model finds the token that it reads",
                f"no pad_token_id in {CONFIG}",
                "set args = { pad_id = N }, the id that your rows are padded with (-1 if none is padded)",
            ) from error
        return logits

    def _refused(self, expected: str, found: str, remedy: str) -> BadDataError:
        return BadDataError(self.where, expected=expected, found=found, remedy=remedy)


def classifier(
    path: Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device_map: str | None = None,
    pad_id: int | None = None,
) -> ImageClassifier | SequenceClassifier:
    """Load a classifier from its folder.

    dtype: of the weights and the computation. device_map: passed to transformers; "auto" spreads a large model over devices
    (needs accelerate). pad_id: of the tokens that pad the sequences; by default that of config.json.
    Raises BadDataError if the folder holds no such model or an incomplete one. Raises ConfigError if transformers is not
    installed, or if the model needs code of its own or a server.
    """
    transformers, where = import_library("transformers"), str(path)
    with unchanged(path):
        config = read_json(path / CONFIG)
        head = _head(config, path)
        if head == "Image":
            check_no_pad_id(pad_id, where)
        check_attention(config, path)
        _check_problem(config, path)
        more: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
        try:
            with quiet(transformers):
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
        _check_class(model, config, path)
        classifier = image_classifier(transformers, model, path, where) if head == "Image" else None
    if _dtype(model) != getattr(torch, dtype):
        model.to(getattr(torch, dtype))
    if classifier is not None:
        return classifier
    pad = set_pad_id(model, pad_id, where)
    if pad is None:
        log.info("%s: config.json has no pad id; every token is attended to", where)
    return SequenceClassifier(model, pad, where)


def image_classifier(transformers: Any, model: nn.Module, folder: Path, where: str) -> ImageClassifier:
    """Give a model of images the preprocessing of uint8 pixels that a folder states. where: the model in messages."""
    config: Any = model.config
    channels = int(getattr(config, "num_channels", 3))
    preprocessing: PixelValues | LogitStoreError
    try:
        with quiet(transformers):
            preprocessing = pixel_values(transformers, folder, config, channels)
    except LogitStoreError as error:
        preprocessing = error  # float inputs need none
    return ImageClassifier(model, channels, preprocessing, where)


def check_no_pad_id(pad_id: int | None, where: str) -> None:
    """Refuse the id of a padding token for a model of images. Raises ConfigError."""
    if pad_id is not None:
        raise ConfigError(
            where, expected="no pad_id for images", found=f"pad_id = {pad_id}", remedy="remove it from args"
        )


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
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


def check_attention(config: dict[str, Any], path: Path) -> None:
    """Refuse a model that names an attention kernel by its address, which transformers would download and run."""
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if "/" in str(config.get(key, "")):
            raise ConfigError(
                str(path / CONFIG),
                expected=f"{key} of an attention in transformers, such as 'sdpa'",
                found=f"{key} = {config[key]!r}, a kernel on a server",
                remedy=f"remove {key} from config.json",
            )


def check_problem_type(problem: object, where: str) -> None:
    """Refuse a `problem_type` whose outputs are no logits of one softmax. Raises BadDataError."""
    if problem not in (None, "single_label_classification"):
        raise BadDataError(
            where,
            expected="problem_type 'single_label_classification', or none",
            found=f"problem_type = {problem!r}",
            remedy=_ONE_CLASS,
        )


def _check_problem(config: dict[str, Any], path: Path) -> None:
    """Refuse a model whose outputs are no logits of one softmax over several classes. Raises BadDataError."""
    where = str(path / CONFIG)
    check_problem_type(config.get("problem_type"), where)
    labels = config.get("id2label")
    number = config.get("num_labels", len(labels) if isinstance(labels, dict) else None)
    if number == 1:
        raise BadDataError(
            where,
            expected="a head of 2 or more classes",
            found="a head of 1 number, a regression",
            remedy=_ONE_CLASS,
        )


def _check_class(model: nn.Module, config: dict[str, Any], path: Path) -> None:
    """Refuse another class than the folder names: it may read the same weights otherwise. Raises BadDataError."""
    names = list(map(str, config.get("architectures") or []))
    if type(model).__name__ not in names:
        raise BadDataError(
            str(path / CONFIG),
            expected=f"architectures = [{type(model).__name__!r}], the class that transformers makes of model_type",
            found=f"architectures = {names}",
            remedy="install the transformers that wrote it, or correct architectures",
        )


def set_pad_id(model: Any, pad_id: int | None, where: str) -> int | None:
    """Set the pad id that a head reads its token by, and return it; by default that of the model. Raises ConfigError."""
    config, text = model.config, model.config.get_text_config()
    stated = next(
        (c.pad_token_id for c in (config, text) if getattr(c, "pad_token_id", None) is not None), None
    )
    wanted = stated if pad_id is None else pad_id
    for part in model.modules():
        # RoBERTa's kind counts the positions of a row by the pad id that its embeddings were made with.
        if "Embeddings" in type(part).__name__ and getattr(part, "padding_idx", wanted) != wanted:
            raise ConfigError(
                where,
                expected=f"the pad id by which {type(part).__name__} counts positions, {part.padding_idx} in {CONFIG}",
                found=f"pad_id = {wanted}",
                remedy=f"pad the rows of the transfer set with the model's own id, and name that in {CONFIG} alone",
            )
    if wanted is not None:
        config.pad_token_id = text.pad_token_id = wanted
    return None if wanted is None else int(wanted)


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
