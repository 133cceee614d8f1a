"""Parquet files as arrays: numbers a row, lists of one length a row, and columns of text.

Rows are read in order, a batch at a time: a row group may be larger than the memory. A slice before the last one begins again at
its row group.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.errors import BadDataError
from ...storage.extras import naming_extras
from .forms import NOTE, as_note
from .found import FoundArray, FoundFile, damaged

_BATCH_BYTES: Final = 8 << 20
"""Bytes of the numbers of a batch."""
_FLOATS: Final = {"halffloat": "float16", "float": "float32", "double": "float64"}


def open_parquet(path: Path) -> FoundFile:
    """Open a parquet file. Raises BadDataError for a damaged one, MissingPackage without pyarrow."""
    with naming_extras():
        import pyarrow as pa
        from pyarrow import parquet
    try:
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        arrays, texts = {}, {}
        for column in schema:
            kind = column.type
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                texts[column.name] = _Texts(path, column.name).read
            elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
                arrays[column.name] = _Column(path, column.name, None).found(file, kind)
            elif is_list(kind):
                arrays[column.name] = _Column(path, column.name, _width(file, column)).found(file, kind)
        note = as_note(json.loads((schema.metadata or {}).get(NOTE.encode(), b"null")))
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        if isinstance(error, BadDataError):
            raise
        raise damaged(path, "a parquet file", " ".join(str(error).split())[:160]) from None
    return FoundFile(path, arrays, note, texts)


@contextlib.contextmanager
def _whole(path: Path, name: str) -> Iterator[None]:
    """Refuse a column whose pages cannot be read: the end of the file, which tells of them, may be whole. Raises BadDataError."""
    import pyarrow as pa

    try:
        yield
    except BadDataError:
        raise
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        found = " ".join(str(error).split())[:160] or "fewer rows than it tells of"
        raise damaged(path, f"a whole column {name} of a parquet file", found) from None


def is_list(kind: Any) -> bool:
    """Return whether a type of Arrow is a list of numbers."""
    import pyarrow as pa

    is_one = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_one and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def _width(file: Any, column: Any) -> int:
    """Return the numbers of a row of a column of lists: by its type, or by its first row."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    for batch in file.iter_batches(1, columns=[column.name]):
        first = batch.column(0)[0]
        return len(first) if first.is_valid else 0
    return 0


class _Texts:
    """A column of text."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    def read(self) -> list[str]:
        """Return the texts of all rows. Raises BadDataError for a row without one."""
        from pyarrow import parquet

        with _whole(self._path, self._name):
            texts: list[Any] = parquet.read_table(self._path, columns=[self._name]).column(0).to_pylist()
        if None in texts:
            raise damaged(
                self._path, f"a text in each row of {self._name}", f"none in row {texts.index(None)}"
            )
        return texts


class _Column:
    """A column of numbers, or of lists of one length, read by rows."""

    def __init__(self, path: Path, name: str, width: int | None) -> None:
        """Begin before the first row. width: numbers of each list; None for a number a row."""
        self._path, self._name, self._width = path, name, width
        self._batches: Iterator[Any] | None = None
        self._next = 0
        self._left: NDArray[Any] | None = None

    def found(self, file: Any, kind: Any) -> FoundArray:
        """Return the column as an array."""
        number = str(kind if self._width is None else kind.value_type)
        shape = (file.metadata.num_rows, *([] if self._width is None else [self._width]))
        self._starts = [0]
        for group in range(file.metadata.num_row_groups):
            self._starts.append(self._starts[-1] + file.metadata.row_group(group).num_rows)
        return FoundArray(shape, _FLOATS.get(number, number), self.read)

    def _begin(self, row: int) -> None:
        """Begin at the row group of a row."""
        from pyarrow import parquet

        with _whole(self._path, self._name):
            file = parquet.ParquetFile(self._path)
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        groups = list(range(group, len(self._starts) - 1))
        rows = max(1, _BATCH_BYTES // (8 * (self._width or 1)))
        self._batches = file.iter_batches(rows, row_groups=groups, columns=[self._name])
        self._next, self._left = self._starts[group], None

    def read(self, rows: slice) -> NDArray[Any]:
        """Return the numbers of a slice of rows. Raises BadDataError for a row without a number, or of another length."""
        start, stop, _ = rows.indices(self._starts[-1])
        group = int(np.searchsorted(self._starts, start, side="right")) - 1
        if (
            self._batches is None
            or start < self._next
            or self._starts[min(group, len(self._starts) - 1)]
            > (self._next + (0 if self._left is None else len(self._left)))
        ):
            self._begin(start)
        pieces: list[NDArray[Any]] = []
        while self._next < stop:
            if self._left is None or not len(self._left):
                assert self._batches is not None
                with _whole(self._path, self._name):
                    self._left = self._numbers(next(self._batches).column(0))
            skipped = min(max(0, start - self._next), len(self._left))
            taken = self._left[skipped : max(skipped, stop - self._next)]
            if len(taken):
                pieces.append(taken)
            used = skipped + len(taken)
            self._left, self._next = self._left[used:], self._next + used
        if not pieces:
            return np.zeros((0, *([] if self._width is None else [self._width])), np.float32)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _numbers(self, column: Any) -> NDArray[Any]:
        """Return a batch as an array."""
        import pyarrow as pa

        if column.null_count:
            row = self._next + column.is_null().to_pylist().index(True)
            raise damaged(self._path, f"a value in each row of {self._name}", f"none in row {row}")
        if self._width is None:
            return np.asarray(column.to_numpy(zero_copy_only=False))
        if not pa.types.is_fixed_size_list(column.type):
            lengths = np.diff(column.offsets.to_numpy())
            other = np.flatnonzero(lengths != self._width)
            if len(other):
                raise BadDataError(
                    f"{self._path}, row {self._next + int(other[0])}: {self._name}",
                    expected=f"{self._width} numbers, as in the first row",
                    found=str(int(lengths[other[0]])),
                    remedy="write lists of one length, a number a class",
                )
        flat = column.flatten()
        if flat.null_count:
            row = self._next + flat.is_null().to_pylist().index(True) // max(1, self._width)
            raise damaged(self._path, f"numbers in {self._name}", f"an empty one in row {row}")
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, self._width)
