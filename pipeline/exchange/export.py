"""One capture of a store as a plain file, for tools that read no store.

1. The store, the capture, its views and rows are found; the note of the export names them by their seals.
2. A file that is there is refused, unless it is the same export.
3. Rows are read a piece at a time, and written to a file that appears whole (`storage.backends.whole_file`).

Killed anywhere, it leaves nothing under the name; the same call again begins anew.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ...storage.api import Store, open_store
from ...storage.backends.posix import kind_of, remove_leftovers
from ...storage.backends.system import check_writes
from ...storage.backends.whole_file import check_room, name_taken
from ...storage.checks import check_temperature, check_view
from ...storage.errors import ConfigError
from ...storage.parts.part_reader import check_rows
from ...storage.parts.same_rows import is_augmented
from ...storage.progress import Progress, silent
from .columns import Columns
from .forms import NOTE_VERSION, local_file
from .writers import WRITERS, Writer

_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Exported:
    """The result of an export; of one with `dry_run`, what it would be."""

    store: PurePath
    """The store that was read."""
    digest: str
    """ "sha256:…" of the store, as of which it was read."""
    teacher: str
    """Name of the capture."""
    path: Path
    """The file that was written."""
    dry_run: bool
    """Whether nothing was written."""
    made: bool
    """Whether the file was written now; False for one that was there."""
    rows: int
    """Rows of each view."""
    views: int
    """Views."""
    columns: int
    """Columns of the logits: classes."""
    dtype: str
    """Of the logits."""
    bytes: int
    """Of the file and those beside it; of parquet, of the logits before they are compressed."""


def export_logits(
    store: "Store | str | os.PathLike[str]",
    teacher: str,
    path: "str | os.PathLike[str]",
    *,
    rows: Any = None,
    view: int | None = None,
    dtype: str = "float32",
    temperature: float | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write the logits of one capture, with the numbers, ids and labels of its rows, to a plain file.

    The file appears whole. Some 8 MiB of logits are in memory for each of three pieces, and for each of 17 of a remote store,
    whatever the size of the store.

    store: a store, or its path or URL. teacher: the capture.
    path: `.parquet`: a line a row, with columns row, source, view, id, label, peak and logits. `.safetensors`: the same as
    tensors. `.npy`: the logits alone, with the rest in files beside it.
    rows: a slice or ascending integers; all by default. view: one view; all by default. They are an axis before the rows in
    `.npy` and `.safetensors` where there are several, and one after the other in `.parquet`.
    dtype: "float32", or "float16", which rounds. temperature: of a top-k capture, at which its rows are decoded.
    force: replace a file that is there. dry_run: count, and write nothing.

    Logits are those of `Capture.read`, in nats, the largest of each row 0; `peak` is the constant that was subtracted.
    Raises NameTaken for a file that is there and is not the same export, PartNotFound or StoreIncomplete for the capture,
    ConfigError for arguments that do not fit, BadLogitsError for logits that float16 does not hold, StorageFull before
    anything is written to a disk without room, StoreCorrupt for a damaged store; MissingPackage where parquet has no reader.
    """
    remedy = "export to a local file, and upload that"
    target = local_file(path, "export to", remedy)
    check_writes(str(target))
    writer = _writer_of(target)
    opened = store if isinstance(store, Store) else open_store(store)
    columns = _columns(opened, teacher, rows, view, dtype, temperature)
    note = _note(columns)
    there = _there(writer, target, note, force)
    size = writer.size(columns, note)
    if there and not dry_run:
        remove_leftovers(target)  # of a call that was killed when the file had its name
    if not there and not dry_run:
        check_room(target, size)
        task, done = f"export {teacher}", 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            progress(task, done, columns.total)

        progress(task, 0, columns.total)
        writer.write(target, columns, note, force, report)
    return Exported(
        opened.path,
        opened.digest,
        teacher,
        target,
        dry_run,
        not there,
        len(columns.rows),
        len(columns.views),
        columns.num_columns,
        dtype,
        size,
    )


