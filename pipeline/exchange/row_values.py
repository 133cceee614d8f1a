"""Labels and ids of the rows of an import, and names of its classes: in hand, in a file of their own, or in or beside an export."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.checks import as_labels
from ...storage.errors import BadDataError
from ...storage.parts.reader import texts_of
from .arrays import choose, is_text, open_file, read_texts
from .forms import BESIDE, NPY, beside, local_file
from .found import FoundArray, FoundFile, damaged
from .given import FLOATS, GivenLogits, LogitFile

_LABELS: Final = ("label", "labels", "target", "targets", "y")
_IDS: Final = ("id", "ids", "name", "names", "key", "__key__")
"""Names of arrays, those of an export first."""
_ONE_FILE: Final = "save them alone, in a file of their own"


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
    name = choose(file, _LABELS, None, _is_one_a_row, "of whole numbers, one a row", _ONE_FILE)
    return _integers(file.arrays[name].read(slice(None)), path)


def _is_one_a_row(array: FoundArray) -> bool:
    return len(array.shape) == 1 and array.dtype not in FLOATS


def _are_ids(array: FoundArray) -> bool:
    return len(array.shape) in (1, 2) and array.dtype not in FLOATS


def _numbers(texts: list[Any], path: Path) -> NDArray[np.int64]:
    """Return lines of a text as whole numbers. Raises BadDataError with the first that is none."""
    numbers = []
    for row, text in enumerate(texts):
        try:
            if isinstance(text, float | bool) or text is None:
                raise ValueError
            numbers.append(number := int(text))
            if not -(1 << 63) <= number < 1 << 63:
                raise ValueError
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
    if texts is None and len(file.texts) == 1 and not any(name in file.arrays for name in _IDS):
        texts = next(iter(file.texts.values()))
    if texts is not None:
        return texts()
    name = choose(file, _IDS, None, _are_ids, "of texts or whole numbers, one a row", _ONE_FILE)
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
        if isinstance(one, str) and not _is_unicode(one):
            raise BadDataError(
                f"{where}, row {row}",
                expected="a text of Unicode",
                found=f"half a surrogate pair in {one!r}"[:80],
                remedy="write the character itself, in UTF-8",
            )
    return [str(one) for one in ids]


def _is_unicode(text: str) -> bool:
    """Return whether UTF-8 holds a text.

    >>> _is_unicode("ü"), _is_unicode(chr(0xD800))
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
