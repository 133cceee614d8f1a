"""Rows of bytes of different lengths, padded with zeros to the longest."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8, UInt32
from numpy.typing import NDArray

from ..errors import BadDataError


def text_rows(names: Sequence[str], width: int | None = None) -> NDArray[np.uint8]:
    """Return names as rows of UTF-8, padded with zero bytes: (names, width)."""
    encoded = [name.encode() for name in names]
    width = width or max(1, *(len(name) for name in encoded))
    return np.array([list(name.ljust(width, b"\0")) for name in encoded], dtype=np.uint8).reshape(-1, width)


def file_rows(
    files: Sequence[bytes], width: int, rows: range
) -> tuple[UInt8[np.ndarray, "rows width"], UInt32[np.ndarray, " rows"]]:
    """Return files as padded rows, and the bytes of each. Raises BadDataError for a file that is empty or too long.

    rows: of the store, for messages.
    """
    padded = np.zeros((len(files), width), np.uint8)  # pages that nobody writes to take no memory
    for row, content, into in zip(rows, files, padded, strict=True):
        if not 0 < len(content) <= width:
            raise BadDataError(
                f"row {row}: file",
                expected=f"1 to {width} bytes, as the files had when the store was begun",
                found=str(len(content)),
                remedy="bring the file back, or make a new store",
            )
        into[: len(content)] = np.frombuffer(content, np.uint8)
    return padded, np.array([len(content) for content in files], np.uint32)
