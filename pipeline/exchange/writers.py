"""Exports in the three forms, each written piece by piece into files that appear whole.

`Writer.note` reads the note of a file that is there, `Writer.write` makes the files. The note comes first, in the file or
beside it, and the logits last: where the logits are, everything is.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from ...storage.backends.posix import expecting_folders, open_plain, sync_directory
from ...storage.backends.whole_file import name_taken, whole_file
from ...storage.extras import naming_extras
from ...storage.format.documents import canonical_json
from ...storage.parts.reader import texts_of
from .columns import OF_VIEWS, Columns, in_order
from .forms import (
    BESIDE,
    MAX_NOTE_BYTES,
    NOTE,
    NOTE_BESIDE,
    NPY,
    PARQUET,
    SAFETENSORS,
    as_note,
    beside,
    mapped_array,
)
from .tensors import read_header

Report = Callable[[int], None]
"""Called with the number of rows of logits that were written."""
_DTYPES: Final[Mapping[str, str]] = {
    "row": "int64",
    "source": "int64",
    "label": "int64",
    "peak": "float32",
    "id": "uint8",
}
_SAFETENSORS_DTYPES: Final[Mapping[str, str]] = {
    "int64": "I64",
    "float32": "F32",
    "float16": "F16",
    "uint8": "U8",
}
_ALIGNED: Final = 8
"""Bytes of which the beginning of the tensors is a multiple, as their readers map them."""


@runtime_checkable
class Writer(Protocol):
    """A writer of one form."""

    @property
    def suffix(self) -> str:
        """Return the ending of the names of its files."""

    def note(self, path: Path) -> dict[str, Any] | None:
        """Return the note of the export at `path`, if it is whole; None for another file. Raises OSError."""

    def size(self, columns: Columns, note: Mapping[str, Any]) -> int:
        """Return the bytes of the files; of compressed ones, about as many."""

    def write(
        self, path: Path, columns: Columns, note: Mapping[str, Any], replace: bool, report: Report
    ) -> None:
        """Write the files. Raises NameTaken for one that is there and is not to be replaced."""


def _dtype(columns: Columns, name: str) -> np.dtype[Any]:
    return np.dtype(columns.dtype if name == "logits" else _DTYPES[name]).newbyteorder("<")


def _shape(columns: Columns, name: str) -> tuple[int, ...]:
    """Return the shape of a column as one array: without an axis of views where there is one view alone."""
    views = columns.views if name in OF_VIEWS and len(columns.views) > 1 else ()
    row: tuple[int, ...] = ()
    if name == "logits":
        row = (columns.num_columns,)
    elif name == "id":
        row = columns.store.samples.reader.layout("id").row_shape
    return (*([len(views)] if views else []), len(columns.rows), *row)


def _bytes(columns: Columns, name: str) -> int:
    return int(np.prod(_shape(columns, name), dtype=np.int64)) * _dtype(columns, name).itemsize


def _put(file: BufferedWriter, columns: Columns, name: str, report: Report) -> None:
    """Write a whole column as the bytes of one array."""
    dtype = _dtype(columns, name)
    for piece in columns.each(name):
        file.write(np.ascontiguousarray(piece, dtype=dtype).data)
        if name == "logits":
            report(len(piece))


class NpyWriter:
    """An array of logits, with the other columns and the note in files beside it."""

    suffix: Final = NPY

    def note(self, path: Path) -> dict[str, Any] | None:
        note = read_note(beside(path, NOTE_BESIDE))
        if note is None:
            return None
        try:
            array = mapped_array(path)
        except (ValueError, EOFError):
            return None
        shape, dtype = note.get("shape"), note.get("dtype")
        return note if [list(array.shape), array.dtype.name] == [shape, dtype] else None

    def size(self, columns: Columns, note: Mapping[str, Any]) -> int:
        return len(canonical_json(note)) + sum(_bytes(columns, name) + 128 for name in columns.names)

    def write(
        self, path: Path, columns: Columns, note: Mapping[str, Any], replace: bool, report: Report
    ) -> None:
        noted = beside(path, NOTE_BESIDE)
        # Files that a killed export of the same left are its own, and written again.
        ours = replace or (noted.exists() and read_note(noted) == note)
        others = [name for name in columns.names if name != "logits"]
        # A column that this export lacks would be taken for its own.
        foreign = [beside(path, ending) for name, ending in BESIDE.items() if name not in others]
        if replace:
            # The logits first: beside the new note they would be taken for those that it names.
            _remove([path, *foreign])
        kept = [] if ours else [noted, *(beside(path, BESIDE[name]) for name in others)]
        for taken in [*kept, *foreign]:
            if taken.exists():
                raise name_taken(taken, "a file of another origin")
        with whole_file(noted, replace=ours) as file:
            file.write(canonical_json(note))
        for name in others:
            with whole_file(beside(path, BESIDE[name]), replace=True) as file:
                if name == "id":
                    _put_texts(file, columns)
                else:
                    self._put_array(file, columns, name, report)
        with whole_file(path, replace=replace) as file:
            self._put_array(file, columns, "logits", report)

    @staticmethod
    def _put_array(file: BufferedWriter, columns: Columns, name: str, report: Report) -> None:
        header = {"descr": _dtype(columns, name).str, "fortran_order": False, "shape": _shape(columns, name)}
        with io.BytesIO() as begin:
            np.lib.format.write_array_header_1_0(begin, header)
            file.write(begin.getvalue())
        _put(file, columns, name, report)


def _remove(paths: list[Path]) -> None:
    """Remove files of one folder, in order."""
    for path in paths:
        if os.path.lexists(path):
            with expecting_folders(path):
                path.unlink()
                sync_directory(path.parent)


def _put_texts(file: BufferedWriter, columns: Columns) -> None:
    """Write the ids as a JSON list, one a line."""
    begin = "[\n"
    for piece in columns.each("id"):
        for text in texts_of(piece, f"{columns.store.path}: id"):
            file.write(f"{begin}{json.dumps(text, ensure_ascii=False)}".encode())
            begin = ",\n"
    file.write(b"\n]\n" if len(columns.rows) else b"[]\n")


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the note in a file beside an array; None where there is none. Raises OSError."""
    try:
        with open_plain(path) as file:
            return as_note(json.loads(file.read(MAX_NOTE_BYTES)))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


