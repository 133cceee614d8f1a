"""The forms of plain files: names of their suffixes, arrays and notes, shared by export and import.

    NAME.npy          logits alone, (row, class) or (view, row, class); the rest beside it: NAME.labels.npy, NAME.json …
    NAME.safetensors  one file: logits, peak, label, row, source, id as tensors; the note in its metadata
    NAME.parquet      a line a (view, row): row, source, view, id, label, peak, logits; the note in its metadata

A note is a JSON object that says which rows of which capture a file holds.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.backends.local import local_path
from ...storage.errors import ConfigError
from ...storage.format.documents import shorten

NPY: Final = ".npy"
SAFETENSORS: Final = ".safetensors"
PARQUET: Final = ".parquet"
TORCH: Final = (".pt", ".pth")
NOTE: Final = "logitstore"
"""Key of the note in the metadata of a file."""
NOTE_VERSION: Final = 1
"""Version of notes; a note of another one is not understood."""
BESIDE: Final[Mapping[str, str]] = {
    "row": "rows.npy",
    "source": "source.npy",
    "label": "labels.npy",
    "peak": "peak.npy",
    "id": "ids.json",
}
"""Endings of the files beside NAME.npy, by the array that each holds."""
NOTE_BESIDE: Final = "json"
"""Ending of the file beside NAME.npy that holds the note."""
MAX_NOTE_BYTES: Final = 64 << 20
"""Of a note: the names of a large vocabulary."""


def beside(path: Path, ending: str) -> Path:
    """Return the path of a file beside an array.

    >>> beside(Path("out/wide.npy"), "labels.npy").as_posix()
    'out/wide.labels.npy'
    """
    return path.with_name(f"{path.stem}.{ending}")


def mapped_array(path: Path) -> NDArray[Any]:
    """Return the array of a `.npy` file, on the disk. Raises ValueError, EOFError for another file, OSError."""
    array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(array, np.ndarray):
        return array
    array.close()
    raise ValueError("an archive of arrays")


def local_file(location: "str | os.PathLike[str]", what: str, remedy: str) -> Path:
    """Return the path of a plain file. Raises ConfigError for a URL. what: its use in messages."""
    try:
        return local_path(location)
    except ConfigError as error:
        raise ConfigError(
            f"{what} {shorten(os.fspath(location))}",
            expected="a file on a local disk",
            found=error.found,
            remedy=remedy,
        ) from None


def as_note(value: Any) -> dict[str, Any] | None:
    """Return the note of an export of this version; None for anything else, and for one that contradicts itself."""
    if not isinstance(value, dict) or value.get("logitstore_export") != NOTE_VERSION:
        return None
    names, classes, number = (value.get(key) for key in ("class_names", "classes", "num_classes"))
    shape, lists = value.get("shape"), (value.get("views"), value.get("augmented"))
    if not _are_numbers(shape, 0) or not shape or not all(_are_numbers(one, 0) for one in lists):
        return None
    if not _are_numbers([number], 2):
        return None
    if names is not None and (
        not isinstance(names, list)
        or len(names) != number
        or not all(isinstance(name, str) for name in names)
    ):
        return None
    if classes is not None and (
        not _are_numbers(classes, -1)
        or len(set(classes)) != shape[-1]
        or len(classes) != shape[-1]
        or max(classes) >= number
    ):
        return None
    return value


def _are_numbers(value: Any, least: int) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= least for one in value)
