"""The rows of an import: logits of several files in order, with the labels, ids and names that are given or lie beside them."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.errors import BadDataError, ConfigError
from .arrays import choose, open_file
from .forms import BESIDE, NPY, PARQUET, beside, local_file
from .found import FoundArray, FoundFile

FLOATS: Final = ("float16", "bfloat16", "float32", "float64")
"""Dtypes of logits."""
_LOGITS: Final = ("logits", "logit", "z", "outputs")
"""Names of arrays, that of an export first."""
_COLUMN: Final = "name the array with --column (column=…)"


@dataclass(frozen=True)
class LogitFile:
    """The logits of one file: some rows of one view."""

    file: FoundFile
    """The file."""
    name: str
    """Of the array of logits in it."""
    array: FoundArray
    """The logits."""
    view: int | None
    """The view on the first axis of the array; None where it has rows alone."""
    first: int
    """The first row, on the axis of rows."""
    rows: int
    """Rows that are taken."""
    of_view: int = 0
    """Number of the view that they are of."""

    def read(self, start: int, stop: int, array: FoundArray | None = None) -> NDArray[Any]:
        """Read rows of the logits, or of another array of the same rows."""
        rows = slice(self.first + start, self.first + stop)
        return (array or self.array).read(rows if self.view is None else (self.view, rows))

    @property
    def is_augmented(self) -> bool:
        """Whether an export says that the teacher saw augmented inputs in this view."""
        note = self.file.note or {}
        views, augmented = note.get("views"), note.get("augmented")
        if not isinstance(views, list) or not isinstance(augmented, list) or not views:
            return False
        if self.file.path.suffix == PARQUET and len(views) > 1:
            return self.of_view in augmented  # the column has the numbers of the store
        return self.of_view < len(views) and views[self.of_view] in augmented

    @property
    def temperature(self) -> Any:
        """The only temperature that an export of a top-k capture serves; None for other logits."""
        note = self.file.note
        if note is None or note["shape"][-1] != self.array.shape[-1]:
            return None  # other logits under the name of an export
        return note.get("temperature")

    @property
    def peak(self) -> FoundArray | None:
        """The constants that an export subtracted; None in other files."""
        if self.file.note is None:
            return None
        if self.file.path.suffix == NPY:
            path = beside(self.file.path, BESIDE["peak"])
            array = open_file(path).arrays[""] if path.exists() else None
        else:
            array = self.file.arrays.get("peak")
        return array if array is not None and array.shape == self.array.shape[:-1] else None


@dataclass(frozen=True)
class GivenLogits:
    """Logits (rows, columns) of several files."""

    files: tuple[LogitFile, ...]
    """The files, in order."""

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def num_columns(self) -> int:
        """Columns."""
        return self.files[0].array.shape[-1]

    @property
    def dtype(self) -> str:
        """The widest dtype of the files."""
        return max((file.array.dtype for file in self.files), key=FLOATS.index)

    @property
    def note(self) -> dict[str, Any] | None:
        """The note of the files, if all are exports of one capture."""
        first = self.files[0].file.note
        if first is not None and first["shape"][-1] != self.num_columns:
            return None  # other logits under the name of an export
        keys = ("capture", "samples", "class_names", "classes", "num_classes")
        for file in self.files:
            note = file.file.note
            if first is None or note is None or any(note.get(key) != first.get(key) for key in keys):
                return None
        return first

    def pieces(self, start: int, stop: int) -> "Iterable[tuple[LogitFile, int, int]]":
        """Yield file, first and last row in it, of some rows."""
        begin = 0
        for file in self.files:
            low, high = max(start, begin) - begin, min(stop, begin + file.rows) - begin
            if high > low:
                yield file, low, high
            begin += file.rows

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read some rows, in float32 or float64."""
        pieces = [file.read(low, high) for file, low, high in self.pieces(start, stop)]
        wide = np.float64 if any(piece.dtype == np.float64 for piece in pieces) else np.float32
        if len(pieces) == 1:
            return np.asarray(pieces[0], dtype=wide)
        return np.concatenate([np.asarray(piece, dtype=wide) for piece in pieces])

    def read_peak(self, start: int, stop: int) -> NDArray[np.float32] | None:
        """Read the constants that an export subtracted from some rows; None where a file has none."""
        found = []
        for file, low, high in self.pieces(start, stop):
            if (peak := file.peak) is None:
                return None
            found.append(np.asarray(file.read(low, high, peak), dtype=np.float32))
        return np.concatenate(found)


