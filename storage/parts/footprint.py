"""Bytes and files that a store takes, estimated before it is written.

1. Arrays stored raw have the bytes of their shape. Arrays behind a codec have the bytes a row of a sample, which is encoded.
2. Records, seals and metadata are made with digests of zeros, and counted.

Within 1 % of the store that is then written, from 2048 rows of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..encodings.encoding import ArraySpec, Encoding
from ..encodings.transform import Transform
from ..format.codec import RAW
from ..format.constants import GROUPS, ROOT_METADATA, SAMPLES, SPEC
from ..format.documents import canonical_json
from ..format.grid import Grid
from ..format.layouts import DTYPES_OF, block_array, features_of, form_of, small_array
from ..format.metadata import ArrayLayout, RootAttributes, group_metadata
from ..format.shard import encode_shard, encode_small, index_bytes, shard_bytes
from .card import CARD
from .journal import Commit, Seal, SealTable, StoredShard
from .log import root_record
from .sealed_part import KINDS, part_metadata, small_keys

_ZEROS = "0" * 64
_CARD_BYTES: Final = 2 << 10
"""Bytes of the card for people, about: its texts vary."""
"""A digest that is not known yet: as long as any."""
_CRC = 2**32 - 1
"""A checksum that is not known yet: as many digits as nearly all have."""


@dataclass(frozen=True)
class Footprint:
    """Bytes and files of a part."""

    arrays: Mapping[str, int]
    """Bytes of the shards of each array that has rows."""
    metadata: int
    """Bytes of all other files: commit records, seal, spec, metadata, small arrays."""
    files: int
    """Number of files."""

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.arrays.values()) + self.metadata


def root_footprint(grid: Grid, num_classes: int, parts: Sequence[str]) -> Footprint:
    """Estimate the files of a store beside its parts: the root's metadata, the log that names the parts, and the card."""
    files = {ROOT_METADATA: RootAttributes(grid.num_rows, num_classes, grid.block_rows).to_bytes()}
    files |= {f"{group}/{ROOT_METADATA}": group_metadata() for group in GROUPS}
    records = [root_record(files)]
    records += [canonical_json({"part": part, "previous": _ZEROS, "seal": _ZEROS}) for part in parts]
    metadata = sum(map(len, [*files.values(), *records])) + _CARD_BYTES
    return Footprint({}, metadata, len(files) + len(records) + 1)


def samples_footprint(
    grid: Grid,
    arrays: Mapping[str, tuple[str, tuple[int, ...]]],
    class_names: Sequence[str] | None,
    identity: Mapping[str, Any],
    card: Mapping[str, str],
    sample: Mapping[str, NDArray[Any]] | None = None,
) -> Footprint:
    """Estimate the part `samples`. arrays: dtype and shape of a row of each. identity: of its spec. sample: some files."""
    form = form_of(SAMPLES, arrays)
    layouts = [
        block_array(form, name, dtype, grid, views=1, row_shape=shape, where=SAMPLES)
        for name, (dtype, shape) in arrays.items()
    ]
    if class_names is not None:
        shape = (len(class_names), max(1, *(len(name.encode()) for name in class_names)))
        layouts.append(small_array(SAMPLES, "class_name", shape))
    notes = {CARD: card} if card else None
    return _part(SAMPLES, form, layouts, sample or {}, grid, 1, identity, notes)


