"""The arrays of a window: rows, views and labels, inputs, and the logits of each teacher as they are stored."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..parts.reader import CaptureReader, Samples
from ..parts.root import Root
from .escaped import EscapedField
from .fetch_ahead import Source
from .order import ChunkRun
from .window import Field

_MOST_LABEL_BYTES: Final = 32 << 20
"""Bytes of the labels of all rows up to which they are read once and held, of a remote store."""


class Labels:
    """The labels of rows. Of a remote store they are read once, unless there are many: they are small, and asked for often."""

    def __init__(self, samples: Samples, root: Root) -> None:
        self._samples = samples
        size = 8 * root.grid.num_rows
        self.held_bytes = size if root.folder.is_remote and size <= _MOST_LABEL_BYTES else 0
        """Bytes of the labels of all rows; 0 where they are read run by run."""

    def hold(self) -> None:
        """Read the labels that are held."""
        if self.held_bytes:
            _ = self._samples.labels

    @property
    def field(self) -> Field:
        """The array of a window."""
        sources = () if self.held_bytes else (Source(self._samples.reader, "label", has_views=False),)
        return Field("labels", np.dtype(np.int64), (), self._read, sources)

    def _read(self, run: ChunkRun, out: NDArray[Any]) -> None:
        rows = run.rows
        if not self.held_bytes:
            self._samples.read_labels(rows, out)
        else:
            out[...] = self._samples.labels[slice(rows.start, rows.stop) if isinstance(rows, range) else rows]


def fields_of(labels: Labels, inputs: Sequence[Field], captures: Mapping[str, CaptureReader]) -> list[Field]:
    """Return the arrays of a window."""
    int64 = np.dtype(np.int64)
    fields = [
        Field("rows", int64, (), _read_rows),
        Field("views", int64, (), lambda run, out: out.fill(run.view)),
        labels.field,
        *inputs,
    ]
    for name, capture in captures.items():
        for array in capture.encoding.decoded_from:
            layout = capture.part.layouts[array]
            read = partial(_read_stored, capture, array)
            source = (Source(capture.reader, array, has_views=True),)
            fields.append(Field(f"{array}/{name}", layout.numpy_dtype, layout.row_shape, read, source))
    return fields


def sources_of(fields: Sequence[Field], escaped: Sequence[EscapedField]) -> list[Source]:
    """Return the stored arrays that a window is read from."""
    sources = [source for field in fields for source in field.sources]
    return sources + [Source(field.capture.reader, "escape", has_views=True) for field in escaped]


def _read_rows(run: ChunkRun, out: NDArray[Any]) -> None:
    rows = run.rows  # NumPy takes a range element by element.
    out[...] = np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows


def _read_stored(capture: CaptureReader, array: str, run: ChunkRun, out: NDArray[Any]) -> None:
    capture.read_stored_into(array, run.rows, run.view, out)