def open_logits(
    files: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]",
    column: str | None = None,
    view: int | None = None,
) -> GivenLogits:
    """Open files of logits. Raises ConfigError, BadDataError for files that are none, or do not fit together."""
    if isinstance(files, str | os.PathLike):
        files = [files]
    if not files:
        raise ConfigError("files", expected="a file of logits", found="none", remedy="name one or more")
    found = []
    for location in files:
        path = local_file(location, "import of", "download the file first")
        found.append(_logits_of(open_file(path), column, view))
        if found[-1].is_augmented:
            raise BadDataError(
                str(path),
                expected="logits of the rows as they are",
                found="a view of which the teacher saw augmented inputs",
                remedy="choose another with --view (view=…); `logitstore copy` keeps all views with their inputs",
            )
        if (temperature := found[-1].temperature) is not None:
            raise BadDataError(
                str(path),
                expected="logits that serve every temperature",
                found=f"an export of a top-k capture, decoded at temperature {temperature}",
                remedy="`logitstore copy` carries the capture as it is",
            )
    columns = found[0].array.shape[-1]
    for one in found[1:]:
        if one.array.shape[-1] != columns:
            raise BadDataError(
                str(one.file.path),
                expected=f"rows of {columns} logits, as in {found[0].file.path}",
                found=f"rows of {one.array.shape[-1]}",
                remedy="name files of one teacher",
            )
    given = GivenLogits(tuple(found))
    if not given.num_rows:
        raise BadDataError(str(found[0].file.path), expected="rows", found="none", remedy="name other files")
    return given


def _is_dense(array: FoundArray) -> bool:
    return array.dtype in FLOATS and len(array.shape) in (2, 3)


def _logits_of(file: FoundFile, column: str | None, view: int | None) -> LogitFile:
    """Return the logits of one file."""
    stands_alone = set(file.arrays) == {""} and column is None
    name = "" if stands_alone else choose(file, _LOGITS, column, _is_dense, "of floating rows", _COLUMN)
    array, where = file.arrays[name], f"{file.path}: {name}" if name else str(file.path)
    if array.dtype not in FLOATS:
        remedy = "save them as float32"
        if array.dtype.startswith(("int", "uint")):
            remedy = "name an array of logits: these may be labels or predicted classes"
        elif array.dtype == "bfloat16" or array.dtype.startswith("void"):
            remedy = "NumPy has no bfloat16: save array.astype(numpy.float32), or a tensor as safetensors"
        raise BadDataError(where, expected=f"logits in {', '.join(FLOATS)}", found=array.dtype, remedy=remedy)
    if file.path.suffix == NPY and array.dtype == "bfloat16":
        raise BadDataError(
            where,
            expected="logits in float16, float32 or float64",
            found="bfloat16, which NumPy does not have",
            remedy="save array.astype(numpy.float32), or a tensor as safetensors",
        )
    if len(array.shape) not in (2, 3) or array.shape[-1] < 2:
        raise BadDataError(
            where,
            expected="an array (row, class) of at least 2 classes, or (view, row, class)",
            found=f"shape {array.shape}",
            remedy="save one row of logits for each example",
        )
    if len(array.shape) == 3:
        chosen = _checked_view(view, array.shape[0], where)
        return LogitFile(file, name, array, chosen, 0, array.shape[1], chosen)
    if "view" in file.arrays and (of_view := _rows_of_view(file, view)) is not None:
        return LogitFile(file, name, array, None, of_view.start, len(of_view), view or 0)
    if view not in (None, 0):
        _checked_view(view, 1, where)
    return LogitFile(file, name, array, None, 0, array.shape[0])


def _checked_view(view: int | None, views: int, where: str) -> int:
    """Return the view that is imported. Raises BadDataError, ConfigError."""
    if views == 1 and view is None:
        return 0
    if view is None:
        raise BadDataError(
            where,
            expected="logits of one view",
            found=f"{views} views",
            remedy="choose one with --view (view=…); import the others under names of their own",
        )
    if not 0 <= view < views:
        raise ConfigError(
            f"{where}: view", expected=f"0 to {views - 1}", found=str(view), remedy="name another view"
        )
    return view


def _rows_of_view(file: FoundFile, view: int | None) -> range | None:
    """Return the rows of one view in a table with a column of views; None where it has one view alone."""
    views = file.arrays["view"].read(slice(None))
    there = np.unique(views)
    if len(there) < 2 and view in (None, *there.tolist()):
        return None
    where = f"{file.path}: view"
    if view is None:
        _checked_view(None, len(there), where)
    places = np.flatnonzero(views == view)
    if not len(places) or places[-1] - places[0] + 1 != len(places):
        raise ConfigError(
            where,
            expected="a view whose rows stand one after another",
            found=f"view {view}: {len(places)} rows",
            remedy=f"name one of {', '.join(map(str, there[:8].tolist()))}, or sort the table by view",
        )
    return range(int(places[0]), int(places[-1]) + 1)
