"""Captures by name and by row, as a notebook asks for them: `store.teachers["wide"][:10]`, `np.asarray(capture)`."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

import numpy as np
from jaxtyping import Float32
from numpy.typing import DTypeLike, NDArray

from ..errors import ConfigError
from .reader import CaptureReader
from .root import Root

MOST_BYTES: Final = 4 << 30
"""Bytes of the largest capture that becomes an array as a whole."""
_ROWS: Final = 1 << 14
"""Rows that are decoded at a time."""
_CAPTURE = TypeVar("_CAPTURE")


class IndexedCapture(CaptureReader):
    """A capture that is indexed by rows, and converted to an array."""

    __iter__: None = None
    """Rows are not yielded one by one: each would read a chunk."""

    def __getitem__(self, rows: Any) -> Float32[np.ndarray, "*rows classes"]:
        """Return the logits of rows, of the first view; `capture[rows, view]` of another one.

        rows: a number, a slice, a list in any order, or a mask of all rows. The largest logit of a row is 0. Raises
        IndexError for rows that are not there, and otherwise what `read` raises.
        """
        view: Any = 0
        if isinstance(rows, tuple):
            if len(rows) != 2:
                raise IndexError(f"expected capture[rows] or capture[rows, view], found {len(rows)} indices")
            rows, view = rows
        if isinstance(rows, slice) and rows.step in (None, 1):
            return self.read(rows, view)  # as it is: an index would copy all of it
        numbers = np.arange(self.shape[1])[rows]
        unique, places = np.unique(numbers, return_inverse=True)
        return self.read(unique, view)[places.reshape(numbers.shape)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all logits (view, row, class), float32 by default. Raises ConfigError for more than 4 GiB.

        Raises ValueError for copy=False: logits are decoded.
        """
        if copy is False:
            raise ValueError("logits are decoded into new memory: pass copy=None")
        views, rows, classes = self.shape
        if (size := 4 * views * rows * classes) > MOST_BYTES:
            raise ConfigError(
                f"{self.part.name}: np.asarray",
                expected=f"at most {MOST_BYTES >> 30} GiB of logits",
                found=f"{size / (1 << 30):,.1f} GiB, {self.shape} float32",
                remedy="use .dask(), which reads them in chunks, or .read(rows, view)",
            )
        self.check_temperature(None)
        result = np.empty(self.shape, np.float32)
        for view in range(views):
            for start in range(0, rows, _ROWS):
                some = slice(start, min(start + _ROWS, rows))
                result[view, some] = self.read(some, view)
        return result if dtype is None else result.astype(dtype, copy=False)


class Captures(Mapping[str, _CAPTURE], Generic[_CAPTURE]):
    """The sealed captures of a store by teacher, in the order of their seals."""

    def __init__(self, root: Root, opened: Callable[[Root, str], _CAPTURE]) -> None:
        """Look captures up in a root. opened: opens the one of a name."""
        self._root, self._open = root, opened
        self._opened: dict[str, _CAPTURE] = {}

    def __getitem__(self, name: str) -> _CAPTURE:
        if name not in self._opened or name not in self:  # one that was removed since
            self._opened[name] = self._open(self._root, name)
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._root.names("teachers"))

    def __len__(self) -> int:
        return len(self._root.names("teachers"))

    def __contains__(self, name: object) -> bool:
        return name in self._root.names("teachers")

    def _ipython_key_completions_(self) -> list[str]:
        """List the names that IPython and Jupyter complete."""
        return list(self)

    def __repr__(self) -> str:
        return f"<Captures {list(self)}>"
