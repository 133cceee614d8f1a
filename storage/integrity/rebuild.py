"""Which bytes did a file of metadata have, where only its sha256 is left of it?

The metadata of a store are few and follow from each other: an array's `zarr.json` from its name, the cut of the store and
the size of its shards; a group's from its kind. Everything that they may have been is written out, and what has the
digest is what they were. A search that finds nothing says so; nothing is ever guessed.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import numpy as np

from ..backends.local import Folder
from ..encodings.encoding import ArraySpec
from ..encodings.named import encoding_described
from ..errors import LogitStoreError
from ..format.constants import (
    FEATURES,
    GROUPS,
    MAX_DIMENSIONS,
    MAX_JSON_BYTES,
    ROOT_METADATA,
    SAMPLES,
    SEAL,
    SPEC,
)
from ..format.documents import parse_json, parse_spec, sha256_hex
from ..format.grid import Grid
from ..format.layouts import DIMENSIONS, DTYPES_OF, block_array, dtypes_of, form_of, small_array
from ..format.metadata import ArrayLayout, RootAttributes, group_metadata
from ..format.shard import CRC_BYTES
from ..parts.journal import Seal, SealTable, is_part, part_record, read_checked
from ..parts.sealed_part import KINDS, part_metadatas

_MAX_SHAPES: Final = 20_000
"""Shapes that are tried for an array: those of an image in half a second."""


_MAX_CLASSES: Final = 1 << 17
"""Numbers of classes that are tried for a root, where nothing says it."""


def factorizations(number: int, factors: int) -> Iterator[tuple[int, ...]]:
    """Every way to write a number as a product of so many factors, in order.

    >>> list(factorizations(4, 2)), list(factorizations(1, 0)), list(factorizations(3, 0))
    ([(1, 4), (2, 2), (4, 1)], [()], [])
    """
    if factors <= 1:
        if factors or number == 1:
            yield (number,) * factors
        return
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    for first in sorted({*small, *(number // d for d in small)}):
        yield from ((first, *rest) for rest in factorizations(number // first, factors - 1))


def _with_digest(candidates: Iterable[bytes], digest: str) -> bytes | None:
    return next((data for data in candidates if sha256_hex(data) == digest), None)


def group_of_part(name: str, digest: str) -> bytes | None:
    """`zarr.json` of a part, by its sha256; None where it is none that format 1.0 has."""
    return _with_digest(part_metadatas(name), digest)


def form_of_seal(name: str, seal: Seal) -> str:
    """The form of a sealed part, by the arrays that its seal lists."""
    return form_of(KINDS[name.partition("/")[0]], [key.partition("/")[0] for key in seal.files])


def array_of_part(
    folder: Folder, name: str, array: str, seal: Seal, table: SealTable | None, grid: Grid
) -> bytes | None:
    """`zarr.json` of an array of a sealed part, by its sha256 in the seal; None where it is not found.

    name: of the part. table: its `seal.bin`, which says how large shards are; None where that is lost, too.
    """
    form = form_of_seal(name, seal)
    digest = seal.files[f"{array}/{ROOT_METADATA}"]
    chunks = dict(seal.arrays).get(array)
    if chunks is None:
        return _with_digest((layout.to_bytes() for layout in _small_layouts(folder, form, array)), digest)
    if table is None or not table.shape[0] or not table.shape[1]:
        return None
    views, where = max(1, seal.views), str(folder.path / array)
    found: Iterable[ArrayLayout]
    if form in FEATURES:
        found = _encoded_layouts(folder, form, array, seal, grid, where)
    else:
        row_bytes = _row_bytes(table.size(array, 0, 0), chunks, grid)
        found = _block_layouts(form, array, row_bytes, views, grid, where)
    return _with_digest((layout.to_bytes() for layout in found), digest)


def _encoded_layouts(
    folder: Folder, form: str, array: str, seal: Seal, grid: Grid, where: str
) -> Iterator[ArrayLayout]:
    """Layouts of an array of an encoded capture: its spec says what the encoding stores, its classes how many."""
    try:
        spec, _ = parse_spec(read_checked(folder, SPEC, seal.files[SPEC]), where)
        encoding = encoding_described(spec.get("encoding"), where)
    except (KeyError, FileNotFoundError, LogitStoreError):
        return
    for small in _small_layouts(folder, form, "classes"):
        try:
            specs = [*encoding.arrays(small.shape[0]), ArraySpec("seen", DTYPES_OF["seen"], ())]
        except LogitStoreError:
            continue
        for found in specs:
            if found.name == array:
                yield block_array(
                    form,
                    array,
                    found.dtype,
                    grid,
                    views=seal.views,
                    row_shape=found.row_shape,
                    where=where,
                    attributes=found.attributes,
                )


def _row_bytes(shard_size: int, chunks_per_shard: int, grid: Grid) -> int:
    """Bytes of a row, from the size of the shard of block 0; 0 where there is no such size."""
    chunk_rows = grid.block_rows // chunks_per_shard
    if not chunk_rows:
        return 0
    present = -(-len(grid.rows(0)) // chunk_rows)
    payload, rest = divmod(shard_size - 16 * chunks_per_shard - CRC_BYTES, present)
    row, odd = divmod(payload - CRC_BYTES, chunk_rows)
    return 0 if rest or odd else max(0, row)


def _block_layouts(
    form: str, array: str, row_bytes: int, views: int, grid: Grid, where: str
) -> Iterator[ArrayLayout]:
    leading = 1 if form == "samples" else 2
    known = DIMENSIONS[form].get(array)
    dtypes = dtypes_of(form, array)
    if not row_bytes:
        return
    depths = range(MAX_DIMENSIONS - leading + 1) if known is None else [len(known) - leading]
    shapes = (
        (dtype, shape)
        for depth in depths
        for dtype in dtypes
        if row_bytes % _item_bytes(dtype) == 0
        for shape in factorizations(row_bytes // _item_bytes(dtype), depth)
    )
    for dtype, shape in islice(shapes, _MAX_SHAPES):
        yield block_array(form, array, dtype, grid, views=views, row_shape=shape, where=where)


def _small_layouts(folder: Folder, form: str, array: str) -> Iterator[ArrayLayout]:
    """Layouts of a small array whose first chunk, which nearly always is its only one, is there."""
    dimensions = DIMENSIONS[form].get(array)
    if dimensions is None:
        return
    key = f"{array}/c.{'.'.join('0' * len(dimensions))}"
    try:
        size = folder.read_range(key, 0, 0)[1] - CRC_BYTES
    except (FileNotFoundError, LogitStoreError):
        return
    item = _item_bytes(DTYPES_OF[array])
    if size > 0 and size % item == 0:
        for shape in islice(factorizations(size // item, len(dimensions)), _MAX_SHAPES):
            yield small_array(form, array, shape)


def _item_bytes(dtype: str) -> int:
    return np.dtype(dtype).itemsize


def root_file(folder: Folder, key: str, digest: str) -> bytes | None:
    """`zarr.json` of the root or of one of its groups, by its sha256; None where it is not found."""
    if key != ROOT_METADATA:
        return _with_digest([group_metadata()], digest)
    for rows, block_rows in sorted(_cuts(folder)):
        one = RootAttributes(rows, 2, block_rows).to_bytes()
        before, number, after = one.partition(b'"num_classes":2,')
        assert number
        candidates = (
            b'%b"num_classes":%d,%b' % (before, classes, after) for classes in range(2, _MAX_CLASSES)
        )
        found = _with_digest(candidates, digest)
        if found is not None:
            return found
    return None


def log_record(folder: Folder, previous: bytes, digest: str) -> bytes | None:
    """The record of the log that follows `previous`, by its sha256; None where no part that is there has it."""
    parts = [SAMPLES, *(f"{group}/{name}" for group in GROUPS for name in folder.names(group))]
    return _with_digest((data for part in parts if (data := record_of(folder, part, previous))), digest)


def record_of(folder: Folder, part: str, previous: bytes) -> bytes | None:
    """The record that a part has in the log where it follows `previous`; None where the part has no seal."""
    try:
        seal = folder.sub(part).read(SEAL) if is_part(part) else None
    except (LogitStoreError, OSError):
        return None
    if seal is None:
        return None
    return part_record(part, sha256_hex(previous), sha256_hex(seal))


def _cuts(folder: Folder) -> set[tuple[int, int]]:
    """(rows, rows a block) as the arrays of the parts have them. They are not believed: a digest decides."""
    keys = [
        f"{SAMPLES}/source/{ROOT_METADATA}",
        *(f"{g}/{name}/peak/{ROOT_METADATA}" for g in GROUPS for name in folder.names(g) if "." not in name),
    ]
    found: set[tuple[int, int]] = set()
    for key in keys[:16]:
        try:
            data = folder.read(key)
            if len(data) > MAX_JSON_BYTES:
                continue
            value: dict[str, Any] = parse_json(data, key)
            rows, block = value["shape"][-1], value["chunk_grid"]["configuration"]["chunk_shape"][-1]
            if isinstance(rows, int) and isinstance(block, int):
                found.add((rows, block))
        except (LogitStoreError, OSError, KeyError, TypeError, IndexError):
            continue
    return found