class SafetensorsWriter:
    """One file of tensors, whose header is known before the first row is read."""

    suffix: Final = SAFETENSORS

    def note(self, path: Path) -> dict[str, Any] | None:
        header = read_header(path)
        return None if header is None else header.note

    def size(self, columns: Columns, note: Mapping[str, Any]) -> int:
        return len(self._header(columns, note)) + sum(_bytes(columns, name) for name in columns.names)

    @staticmethod
    def _ordered(columns: Columns) -> list[str]:
        """Return the columns in the order of the file: the widest numbers first, so that each is aligned."""
        return sorted(columns.names, key=lambda name: -_dtype(columns, name).itemsize)

    def _header(self, columns: Columns, note: Mapping[str, Any]) -> bytes:
        header: dict[str, Any] = {"__metadata__": {NOTE: canonical_json(note).decode()}}
        offset = 0
        for name in self._ordered(columns):
            stop = offset + _bytes(columns, name)
            dtype = _SAFETENSORS_DTYPES[_dtype(columns, name).name]
            shape = list(_shape(columns, name))
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, stop]}
            offset = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNED)
        return len(text).to_bytes(8, "little") + text

    def write(
        self, path: Path, columns: Columns, note: Mapping[str, Any], replace: bool, report: Report
    ) -> None:
        with whole_file(path, replace=replace) as file:
            file.write(self._header(columns, note))
            for name in self._ordered(columns):
                _put(file, columns, name, report)


class ParquetWriter:
    """A table of a line a (view, row), whose logits are lists of one length; a row group a piece."""

    suffix: Final = PARQUET

    def note(self, path: Path) -> dict[str, Any] | None:
        with naming_extras():
            import pyarrow
            from pyarrow import parquet
        try:
            schema = parquet.read_schema(path)
            return as_note(json.loads((schema.metadata or {}).get(NOTE.encode(), b"null")))
        except (pyarrow.ArrowException, ValueError, RecursionError):
            return None

    def size(self, columns: Columns, note: Mapping[str, Any]) -> int:
        return _bytes(columns, "logits")

    def write(
        self, path: Path, columns: Columns, note: Mapping[str, Any], replace: bool, report: Report
    ) -> None:
        with naming_extras():
            import pyarrow as pa
            from pyarrow import parquet
        number = pa.float16() if columns.dtype == "float16" else pa.float32()
        types = {"peak": pa.float32(), "id": pa.string(), "logits": pa.list_(number, columns.num_columns)}
        names = ["view", *columns.names]
        fields = [pa.field(name, types.get(name, pa.int64())) for name in names]
        schema = pa.schema(fields, metadata={NOTE: canonical_json(note)})

        def arrays(name: str, rows: Any, view: int) -> Any:
            if name == "view":
                return pa.array(np.full(len(rows), view, np.int64))
            values = columns.read(name, rows, view)
            if name == "id":
                return pa.array(texts_of(values, f"{columns.store.path}: id"), types["id"])
            if name == "logits":
                flat = pa.array(np.ascontiguousarray(values).reshape(-1), number)
                return pa.FixedSizeListArray.from_arrays(flat, columns.num_columns)
            return pa.array(values, types.get(name, pa.int64()))

        def table(piece: tuple[Any, int]) -> Any:
            return pa.table([arrays(name, *piece) for name in names], schema=schema)

        with whole_file(path, replace=replace) as file:
            # Logits have hardly two equal values: a dictionary of them costs time and memory for nothing.
            writer = parquet.ParquetWriter(file, schema, use_dictionary=["id", "label", "view"])
            try:
                for made in _tables(columns, table):
                    writer.write_table(made, row_group_size=max(1, len(made)))
                    report(len(made))
                writer.close()
            except BaseException:
                _abandon(writer)
                raise


def _tables(columns: Columns, make: Callable[[tuple[Any, int]], Any]) -> Iterator[Any]:
    asked = ((rows, view) for view in columns.views for rows in columns.pieces())
    return in_order(asked, make, columns.ahead)


def _abandon(writer: Any) -> None:
    """Close a writer of a file that is given up: it may fail again at its end."""
    with contextlib.suppress(Exception):  # the first error is raised
        writer.close()


WRITERS: Final[tuple[Writer, ...]] = (NpyWriter(), SafetensorsWriter(), ParquetWriter())
"""A writer of each form."""
