"""One part of a new store, whose rows are those of parts of other stores, as they are stored there.

The rows of a block come from one source, or from several where it lies across their border. They are read through the checks
of any reader, and written by the protocol of any writer: block by block, resumed where a killed call stopped.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..format.constants import SAMPLES
from ..format.grid import Grid
from ..format.layouts import block_array, small_array
from ..format.metadata import ArrayLayout
from ..parts.part_reader import PartReader
from ..parts.part_writer import PartWriter
from ..parts.root import Root
from ..parts.same_rows import augmentation_of, check_seen, is_augmented
from ..parts.sealed_part import SealedPart
from ..progress import Progress
from ..stream.row_numbers import numbered_rows
from .same_parts import OF_SPEED, PADDED, common, identity_without_rows, replace_texts


def layouts_of(name: str, parts: Sequence[SealedPart]) -> Iterator[ArrayLayout]:
    """Yield the arrays of the first part; rows that are padded get the width of the longest of all."""
    for array, layout in parts[0].layouts.items():
        if name == SAMPLES and array in PADDED:
            yield max((part.layouts[array] for part in parts), key=lambda one: one.row_bytes)
        else:
            yield layout


def padded(rows: NDArray[Any], width: int) -> NDArray[Any]:
    """Return rows of bytes, padded with zeros to a width: contiguous (rows, width)."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, width - rows.shape[1]))))


class _RowsWriter(PartWriter):
    """A writer of a part whose rows are those of other parts, as they are stored."""

    is_exact = True
    rare = ("escape",)

    def __init__(self, root: Root, name: str, augmentation: Mapping[str, Any] | None, **more: Any) -> None:
        self._augmentation = augmentation
        super().__init__(root, name, **more)

    def check_rows(self, view: int, block: int) -> None:
        if self.name == SAMPLES or is_augmented(self._augmentation, view):
            return
        rows = self.root.grid.rows(block)
        digests = PartReader(self.root.part(SAMPLES), self.root.grid).read("digest", rows)
        check_seen(
            f"{self._where}, view {view}", rows, self.stored("seen", view, block), digests, self.remake
        )


def write_part(
    root: Root,
    sources: Sequence[Root],
    name: str,
    parts: Sequence[SealedPart],
    layouts: Sequence[ArrayLayout],
    progress: Progress,
) -> None:
    """Write the missing blocks of a part, and seal it. layouts: of `layouts_of`. Raises as writers and readers do."""
    first, grid, where = parts[0], root.grid, f"{root.path}: {name}"
    views = max(1, first.seal.views)
    laid = [
        block_array(
            first.form,
            layout.name,
            layout.dtype,
            grid,
            views=views,
            row_shape=layout.row_shape,
            where=where,
            attributes=layout.attributes,
        )
        if layout.is_block_array
        else small_array(first.form, layout.name, layout.shape)
        for layout in layouts
    ]
    identity = _identity(root, sources, name, parts)
    writer = _RowsWriter(
        root,
        name,
        None if name == SAMPLES else augmentation_of(first.spec.identity, where),
        views=views,
        identity=identity,
        notes=common([part.spec.notes for part in parts]) | {"stores": [source.digest for source in sources]},
        layouts=laid,
        small={layout.name: first.small(layout.name) for layout in layouts if not layout.is_block_array},
    )
    readers = [PartReader(part, source.grid) for part, source in zip(parts, sources, strict=True)]
    firsts = _firsts(readers) if name == SAMPLES else [0] * len(readers)
    total, done = views * grid.num_rows, views * grid.num_rows - _missing_rows(writer, grid, views)
    with contextlib.closing(writer):
        progress(f"concatenate {name}", done, total)
        for view in range(views):
            for rows in list(writer.missing_blocks(view)):
                block = rows.start // grid.block_rows
                arrays = {
                    layout.name: _rows_of(readers, firsts, layout, rows, view)
                    for layout in laid
                    if layout.is_block_array
                }
                writer.commit(view, block, partial(_cut, arrays))
                done += len(rows)
                progress(f"concatenate {name}", done, total)
        writer.seal()


def _missing_rows(writer: PartWriter, grid: Grid, views: int) -> int:
    return sum(len(rows) for view in range(views) for rows in writer.missing_blocks(view))


def _cut(arrays: Mapping[str, NDArray[Any]], part: slice) -> dict[str, NDArray[Any]]:
    return {name: values[part] for name, values in arrays.items()}


def _rows_of(
    readers: Sequence[PartReader], firsts: Sequence[int], layout: ArrayLayout, rows: range, view: int
) -> NDArray[Any]:
    """Return rows of the new store as they are stored in the sources. firsts: what is added to their `source`."""
    pieces, begin = list[NDArray[Any]](), 0
    for reader, first in zip(readers, firsts, strict=True):
        count = reader.grid.num_rows
        inside = range(max(rows.start - begin, 0), min(rows.stop - begin, count))
        if inside:
            values = reader.read(layout.name, inside, view)
            if layout.name in PADDED and layout.row_axis == 0:
                values = padded(values, layout.row_bytes)
            pieces.append(values + first if layout.name == "source" else values)
        begin += count
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _firsts(readers: Sequence[PartReader]) -> list[int]:
    """Return the index of the first example of each source in the transfer sets, one behind the other."""
    examples = [int(reader.read("source", slice(None)).max(initial=-1)) + 1 for reader in readers]
    return [sum(examples[:number]) for number in range(len(readers))]


def _identity(root: Root, sources: Sequence[Root], name: str, parts: Sequence[SealedPart]) -> dict[str, Any]:
    """Return the identity of a new part: what the sources agree in, and the seal of each."""
    identity: dict[str, Any] = {"concatenated": [part.digest for part in parts]}
    if name == SAMPLES:
        rows = [
            count
            for source, part in zip(sources, parts, strict=True)
            for count in numbered_rows(part.spec.identity, source.grid.num_rows, f"{source.path}: {SAMPLES}")
        ]
        identity |= {"transfer_set": None, "order": {"kind": "as_is"}, "numbered": rows}
    # A capture that was made from another one here was, in the new store, made from that one's rows there.
    seals = {
        f"the seal of {record.part}": root.digest_of(record.part) if root.has(record.part) else None
        for record in sources[0].log
    }
    agreed = common([part.spec.identity for part in parts])
    speed = {key: value for key, value in agreed.items() if key in OF_SPEED}
    return {**identity, **speed, **replace_texts(identity_without_rows(sources[0], parts[0]), seals)}
