"""Versions of our loaders' rules, for identities, so that logits by older rules are not taken for those of today.

The second version obeys what the first ignored:

    torchvision    transform_input of Inception and GoogLeNet, mean and std of EfficientNetV2-L
    hugging_face   more settings of an image processor than scale, mean and std; a pad id in args for the head as well

A teacher whose logits are the same by both has no key in its identity, and older captures of it stay valid. No torch is
imported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..experiment.tables import Teacher
from .sources import CONFIG, PREPROCESSOR, read_json

_SWITCHED: Final = ("googlenet", "inception_v3", "quantized_googlenet", "quantized_inception_v3")
_HALF: Final = ("efficientnet_v2_l",)
_LATER: Final[Mapping[str, tuple[str, ...]]] = {
    "do_flip_channel_order": ("MobileViT", "Tvp"),
    "include_top": ("EfficientNet",),
    "rescale_offset": (),
}
"""Settings of image processors that the first version ignored, with the classes that have them on by default."""


def loader_rules(teacher: Teacher, weights: Path | None) -> dict[str, int]:
    """Return {"rules": 2} for a teacher to whom the second version matters, and nothing for others.

    weights: file or folder of the teacher.
    """
    matters = False
    if teacher.torchvision is not None:
        matters = _of_torchvision(teacher.torchvision, teacher.args)
    elif teacher.hugging_face is not None and weights is not None:
        matters = _of_images(weights / PREPROCESSOR) or _of_padding(weights / CONFIG, teacher.args)
    return {"rules": 2} if matters else {}


def _of_torchvision(name: str, args: Mapping[str, Any]) -> bool:
    if name in _SWITCHED:
        return "transform_input" not in (args.get("options") or {})
    return name in _HALF and not (args.get("mean") and args.get("std"))


def _of_images(path: Path) -> bool:
    if not path.is_file():
        return False
    stated = read_json(path)
    name = str(stated.get("image_processor_type") or stated.get("feature_extractor_type") or "")
    if any(stated.get(key, name.startswith(classes)) for key, classes in _LATER.items()):
        return True
    # The first version took 0 and 1 for numbers that the file leaves to the class.
    return bool(stated.get("do_normalize", True)) and not (
        stated.get("image_mean") and stated.get("image_std")
    )


def _of_padding(path: Path, args: Mapping[str, Any]) -> bool:
    return "pad_id" in args and read_json(path).get("pad_token_id") != args["pad_id"]
