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
    """Return the note of an export of this version; None for anything else."""
    if isinstance(value, dict) and value.get("logitstore_export") == NOTE_VERSION:
        return value
    return None
