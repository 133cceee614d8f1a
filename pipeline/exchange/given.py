"""The rows of an import: logits of several files in order, with the labels, ids and names that are given or lie beside them."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.checks import as_labels
from ...storage.errors import BadDataError, ConfigError
from ...storage.parts.reader import texts_of
from .arrays import choose, is_text, open_file, read_texts
from .forms import BESIDE, NPY, beside, local_file
from .found import FoundArray, FoundFile, damaged

FLOATS: Final = ("float16", "bfloat16", "float32", "float64")
"""Dtypes of logits."""
_LOGITS: Final = ("logits", "logit", "z", "outputs")
_LABELS: Final = ("label", "labels", "target", "targets", "y")
_IDS: Final = ("id", "ids", "name", "names", "key", "__key__")
"""Names of arrays, those of an export first."""


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
    name = "" if stands_alone else choose(file, _LOGITS, column, _is_dense)
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


def labels_given(given: Any, logits: GivenLogits) -> NDArray[np.int64] | None:
    """Return the labels of the rows: those that are given, else those in or beside the files. Raises BadDataError."""
    if given is not None:
        found = [_labels_of(one) for one in as_places(given)]
    else:
        found = [one for file in logits.files if (one := _labels_in(file)) is not None]
        if len(found) < len(logits.files):
            return None
    labels = as_labels(np.concatenate(found)) if len(found) > 1 else as_labels(found[0])
    _check_length("labels", len(labels), logits)
    return labels


def as_places(given: Any) -> list[Any]:
    """Return one file, several, or one sequence of values as a list of files or of the sequence."""
    if isinstance(given, str | os.PathLike):
        return [given]
    if isinstance(given, list | tuple) and given and all(isinstance(one, os.PathLike) for one in given):
        return list(given)
    return [given]


def _labels_of(given: Any) -> NDArray[Any]:
    if not isinstance(given, str | os.PathLike):
        return as_labels(given)
    path = local_file(given, "labels", "download the file first")
    if is_text(path):
        return _numbers(read_texts(path), path)
    file = open_file(path)
    name = choose(file, _LABELS, None, lambda array: len(array.shape) == 1 and array.dtype not in FLOATS)
    return _integers(file.arrays[name].read(slice(None)), path)


def _numbers(texts: list[Any], path: Path) -> NDArray[np.int64]:
    """Return lines of a text as whole numbers. Raises BadDataError with the first that is none."""
    numbers = []
    for row, text in enumerate(texts):
        try:
            if isinstance(text, float | bool) or text is None:
                raise ValueError
            numbers.append(int(text))
        except (ValueError, TypeError):
            raise BadDataError(
                f"{path}, row {row}",
                expected="the number of a class, or -1",
                found=repr(text)[:80],
                remedy="write one whole number a row",
            ) from None
    return np.array(numbers, np.int64)


def _integers(values: NDArray[Any], path: Path) -> NDArray[Any]:
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise BadDataError(
            str(path),
            expected="labels: one whole number a row",
            found=f"{values.dtype} of shape {values.shape}",
            remedy="save the number of each row's class, -1 where it is unknown",
        )
    return values


def _labels_in(file: LogitFile) -> NDArray[Any] | None:
    """Return the labels that stand in a file of logits, or beside an export."""
    found = _beside(file, "label") or _inside(file, _LABELS)
    if found is None or found.dtype in FLOATS or len(found.shape) != 1:
        return None
    values = found.read(slice(None))
    return _integers(_of_rows(file, values), file.file.path)


def _of_rows(file: LogitFile, values: Any) -> Any:
    """Return the part of a column of a file that belongs to the rows that are taken."""
    return values[file.first : file.first + file.rows] if file.view is None else values


def _beside(file: LogitFile, name: str) -> FoundArray | None:
    path = beside(file.file.path, BESIDE[name])
    if file.file.path.suffix != NPY or file.file.note is None or not path.exists():
        return None
    return open_file(path).arrays[""]


def _inside(file: LogitFile, names: tuple[str, ...]) -> FoundArray | None:
    return next((file.file.arrays[name] for name in names if name in file.file.arrays), None)


def ids_given(given: Any, logits: GivenLogits) -> list[str] | None:
    """Return the ids of the rows: those that are given, else those in or beside the files. Raises BadDataError."""
    if given is not None:
        found = [_ids_of(one) for one in as_places(given)]
    else:
        found = [one for file in logits.files if (one := _ids_in(file)) is not None]
        if len(found) < len(logits.files):
            return None
    ids = [one for some in found for one in some]
    _check_length("ids", len(ids), logits)
    return ids


def _ids_of(given: Any) -> list[str]:
    if not isinstance(given, str | os.PathLike):
        return _as_ids(given, "ids")
    path = local_file(given, "ids", "download the file first")
    if is_text(path):
        return _as_ids(read_texts(path), str(path))
    file = open_file(path)
    texts = _texts(file, _IDS)
    if texts is None and len(file.texts) == 1:
        texts = next(iter(file.texts.values()))
    if texts is not None:
        return texts()
    name = choose(file, _IDS, None, lambda array: array.dtype not in FLOATS and len(array.shape) in (1, 2))
    return _as_ids(file.arrays[name].read(slice(None)), str(path))


def _texts(file: FoundFile, names: tuple[str, ...]) -> Callable[[], list[str]] | None:
    return next((file.texts[name] for name in names if name in file.texts), None)


def _ids_in(file: LogitFile) -> list[str] | None:
    if file.file.path.suffix == NPY:
        path = beside(file.file.path, BESIDE["id"])
        if file.file.note is None or not path.exists():
            return None
        return _as_ids(read_texts(path), str(path))
    if (texts := _texts(file.file, ("id", "ids"))) is not None:
        ids: list[str] = _of_rows(file, texts())
        return ids
    found = _inside(file, ("id", "ids"))
    if found is None or found.dtype in FLOATS:
        return None
    return _as_ids(_of_rows(file, found.read(slice(None))), str(file.file.path))


def _as_ids(values: Any, where: str) -> list[str]:
    """Return ids as texts: from texts, whole numbers, or padded bytes as an export has them. Raises BadDataError."""
    if isinstance(values, np.ndarray):
        if values.dtype == np.uint8 and values.ndim == 2:
            return texts_of(values, where)
        if values.ndim != 1 or values.dtype.kind not in "iuUS":
            raise BadDataError(
                where,
                expected="ids: one text or whole number a row",
                found=f"{values.dtype} of shape {values.shape}",
                remedy="save one id a row",
            )
        values = values.tolist()
    ids = [one.decode(errors="replace") if isinstance(one, bytes) else one for one in values]
    for row, one in enumerate(ids):
        if not isinstance(one, str | int) or isinstance(one, bool):
            raise BadDataError(
                f"{where}, row {row}", expected="a text", found=repr(one)[:80], remedy="write one id a row"
            )
    return [str(one) for one in ids]


def names_given(given: Any, logits: GivenLogits) -> list[str] | None:
    """Return the names of the classes: those that are given, else those of an export. Raises BadDataError."""
    if given is None:
        note = logits.note
        names = None if note is None else note.get("class_names")
        return list(names) if isinstance(names, list) else None
    if isinstance(given, str | os.PathLike):
        path = local_file(given, "classes", "download the file first")
        values: Any = read_texts(path) if is_text(path) else None
        if values is None:
            raise damaged(path, "class names in .txt, a line a class, or .json, a list", path.suffix)
        return _as_ids(values, str(path))
    return _as_ids(list(given), "class_names")


def _check_length(what: str, found: int, logits: GivenLogits) -> None:
    if found != logits.num_rows:
        raise BadDataError(
            what,
            expected=f"{logits.num_rows:,}, one a row of the logits",
            found=f"{found:,}",
            remedy=f"name {what} of the same rows, in the same order",
        )