def _writer_of(path: Path) -> Writer:
    """Return the writer of a file's form. Raises ConfigError."""
    for writer in WRITERS:
        if path.suffix == writer.suffix:
            return writer
    raise ConfigError(
        f"export to {path}",
        expected="a name that ends in .parquet, .safetensors or .npy",
        found=path.suffix or "no ending",
        remedy="choose one of these endings",
    )


def _columns(
    store: Store, teacher: str, rows: Any, view: int | None, dtype: str, temperature: float | None
) -> Columns:
    """Return the columns to be written. Raises ConfigError, PartNotFound, StoreIncomplete."""
    if dtype not in _DTYPES:
        raise ConfigError(
            "dtype",
            expected=" or ".join(_DTYPES),
            found=repr(dtype)[:80],
            remedy="choose one of these",
        )
    capture = store.teachers[teacher]
    if temperature is not None:
        check_temperature(temperature)
        if capture.encoding.is_dense:
            raise ConfigError(
                "temperature",
                expected=f"no temperature: {teacher} keeps every logit, which serve all of them",
                found=f"{temperature:g}",
                remedy="leave it out, and divide the logits by it where they are used",
            )
    capture.check_temperature(temperature)
    every = range(capture.num_views)
    where = f"teachers/{teacher}"
    views = tuple(every) if view is None else (check_view(view, len(every), where, "name another view"),)
    chosen = range(store.num_rows) if rows is None else check_rows(rows, store.num_rows)
    if not len(chosen):
        raise ConfigError("rows", expected="at least one row", found="none", remedy="choose other rows")
    return Columns(store, capture, chosen, views, dtype, temperature)


def _note(columns: Columns) -> dict[str, Any]:
    """Return the note of an export: all that its bytes follow from, and no more."""
    store, capture, rows = columns.store, columns.capture, columns.rows
    chosen: dict[str, Any]
    if isinstance(rows, range):
        chosen = {"start": rows.start, "stop": rows.stop}
    else:
        numbers = np.ascontiguousarray(rows, dtype="<i8")
        chosen = {"count": len(rows), "sha256": hashlib.sha256(numbers.data).hexdigest()}
    shape = [len(rows), columns.num_columns]
    return {
        "logitstore_export": NOTE_VERSION,
        "teacher": capture.name,
        "capture": capture.digest,
        "samples": store.samples.digest,
        "encoding": capture.encoding.describe(),
        "rows": chosen,
        "views": list(columns.views),
        "augmented": [view for view in columns.views if is_augmented(capture.augmentation, view)],
        "shape": shape if len(columns.views) == 1 else [len(columns.views), *shape],
        "dtype": columns.dtype,
        "temperature": columns.temperature,
        "num_classes": store.num_classes,
        "class_names": _names(store),
        "classes": None if capture.has_all_classes else capture.classes.tolist(),
        "largest": 0,
    }


def _names(store: Store) -> Sequence[str] | None:
    """Return the names of the classes; None where they have none."""
    return store.class_names if store.samples.has_class_names else None


def _there(writer: Writer, path: Path, note: dict[str, Any], force: bool) -> bool:
    """Return whether the export is there already. Raises NameTaken for another file."""
    if not os.path.lexists(path):
        return False
    found = _kind(path)
    is_file = found == "a file"
    if is_file:
        with contextlib.suppress(OSError):
            if (other := writer.note(path)) is not None:
                if other == note:
                    return True
                found = f"an export of {_said(other, note)}"
    if not (force and is_file):
        raise name_taken(path, found)
    return False


def _kind(path: Path) -> str:
    with contextlib.suppress(OSError):
        return kind_of(path.stat().st_mode)
    return "a link that leads nowhere"


def _said(other: dict[str, Any], note: dict[str, Any]) -> str:
    """Return the first difference of two exports, in words."""
    key = next(key for key in note if other.get(key) != note[key])
    if key in ("teacher", "capture", "samples"):
        return f"{key} {str(other.get(key))[:19]}, and not {str(note[key])[:19]}"
    return f"other {key}"
