"""An array in a file, read a slice of rows at a time, and a file of several."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ...storage.errors import BadDataError


@dataclass(frozen=True)
class FoundArray:
    """An array in a file."""

    shape: tuple[int, ...]
    """Its shape, rows first."""
    dtype: str
    """Its dtype in words, such as "bfloat16"."""
    read: Callable[[Any], NDArray[Any]]
    """Gives a slice of rows, or one of a view, (view, slice); bfloat16 as float32."""


@dataclass(frozen=True)
class FoundFile:
    """The arrays of a file."""

    path: Path
    """The file."""
    arrays: Mapping[str, FoundArray]
    """By name; the name of an array that stands alone is empty."""
    note: dict[str, Any] | None = None
    """Of an export of ours."""
    texts: Mapping[str, Callable[[], list[str]]] = field(default_factory=dict[str, Callable[[], list[str]]])
    """Columns of text, by name, each read whole."""


def damaged(path: Path, expected: str, found: str) -> BadDataError:
    """Return the error of a file that cannot be read."""
    return BadDataError(str(path), expected=expected, found=found, remedy="write the file again")
