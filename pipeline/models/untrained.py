"""Networks of Hugging Face made anew from a configuration, for students, and the weights of a folder put into them.

    configuration   config.json of a model for images or sequences, whatever its head was
    head            as many classes as the store has, under its class names
    weights         new; or those of a folder, by the reader of transformers

The network takes inputs as a teacher of the same folder does: `hugging_face` has the rules. Nothing is downloaded, and no
code of a folder is run.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ...storage.errors import BadDataError, ConfigError, LogitStoreError
from ..factories.call import describe_exception
from .hugging_face import (
    ImageClassifier,
    SequenceClassifier,
    check_attention,
    check_no_pad_id,
    image_classifier,
    quiet,
    set_pad_id,
)
from .initial import configuration
from .libraries import import_library
from .sources import read_json, source_digests, unchanged

log = logging.getLogger(__name__)
Classifier = ImageClassifier | SequenceClassifier
_SETTLED: Final = ("num_labels", "id2label", "label2id", "problem_type", "architectures", "model_type")
"""Keys of a configuration that `options` cannot change."""


def untrained(
    path: Path,
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    pad_id: int | None = None,
    options: dict[str, Any] | None = None,
) -> Classifier:
    """Make a classifier with new weights, float32, on the CPU.

    path: folder of a model, or its configuration. class_names: kept in the configuration, for those who load a saved
    network. pad_id: of the tokens that pad the sequences; by default that of the configuration. options: keys of the
    configuration to change, such as `{ hidden_dropout_prob = 0.2 }`.
    Raises BadDataError or ConfigError for a configuration that makes no classifier.
    """
    transformers, (file, processor) = import_library("transformers"), configuration(path)
    where, more = str(path), dict(options or {})
    with unchanged(file):
        check_attention({**read_json(file), **more}, file.parent)
        _check_options(more)
        try:
            with quiet(transformers):
                config = transformers.AutoConfig.from_pretrained(
                    str(file), local_files_only=True, trust_remote_code=False, **more
                )
                head = _head(transformers, config, where)
                config.num_labels = num_classes
                config.problem_type = None
                if class_names is not None and len(set(class_names)) == num_classes:
                    config.id2label = dict(enumerate(class_names))
                    config.label2id = {name: number for number, name in enumerate(class_names)}
                made = getattr(transformers, f"AutoModelFor{head}Classification")
                model = made.from_config(config, trust_remote_code=False).float()
        except LogitStoreError:
            raise
        except Exception as error:  # transformers raises many kinds for a damaged configuration
            raise BadDataError(
                where,
                expected=f"a configuration that transformers {transformers.__version__} makes a model of, without code of its own",
                found=describe_exception(error)[:300],
                remedy="save it again with save_pretrained, or install the transformers that wrote it",
            ) from error
    if head == "Sequence":
        return SequenceClassifier(model, set_pad_id(model, pad_id, where), where)
    check_no_pad_id(pad_id, where)
    return image_classifier(transformers, model, processor.parent, where)


def _check_options(options: dict[str, Any]) -> None:
    """Refuse changes of keys that follow from the store, or name the model. Raises ConfigError."""
    for key, value in options.items():
        if key in _SETTLED:
            raise ConfigError(
                f"args.options.{key}",
                expected="options without it, as model and classes are set already",
                found=f"{key} = {value!r}",
                remedy="remove it",
            )


def _head(transformers: Any, config: Any, where: str) -> str:
    """Return the head of a configuration's model: "Image" or "Sequence". Raises BadDataError for another model."""
    names = list(map(str, getattr(config, "architectures", None) or []))
    heads = [
        head
        for head in ("Image", "Sequence")
        if type(config) in getattr(transformers, f"MODEL_FOR_{head.upper()}_CLASSIFICATION_MAPPING")
    ]
    stated = [head for head in heads if any(f"For{head}Classification" in name for name in names)]
    if not heads or (len(heads) > 1 and not stated):
        raise BadDataError(
            where,
            expected="a model for image or sequence classification",
            found=f"model_type = {config.model_type!r}, architectures = {names}",
            remedy="name the configuration of such a model, as save_pretrained writes it",
        )
    return (stated or heads)[0]


def head_of(module: Classifier) -> list[str]:
    """List the tensors of `module.model` that stand above its base model."""
    prefix = f"{module.model.base_model_prefix}."
    return [name for name in module.model.state_dict() if not name.startswith(prefix)]


def load_folder(module: Classifier, folder: Path, *, reset: bool, classes: int) -> tuple[str, list[str]]:
    """Put the weights of a folder into a classifier; return "sha256:…" of the folder, and the tensors that stay new.

    reset: whether the head stays new. classes: of the module. Raises BadDataError for a folder without all tensors below the
    head; or for another head, unless it is to be new.
    """
    where, model = str(folder), module.model
    with unchanged(folder):
        try:
            with quiet(import_library("transformers")):
                loaded, loading = type(model).from_pretrained(
                    where,
                    config=copy.deepcopy(model.config),
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except Exception as error:  # of many kinds, for a damaged folder
            raise BadDataError(
                where,
                expected=f"weights of {type(model).__name__}",
                found=describe_exception(error)[:300],
                remedy="save them again with save_pretrained",
            ) from error
        digest = source_digests(folder)[0]
    own: dict[str, Tensor] = model.state_dict()
    head = head_of(module)
    new = list(head) if reset else []
    pooler = f"{model.base_model_prefix}.pooler."  # a part of BERT's kind that serves the head alone
    shapes = {str(one[0]): tuple(one[1]) for one in loading.get("mismatched_keys") or ()}
    for name in sorted({*map(str, loading.get("missing_keys") or ()), *shapes}):
        if name in new:
            continue
        if reset and name.startswith(pooler) and name not in shapes:
            new.append(name)
            continue
        found = f"shape {shapes[name]}" if name in shapes else "no such tensor"
        remedy = "name the weights of this model, or its own config.json"
        if name in head:
            remedy = f"set reset_classifier = true to begin with a new head of {classes} classes"
        raise BadDataError(
            where, expected=f"{name!r} of shape {tuple(own[name].shape)}", found=found, remedy=remedy
        )
    unused = sorted(map(str, loading.get("unexpected_keys") or ()))
    if unused:
        log.warning("%s: %d tensors are not used, the first is %r", folder, len(unused), unused[0])
    theirs = loaded.state_dict()
    model.load_state_dict({name: own[name] if name in new else theirs[name] for name in own})
    return digest, new
