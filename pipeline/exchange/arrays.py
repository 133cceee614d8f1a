"""Arrays in plain files, opened by their suffix: npy, pt, safetensors, parquet; and txt and json for labels and names.

A `FoundArray` is read a slice of rows at a time. No file runs code: npy without objects, pt with `weights_only`. A file of
several arrays is asked for one of them by name.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.backends.posix import open_plain
from ...storage.errors import BadDataError, ConfigError, some_of
from ...storage.extras import naming_extras
from .forms import NOTE_BESIDE, NPY, PARQUET, SAFETENSORS, TORCH, beside, mapped_array
from .found import FoundArray, FoundFile, damaged
from .tables import open_parquet
from .tensors import read_header, widen_bfloat16
from .writers import read_note

_SHOWN: Final = 8
"""Names of arrays that a message lists."""
_TEXT: Final = (".txt", ".json")
_MOST_TEXT_BYTES: Final = 4 << 30
"""Of a file of labels or names, which is read whole."""
SUFFIXES: Final = (NPY, *TORCH, SAFETENSORS, PARQUET)
"""Of files of numbers."""


def open_file(path: Path) -> FoundFile:
    """Open a file of arrays by its suffix. Raises ConfigError for another suffix, BadDataError for a damaged file."""
    _check_file(path)
    if path.suffix == NPY:
        return _npy(path)
    if path.suffix == SAFETENSORS:
        return _safetensors(path)
    if path.suffix in TORCH:
        return _torch(path)
    if path.suffix == PARQUET:
        return open_parquet(path)
    raise ConfigError(
        str(path),
        expected=f"a name that ends in {', '.join(SUFFIXES)}",
        found=path.suffix or "no ending",
        remedy="save the array by numpy.save, and name that file",
    )


def _check_file(path: Path) -> None:
    """Refuse a path that is no plain file. Raises BadDataError."""
    try:
        open_plain(path).close()
    except OSError as error:
        found = (error.strerror or str(error)).lower()
        raise BadDataError(
            str(path), expected="a file", found=found, remedy="correct the name, or make the file"
        ) from None


def _npy(path: Path) -> FoundFile:
    try:
        array = mapped_array(path)
    except (ValueError, EOFError, OSError) as error:
        text = " ".join(str(error).split())[:160]
        if "allow_pickle" in text or "Python objects" in text:
            text = "an array of objects, which are code"
        raise damaged(path, "an array of numbers, as numpy.save writes it", text) from None
    if array.ndim == 0:
        raise damaged(path, "an array of rows", "a single number")
    note = read_note(beside(path, NOTE_BESIDE))
    return FoundFile(path, {"": _of_array(array)}, note)


def _of_array(array: NDArray[Any]) -> FoundArray:
    name = "bfloat16" if array.dtype.str in ("<V2", "|V2") else array.dtype.name
    return FoundArray(array.shape, name, lambda rows: np.asarray(array[rows]))


def _safetensors(path: Path) -> FoundFile:
    header = read_header(path)
    if header is None:
        raise damaged(path, "a whole safetensors file", "another format, or a file that was cut")

    def found(name: str) -> FoundArray:
        tensor = header.tensors[name]
        array = tensor.array()
        if tensor.dtype == "BF16":
            return FoundArray(tensor.shape, "bfloat16", lambda rows: widen_bfloat16(np.asarray(array[rows])))
        return FoundArray(tensor.shape, array.dtype.name, lambda rows: np.asarray(array[rows]))

    return FoundFile(path, {name: found(name) for name in header.tensors}, header.note)


def _torch(path: Path) -> FoundFile:
    with naming_extras():
        import torch

        from ..models.checkpoints import refused_pickle
        from ..models.weights import check_torch
    check_torch(path)
    try:
        content = _loaded(path)
    except Exception as error:  # of many kinds, for damaged files and for objects that are code
        refused = refused_pickle(error, path)
        raise BadDataError(
            str(path),
            expected="a tensor, or a dict of tensors",
            found=refused.found,
            remedy="save the tensor alone: torch.save(logits, FILE)",
        ) from error

    def found(tensor: Any) -> FoundArray:
        def read(rows: Any) -> NDArray[Any]:
            piece = tensor[rows].detach()
            return np.asarray((piece.float() if piece.dtype == torch.bfloat16 else piece).numpy())

        return FoundArray(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)

    tensors = {"": content} if isinstance(content, torch.Tensor) else content
    if isinstance(tensors, Mapping):
        dense = {
            str(name): found(one)
            for name, one in tensors.items()
            if isinstance(one, torch.Tensor) and one.layout == torch.strided and one.ndim
        }
        if dense:
            return FoundFile(path, dense)
    raise damaged(path, "a tensor, or a dict of tensors", f"a {type(content).__name__} without tensors")


def _loaded(path: Path) -> Any:
    """Load a file of torch without running code, mapped where its format allows that."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True)


def choose(
    file: FoundFile,
    names: tuple[str, ...],
    asked: str | None,
    fits: Callable[[FoundArray], bool],
    wanted: str,
    remedy: str,
) -> str:
    """Return the name of one of the arrays of a file: the one asked for, else one of `names` that fits, else the only one.

    wanted: the kind that fits, in words. Raises ConfigError for a name that is not there, BadDataError where none or several fit.
    """
    if asked is not None:
        if asked in file.arrays:
            return asked
        listed = some_of(sorted(filter(None, file.arrays)), _SHOWN) or "an array without a name"
        raise ConfigError(
            f"{file.path}: {asked}",
            expected="an array of the file",
            found=listed,
            remedy="name one of these with --column (column=…)",
        )
    fitting = [name for name, array in file.arrays.items() if fits(array)]
    for name in names:
        if name in fitting:
            return name
    if len(fitting) == 1:
        return fitting[0]
    shown = some_of(
        [f"{name or 'array'} {array.dtype} {array.shape}" for name, array in file.arrays.items()], _SHOWN
    )
    raise BadDataError(
        str(file.path),
        expected=f"an array named {names[0]}, or one array alone, {wanted}",
        found=shown or "no arrays of numbers",
        remedy=remedy,
    )


def read_texts(path: Path) -> list[Any]:
    """Return the lines of a text file, or the list in a JSON file. Raises BadDataError."""
    _check_file(path)
    try:
        with open_plain(path) as file:
            content = file.read(_MOST_TEXT_BYTES).decode("utf-8-sig")
        if path.suffix == ".json":
            value = json.loads(content)
            if isinstance(value, dict) and isinstance(value.get("class_names"), list):
                value = value["class_names"]  # the note of an export
            if not isinstance(value, list):
                raise ValueError(f"a {type(value).__name__}")
            return value
        return content.splitlines()
    except (ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:160]
        raise damaged(
            path, "a JSON list" if path.suffix == ".json" else "UTF-8, a line a row", text
        ) from None


def is_text(path: Path) -> bool:
    """Return whether a file is read as lines of text or as JSON."""
    return path.suffix in _TEXT
