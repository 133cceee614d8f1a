"""The header of a safetensors file, and its tensors as arrays on the disk.

Eight bytes of length, a JSON object of names, dtypes, shapes and places, then the numbers. The library reads whole tensors, and
no bfloat16 without torch; here rows are read as they are asked for, by NumPy alone. Every place is compared with its shape and
with the size of the file before anything is read.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.backends.posix import open_plain
from .forms import NOTE, as_note

_DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
}
"""NumPy's dtype of each; bfloat16 is read as its bits."""
_MAX_HEADER_BYTES: Final = 100_000_000
"""Limit of the format itself."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    path: Path
    """The file."""
    dtype: str
    """In the words of the format: "F32"."""
    shape: tuple[int, ...]
    """Its shape."""
    offset: int
    """Of its first byte in the file."""

    def array(self) -> NDArray[Any]:
        """Return the tensor as an array on the disk, bfloat16 as uint16."""
        if 0 in self.shape:
            return np.zeros(self.shape, _DTYPES[self.dtype])
        return np.memmap(self.path, _DTYPES[self.dtype], "r", self.offset, self.shape)


@dataclass(frozen=True)
class Header:
    """The content of a header."""

    tensors: Mapping[str, StoredTensor]
    """By name."""
    note: dict[str, Any] | None
    """Of an export of ours; None in another file."""


def read_header(path: Path) -> Header | None:
    """Read the header of a file; None if it is no whole safetensors file. Raises OSError."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > min(_MAX_HEADER_BYTES, size - 8):
                return None
            return _parsed(path, file.read(length), 8 + length, size)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _parsed(path: Path, text: bytes, begin: int, size: int) -> Header:
    """Return a header that agrees with the size of its file. Raises ValueError, KeyError, TypeError."""
    entries = json.loads(text, object_pairs_hook=_once)
    metadata = entries.pop("__metadata__", {})
    note = metadata.get(NOTE)
    tensors, covered = {}, 0
    for name, entry in entries.items():
        shape, (first, last) = entry["shape"], entry["data_offsets"]
        if not all(type(one) is int and one >= 0 for one in (*shape, first, last)):
            raise ValueError(f"a place of {name!r} that is no number")
        nbytes = math.prod(shape) * np.dtype(_DTYPES[entry["dtype"]]).itemsize
        if last - first != nbytes or begin + last > size:
            raise ValueError(f"a place of {name!r} outside the file")
        covered = max(covered, last)
        tensors[name] = StoredTensor(path, entry["dtype"], tuple(shape), begin + first)
    if begin + covered != size:
        raise ValueError("a file of another size than its header")
    return Header(tensors, as_note(json.loads(note)) if isinstance(note, str) else None)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys stand once. Raises ValueError."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key that stands twice")
    return entries


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return numbers of bfloat16 as float32, which holds each of them.

    >>> widen_bfloat16(np.array([0x3F80, 0xC020], np.uint16)).tolist()
    [1.0, -2.5]
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)
