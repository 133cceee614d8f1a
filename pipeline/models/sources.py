"""Files of a teacher, and their digests.

    factory        a function, and a file of weights              weights = "wide.safetensors"
    timm           a network of timm, and a file of weights       timm = "resnet18"
    torchvision    the same of torchvision                        torchvision = "resnet18"
    hugging_face   a folder as `save_pretrained` writes it        hugging_face = "vit-tiny"
    file           a whole network, exported                      file = "teacher.pt2"

The digest of a folder is that of a list: name and sha256 of each file that determines the logits. No torch is imported, and
nothing is downloaded.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...storage.backends.posix import read_plain
from ...storage.errors import BadDataError
from ...storage.format.documents import json_digest
from .records import WRONG_NAME, weights_digest

CONFIG: Final = "config.json"
PREPROCESSOR: Final = "preprocessor_config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PICKLES: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER: Final = "adapter_config.json"
_MAX_JSON_BYTES = 16 << 20


def source_digests(path: Path) -> tuple[str, dict[str, str] | None]:
    """Return "sha256:…" of a teacher's file or folder, and the digest of each file in the folder.

    path: a file, or the folder of a Hugging Face model. Raises BadDataError if it is absent or no model.
    """
    if not path.is_dir():
        return weights_digest(path), None
    files = {name: weights_digest(path / name) for name in model_files(path)}
    return json_digest(files), files


def model_files(folder: Path) -> list[str]:
    """List the files of a Hugging Face model that determine its logits, sorted by name.

    Raises BadDataError for anything else, such as a folder without safetensors.
    """
    if not folder.is_dir():
        raise _no_model(folder, "a file" if folder.exists() else "no folder")
    if (folder / ADAPTER).exists():
        remedy = "merge it into its model (merge_and_unload) and save that"
        raise _no_model(folder, f"an adapter ({ADAPTER})", remedy)
    if not (folder / CONFIG).is_file():
        raise _no_model(folder, f"no {CONFIG}")
    names = [name for name in (CONFIG, PREPROCESSOR) if (folder / name).is_file()]
    if (folder / WEIGHTS).is_file():
        names.append(WEIGHTS)
    elif (folder / INDEX).is_file():
        names += [INDEX, *_shards(folder)]
    else:
        pickles = [name for name in PICKLES if (folder / name).exists()]
        found = f"{pickles[0]}, a pickle" if pickles else f"no {WEIGHTS}"
        raise _no_model(
            folder, found, "load it where you trust it, and write it with save_pretrained(folder)"
        )
    return sorted(names)


def _shards(folder: Path) -> set[str]:
    mapping = read_json(folder / INDEX).get("weight_map")
    names = set(mapping.values()) if isinstance(mapping, dict) else set()
    for name in names or {None}:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise _no_model(folder / INDEX, f"a weight_map that names {name!r}", "save the model again")
        if not (folder / name).is_file():
            raise _no_model(folder, f"no {name}, a shard in {INDEX}", "copy the whole folder")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a model. Raises BadDataError."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, above the limit of {_MAX_JSON_BYTES}")
        value = json.loads(read_plain(path))
        if not isinstance(value, dict):
            raise TypeError(f"a {type(value).__name__}")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:200]
        raise BadDataError(
            str(path), expected="a JSON object", found=text, remedy="save the model again"
        ) from error
    return value


def check_file(path: Path, expected: str) -> None:
    """Raise BadDataError if a path is no regular file."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no regular file"
        raise BadDataError(str(path), expected=expected, found=found, remedy=WRONG_NAME)


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Check that a file or a model's folder is the same before and after the block.

    Raises BadDataError if a file was replaced or written to, or if the folder holds no model.
    """
    before = _state(path)
    yield
    if _state(path) != before:
        raise BadDataError(
            str(path),
            expected=f"a {'folder' if path.is_dir() else 'file'} that does not change while it is read",
            found="a file that was replaced or written to",
            remedy="run the same command again when nothing writes it any more",
        )


def _state(path: Path) -> list[tuple[int, ...]]:
    """Return the inode, size and time of a file, or of each file of a model's folder."""
    files = [path / name for name in model_files(path)] if path.is_dir() else [path]
    states = [os.stat(file) for file in files]
    return [(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def _no_model(
    where: Path,
    found: str,
    remedy: str = "name a folder that save_pretrained wrote (nothing is downloaded)",
) -> BadDataError:
    return BadDataError(
        str(where), expected="the folder of a Hugging Face model in safetensors", found=found, remedy=remedy
    )
