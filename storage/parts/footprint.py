"""How many bytes and files does a store take, before there is one?

1. `plan_grid` cuts the rows into blocks as stage one would, for an encoding that is chosen or not.
2. `samples_footprint` and `capture_footprint` go through the files of a part. Arrays that are stored raw have the
   bytes that their shape says. What a codec makes of the others is taken from a sample: it is encoded into real
   shards, whose bytes a row are those of all rows.
3. Records, seals and metadata are made with digests of zeros, and counted.

A capture of which every row is in the sample is foretold to the byte, but for the digits of its records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from ...pipeline.experiment.document import Experiment
from ...pipeline.transfer import TransferRows
from ..encodings.encoding import ArraySpec, Encoding
from ..format.codec import RAW
from ..format.constants import GROUPS, ROOT_METADATA, SAMPLES, SPEC
from ..format.documents import canonical_json
from ..format.grid import Grid
from ..format.layouts import DTYPES_OF, block_array, features_of, small_array
from ..format.metadata import ArrayLayout, RootAttributes, group_metadata
from ..format.shard import encode_shard, encode_small, index_bytes, shard_bytes
from .journal import Commit, Seal, SealTable, StoredShard, root_record
from .sealed_part import KINDS, part_metadata, small_keys

_ZEROS = "0" * 64
"""A digest that is not known yet: as long as any."""


_CRC = 2**32 - 1
"""A checksum that is not known yet: as many digits as nearly all have."""


@dataclass(frozen=True)
class SampleRows:
    """Which rows of which views a sample holds, in its order: ascending, view by view."""

    views: Int64[np.ndarray, " rows"]
    """View of each row."""
    rows: Int64[np.ndarray, " rows"]
    """Row of the store."""
    of: int
    """How many (view, row) there are in all."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return len(self) == self.of


def spread_rows(num_rows: int, views: int, most: int) -> SampleRows:
    """At most `most` of the rows of all views, evenly spread.

    >>> spread = spread_rows(6, 2, 4)
    >>> spread.views.tolist(), spread.rows.tolist(), spread.is_whole
    ([0, 0, 1, 1], [1, 4, 1, 4], False)
    """
    total = num_rows * views
    count = min(most, total)
    chosen = (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)
    return SampleRows(chosen // num_rows, chosen % num_rows, total)


@dataclass(frozen=True)
class Footprint:
    """What a part takes on a disk."""

    arrays: Mapping[str, int]
    """Bytes of each array that has rows: its shards."""
    metadata: int
    """Bytes of everything else: commit records, seal, spec, metadata, small arrays."""
    files: int
    """Number of files."""

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.arrays.values()) + self.metadata


# Parts


def root_footprint(grid: Grid, num_classes: int, parts: Sequence[str]) -> Footprint:
    """What a store has beside its parts: the root's metadata, and the log that names the parts."""
    files = {ROOT_METADATA: RootAttributes(grid.num_rows, num_classes, grid.block_rows).to_bytes()}
    files |= {f"{group}/{ROOT_METADATA}": group_metadata() for group in GROUPS}
    records = [root_record(files)]
    records += [canonical_json({"part": part, "previous": _ZEROS, "seal": _ZEROS}) for part in parts]
    return Footprint({}, sum(map(len, [*files.values(), *records])), len(files) + len(records))


def samples_footprint(experiment: Experiment, rows: TransferRows, grid: Grid) -> Footprint:
    """The part `samples`: source, digest and label of each row, and what else the experiment keeps."""
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {
        name: (DTYPES_OF[name], ()) for name in ("source", "digest", "label")
    }
    if rows.ids and (width := max(len(i.encode()) for i in rows.ids)):
        arrays["id"] = (DTYPES_OF["id"], (width,))
    if experiment.transfer_set.store_inputs:
        arrays["input"] = (rows.first.dtype.name, rows.first.shape)
    layouts = [
        block_array(SAMPLES, name, dtype, grid, views=1, row_shape=shape, where=SAMPLES)
        for name, (dtype, shape) in arrays.items()
    ]
    small = []
    if rows.class_names is not None:
        shape = (len(rows.class_names), max(1, *(len(name.encode()) for name in rows.class_names)))
        small = [small_array(SAMPLES, "class_name", shape)]
    sizes = {layout.name: _raw_bytes(layout, grid, views=1) for layout in layouts}
    return _part(SAMPLES, SAMPLES, [*layouts, *small], sizes, grid, 1, rows.identity)