def capture_footprint(
    encoding: Encoding,
    num_classes: int,
    grid: Grid,
    views: int,
    sample: Mapping[str, NDArray[Any]],
    identity: Mapping[str, Any],
) -> Footprint:
    """Estimate the part of one teacher.

    encoding: with its basis, if it has one. sample: some rows as `encoding` stores them, by array; arrays without a codec
    may be left out. identity: of its spec.
    Raises ConfigError or LimitExceeded where no store has such arrays.
    """
    layouts = capture_layouts(encoding, num_classes, grid, views)
    shapes: dict[str, tuple[int, ...]] = {"classes": (num_classes,)}
    notes = {}
    if isinstance(encoding, Transform) and encoding.basis is not None:
        shapes |= {name: values.shape for name, values in encoding.basis.arrays().items()}
        notes["basis"] = f"sha256:{_ZEROS}"
    small = [small_array(encoding.form, name, shape) for name, shape in shapes.items()]
    spec = {"encoding": encoding.describe(), **identity}
    return _part("teachers", encoding.form, [*layouts, *small], sample, grid, views, spec, notes)


def plain_bytes(encoding: Encoding, columns: int, grid: Grid, views: int) -> int:
    """Return the bytes of the shards of a capture whose encoding has no codec."""
    layouts = capture_layouts(encoding, columns, grid, views)
    return sum(_array_bytes(layout, grid, views, {}) for layout in layouts)


def capture_layouts(encoding: Encoding, num_classes: int, grid: Grid, views: int) -> list[ArrayLayout]:
    """Lay out the block arrays of a capture. Raises LimitExceeded where no store has such arrays."""
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


def _array_bytes(layout: ArrayLayout, grid: Grid, views: int, sample: Mapping[str, NDArray[Any]]) -> int:
    """Return the bytes of all shards of an array."""
    if layout.codec == RAW:
        return views * sum(shard_bytes(layout, len(grid.rows(block))) for block in range(grid.num_blocks))
    values = sample[layout.name]
    # Whole chunks where there are any: a codec needs some rows before it packs well.
    chunk_rows, shard_rows = (min(rows, grid.num_rows) for rows in (layout.chunk_rows, layout.shard_rows))
    values = values[: len(values) - len(values) % chunk_rows or len(values)]
    shards = [values[first : first + shard_rows] for first in range(0, len(values), shard_rows)]
    payload = sum(len(encode_shard(layout, shard).data) - index_bytes(layout) for shard in shards)
    return views * (grid.num_blocks * index_bytes(layout) + round(payload / len(values) * grid.num_rows))


def _part(
    group: str,
    form: str,
    layouts: Sequence[ArrayLayout],
    sample: Mapping[str, NDArray[Any]],
    grid: Grid,
    views: int,
    identity: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
) -> Footprint:
    """Estimate a part with everything that stands beside its shards."""
    blocks = views * grid.num_blocks
    sharded = [layout for layout in layouts if layout.is_block_array]
    sizes = {layout.name: _array_bytes(layout, grid, views, sample) for layout in sharded}
    chunks_of = tuple((layout.name, layout.chunks_per_shard) for layout in sharded)
    files = {
        ROOT_METADATA: part_metadata(KINDS[group], features_of(form)),
        SPEC: canonical_json({"identity": {**identity, "views": views}, "notes": notes or {}}),
    }
    for layout in layouts:
        files[layout.metadata_key] = layout.to_bytes()
        if not layout.is_block_array:
            zeros = np.zeros(layout.shape, layout.numpy_dtype)
            files |= dict(zip(small_keys(layout), encode_small(layout, zeros), strict=True))
    table = SealTable(chunks_of, 0, 0).record_bytes * blocks
    samples = None if group == SAMPLES else _ZEROS
    seal = Seal(chunks_of, views, grid.num_blocks, _ZEROS, table, dict.fromkeys(files, _ZEROS), samples)
    shards = {
        name: StoredShard(sizes[name] // blocks, _ZEROS, (_CRC,) * chunks) for name, chunks in chunks_of
    }
    last = grid.num_blocks - 1
    record = Commit(views - 1, last, grid.rows(last), _ZEROS, shards).to_bytes()
    metadata = sum(map(len, files.values())) + len(seal.to_bytes()) + table + blocks * len(record)
    return Footprint(
        sizes, metadata, len(files) + 2 + blocks * (len(sharded) + 1)
    )  # + seal.json and seal.bin
