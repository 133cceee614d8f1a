"""Files that a teacher is made of, and their digests.

    factory        a function, and a file of weights              weights = "wide.safetensors"
    timm           a network by its name there, and the same      timm = "resnet18"
    torchvision    the same                                       torchvision = "resnet18"
    hugging_face   a folder as `save_pretrained` writes it        hugging_face = "vit-tiny"
    file           a whole network, exported                      file = "teacher.pt2"

The last two bring their architecture with them (`WHOLE`). A folder has the digest of a list: of each file that
the logits follow from, its name and its sha256. Needs no torch and reads nothing from any network.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...storage.errors import BadDataError
from ...storage.format.documents import canonical_json
from .records import weights_digest

CONFIG: Final = "config.json"
PREPROCESSOR: Final = "preprocessor_config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER = "adapter_config.json"
_MAX_JSON_BYTES = 16 << 20


def source_digests(path: Path) -> tuple[str, dict[str, str] | None]:
    """Return the digest of a teacher's weights: "sha256:…" of a file, or of a folder and each file in it.

    path: a file, or the folder of a Hugging Face model. Raises BadDataError where it is not there, or no model.
    """
    if not path.is_dir():
        return weights_digest(path), None
    files = {name: weights_digest(path / name) for name in model_files(path)}
    return f"sha256:{hashlib.sha256(canonical_json(files)).hexdigest()}", files


def model_files(folder: Path) -> list[str]:
    """List the files of a Hugging Face model that determine its logits, sorted by name.

    Raises BadDataError where it is no such folder, or one without safetensors.
    """
    if not folder.is_dir():
        raise _no_model(folder, "a plain file" if folder.is_file() else "nothing there")
    if (folder / _ADAPTER).exists():
        raise _no_model(
            folder, f"an adapter ({_ADAPTER})", "merge it into its model (merge_and_unload) and save that"
        )
    if not (folder / CONFIG).is_file():
        raise _no_model(folder, f"no {CONFIG}")
    names = [CONFIG]
    if (folder / PREPROCESSOR).is_file():
        names.append(PREPROCESSOR)
    if (folder / WEIGHTS).is_file():
        names.append(WEIGHTS)
    elif (folder / INDEX).is_file():
        names += [INDEX, *_shards(folder)]
    else:
        pickles = [name for name in _PICKLES if (folder / name).exists()]
        raise _no_model(
            folder,
            f"{pickles[0]}, which is a pickle" if pickles else f"no {WEIGHTS}",
            "load it where you trust it, and write it with save_pretrained(folder)",
        )
    return sorted(names)


def _shards(folder: Path) -> set[str]:
    mapping = read_json(folder / INDEX).get("weight_map")
    names = set(mapping.values()) if isinstance(mapping, dict) else set()
    for name in names or {None}:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise _no_model(folder / INDEX, f"a weight_map that names {name!r}", "save the model again")
        if not (folder / name).is_file():
            raise _no_model(folder, f"no {name}, which {INDEX} names", "copy the whole folder")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a model. Raises BadDataError."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(
                f"{path.stat().st_size} bytes, where {_MAX_JSON_BYTES} are the most that is read"
            )
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise TypeError(f"a {type(value).__name__}")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:200]
        raise BadDataError(
            str(path), expected="a JSON object", found=text, remedy="save the model again"
        ) from error
    return value


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Check that a file or a model's folder is the same before and after the block.

    Raises BadDataError if it was exchanged or written to, or if the folder holds no model.
    """
    is_folder, before = path.is_dir(), _state(path)
    yield
    if _state(path) != before:
        raise BadDataError(
            str(path),
            expected=f"a {'folder' if is_folder else 'file'} that stays as it is while it is read",
            found=f"{'a file' if is_folder else 'one'} that was exchanged or written to",
            remedy="run the same command again when nothing writes it any more",
        )


def _state(path: Path) -> tuple[tuple[int, ...], ...]:
    """Return the inode, size and times of a file or of each file of a folder: they change when it is written."""
    files = [path / name for name in model_files(path)] if path.is_dir() else [path]
    found = [os.stat(file) for file in files]
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def _no_model(
    where: Path,
    found: str,
    remedy: str = "name the folder that save_pretrained wrote (it is never downloaded)",
) -> BadDataError:
    return BadDataError(
        str(where), expected="the folder of a Hugging Face model in safetensors", found=found, remedy=remedy
    )