def capture_layouts(encoding: Encoding, num_classes: int, grid: Grid, views: int) -> list[ArrayLayout]:
    """The arrays of a capture that have rows. Raises ConfigError or LimitExceeded where there can be none such."""
    specs = [*encoding.arrays(num_classes), ArraySpec("seen", DTYPES_OF["seen"], ())]
    return [
        block_array(
            encoding.form,
            spec.name,
            spec.dtype,
            grid,
            views=views,
            row_shape=spec.row_shape,
            where="a capture",
            attributes=spec.attributes,
        )
        for spec in specs
    ]


def capture_footprint(
    encoding: Encoding,
    num_classes: int,
    grid: Grid,
    views: int,
    stored: Mapping[str, NDArray[Any]],
    sample: SampleRows,
    identity: Mapping[str, Any],
) -> Footprint:
    """The part of one teacher.

    stored: what `encoding` makes of the rows of `sample`, by array; those that no codec makes smaller may be left out.
    identity: about what its spec will say.
    """
    layouts = capture_layouts(encoding, num_classes, grid, views)
    sizes = {}
    for layout in layouts:
        if layout.codec == RAW:
            sizes[layout.name] = _raw_bytes(layout, grid, views)
        else:
            sizes[layout.name] = _encoded_bytes(layout, grid, views, stored[layout.name], sample)
    small = small_array(encoding.form, "classes", (num_classes,))
    spec = {"encoding": encoding.describe(), **identity}
    return _part("teachers", encoding.form, [*layouts, small], sizes, grid, views, spec)


def plain_bytes(encoding: Encoding, columns: int, grid: Grid, views: int) -> int:
    """Bytes of the shards of a capture whose encoding has no codec."""
    return sum(_raw_bytes(layout, grid, views) for layout in capture_layouts(encoding, columns, grid, views))


def _raw_bytes(layout: ArrayLayout, grid: Grid, views: int) -> int:
    """Bytes of the shards of an array whose chunks are raw."""
    return views * sum(shard_bytes(layout, len(grid.rows(block))) for block in range(grid.num_blocks))


def _encoded_bytes(
    layout: ArrayLayout, grid: Grid, views: int, values: NDArray[Any], sample: SampleRows
) -> int:
    """Bytes of the shards of an array whose chunks a codec makes smaller: those of the sample, and as many a row."""
    if sample.is_whole:
        pieces = [
            values[view * grid.num_rows :][grid.rows(block).start : grid.rows(block).stop]
            for view in range(views)
            for block in range(grid.num_blocks)
        ]
        return sum(len(encode_shard(layout, piece).data) for piece in pieces)
    # Whole chunks where there are any: the last one of a shard is filled up with what takes no room.
    whole = len(values) - len(values) % layout.chunk_rows
    values = values[: whole or len(values)]
    pieces = [values[start : start + layout.shard_rows] for start in range(0, len(values), layout.shard_rows)]
    payload = sum(len(encode_shard(layout, piece).data) - index_bytes(layout) for piece in pieces)
    return views * (grid.num_blocks * index_bytes(layout) + round(payload / len(values) * grid.num_rows))


def _part(
    group: str,
    form: str,
    layouts: Sequence[ArrayLayout],
    sizes: Mapping[str, int],
    grid: Grid,
    views: int,
    identity: Mapping[str, Any],
) -> Footprint:
    """A part of which the bytes of the shards are known: with what stands beside them."""
    blocks = views * grid.num_blocks
    sharded = [layout for layout in layouts if layout.is_block_array]
    chunks_of = tuple((layout.name, layout.chunks_per_shard) for layout in sharded)
    files = {
        ROOT_METADATA: part_metadata(KINDS[group], features_of(form)),
        SPEC: canonical_json({"identity": {**identity, "views": views}, "notes": {}}),
    }
    for layout in layouts:
        files[layout.metadata_key] = layout.to_bytes()
        if not layout.is_block_array:
            zeros = np.zeros(layout.shape, layout.numpy_dtype)
            files |= dict(zip(small_keys(layout), encode_small(layout, zeros), strict=True))
    table_bytes = SealTable(chunks_of, 0, 0).record_bytes * blocks
    seal = Seal(
        chunks_of,
        views,
        grid.num_blocks,
        _ZEROS,
        table_bytes,
        dict.fromkeys(files, _ZEROS),
        None if group == SAMPLES else _ZEROS,
    )
    last = grid.rows(grid.num_blocks - 1)
    objects = {
        name: StoredShard(sizes[name] // blocks, _ZEROS, (_CRC,) * chunks) for name, chunks in chunks_of
    }
    record = Commit(views - 1, grid.num_blocks - 1, last, _ZEROS, objects).to_bytes()
    metadata = (
        sum(map(len, files.values())) + len(seal.to_bytes()) + table_bytes + blocks * len(record)
    )  # seal.json and seal.bin are the two files more
    return Footprint(sizes, metadata, len(files) + 2 + blocks * (len(sharded) + 1))
