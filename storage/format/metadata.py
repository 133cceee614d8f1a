"""The `zarr.json` of groups and arrays: written from a layout, and checked back into one against an allow-list."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ConfigError, NotAStoreError, UntrustedStoreError
from .codec import RAW, codec_metadata, codec_of, transpose_metadata
from .constants import (
    DTYPES,
    FORMAT_VERSION,
    MAX_BLOCKS,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS_PER_SHARD,
    MAX_CLASSES,
    MAX_DIMENSIONS,
    MAX_ROWS,
    MAX_SHARD_BYTES,
    MAX_SMALL_CHUNKS,
    NEWEST_VERSION,
)
from .documents import (
    DISTRUST,
    beyond,
    canonical_json,
    check_version,
    integer,
    invalid,
    parse_json,
    shorten,
)

_ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def group_metadata(attributes: Mapping[str, object] | None = None) -> bytes:
    """Spell the `zarr.json` of a group; `attributes` become `attributes.logitstore`."""
    wrapped = {"logitstore": dict(attributes)} if attributes is not None else {}
    return canonical_json({"attributes": wrapped, "node_type": "group", "zarr_format": 3})


def group_attributes(data: bytes, where: str) -> dict[str, Any]:
    """Parse `attributes.logitstore` of a group's `zarr.json`. Raises NotAStoreError if there is none.

    Raises UntrustedStoreError for other keys, such as consolidated metadata, which other readers would follow.
    """
    value = parse_json(data, where)
    attributes = value.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    ours = attributes.get("logitstore")
    if value.get("node_type") != "group" or value.get("zarr_format") != 3 or not isinstance(ours, dict):
        raise NotAStoreError(
            where,
            expected="a Zarr v3 group with logitstore's attributes",
            found=f"other metadata, with keys {sorted(value)}"[:120],
            remedy="name the folder of a store that logitstore made",
        )
    check_version(ours.get("format_version"), where)
    more = sorted((set(value) | set(attributes)) - {"attributes", "node_type", "zarr_format", "logitstore"})
    if more:
        raise UntrustedStoreError(
            where,
            expected="a group with logitstore's attributes alone",
            found=f"a group that also has {more}"[:120],
            remedy=DISTRUST,
        )
    return ours


@dataclass(frozen=True)
class RootAttributes:
    """The attributes of a store's root group."""

    num_rows: int
    """Rows, N."""
    num_classes: int
    """Classes, C."""
    block_rows: int
    """Rows a block, R: a power of two."""

    def to_bytes(self) -> bytes:
        """Spell the root's `zarr.json`. Raises ConfigError above the limits of readers."""
        for key, size, most in (
            ("num_rows", self.num_rows, MAX_ROWS),
            ("num_classes", self.num_classes, MAX_CLASSES),
            ("blocks", -(-self.num_rows // self.block_rows), MAX_BLOCKS),
        ):
            if size > most:
                raise ConfigError(
                    key,
                    expected=f"at most {most}, the limit of readers",
                    found=str(size),
                    remedy="split the data into several stores, or choose larger blocks",
                )
        return group_metadata(
            {
                "format_version": FORMAT_VERSION,
                "num_rows": self.num_rows,
                "num_classes": self.num_classes,
                "block_rows": self.block_rows,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "RootAttributes":
        """Parse the root's `zarr.json`. Raises NotAStoreError, ManifestInvalid or LimitExceeded."""
        ours = group_attributes(data, where)
        root = cls(
            integer(ours.get("num_rows"), 1, where, "num_rows", MAX_ROWS),
            integer(ours.get("num_classes"), 2, where, "num_classes", MAX_CLASSES),
            integer(ours.get("block_rows"), 1, where, "block_rows", MAX_SHARD_BYTES),
        )
        if root.block_rows & (root.block_rows - 1):
            raise invalid(f"{where}: block_rows", "a power of two", root.block_rows)
        blocks = -(-root.num_rows // root.block_rows)
        if blocks > MAX_BLOCKS:
            raise beyond(where, MAX_BLOCKS, "blocks a view", blocks)
        return root


@dataclass(frozen=True, eq=False)
class ArrayLayout:
    """The shape, dtype and chunks of one array: the content of its `zarr.json`.

    Two layouts are compared by `to_bytes`, never by `==`: the fill value may be NaN.
    """

    name: str
    """Name of the array inside its part."""
    shape: tuple[int, ...]
    """Elements along each dimension."""
    dtype: str
    """Zarr's name of the dtype, one of `DTYPES`."""
    dimensions: tuple[str, ...]
    """Name of each dimension; a block array has one named "row"."""
    shard_rows: int
    """Rows a shard (block arrays), or first-dimension elements a chunk (small arrays)."""
    chunk_rows: int = 0
    """Rows an inner chunk; 0 for small arrays, which have none."""
    fill: float | int = 0
    """Fill value: NaN for floats."""
    codec: str = RAW
    """Codec of the inner chunks: one of those of `codec`."""
    attributes: Mapping[str, object] = field(default_factory=dict)
    """The array's own Zarr attributes."""

    @property
    def is_block_array(self) -> bool:
        """Whether the array has rows, and so is sharded."""
        return "row" in self.dimensions

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype as numpy's, little-endian."""
        return np.dtype(DTYPES[self.dtype])

    @property
    def row_axis(self) -> int:
        """Axis that is cut: "row", or the first."""
        return self.dimensions.index("row") if self.is_block_array else 0

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row: the dimensions after `row_axis`."""
        return self.shape[self.row_axis + 1 :]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row before the codec."""
        return math.prod(self.row_shape) * self.numpy_dtype.itemsize

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks in a shard."""
        return self.shard_rows // self.chunk_rows

    def key(self, *index: int) -> str:
        """Return the key, relative to the part, of the shard or chunk at `index` along the leading dimensions.

        >>> ArrayLayout("peak", (2, 9), "float32", ("view", "row"), 4, 4).key(1, 2)
        'peak/c.1.2'
        >>> ArrayLayout("label", (9,), "int64", ("row",), 4, 4).key(2)
        'label/c.2'
        """
        full = index + (0,) * (len(self.shape) - len(index))
        return f"{self.name}/c.{'.'.join(map(str, full))}"

    def shard_key(self, view: int, block: int) -> str:
        """Return the key, relative to the part, of the shard that holds `block` of `view`."""
        return self.key(view, block) if self.row_axis else self.key(block)

    @property
    def metadata_key(self) -> str:
        """Key, relative to the part, of the array's `zarr.json`."""
        return f"{self.name}/zarr.json"

    def _grid_shape(self, rows: int) -> list[int]:
        return [1] * self.row_axis + [rows, *self.row_shape]

    def to_bytes(self) -> bytes:
        """Spell the array's `zarr.json`."""
        endian: dict[str, object] = {"name": "bytes", "configuration": {"endian": "little"}}
        checksum: dict[str, object] = {"name": "crc32c"}
        compression = codec_metadata(self.codec, self.numpy_dtype.itemsize)
        transpose = transpose_metadata(self.codec, self.row_axis, len(self.shape))
        codecs = [*transpose, endian, *compression, checksum]
        if self.is_block_array:
            sharding = {
                "chunk_shape": self._grid_shape(self.chunk_rows),
                "codecs": codecs,
                "index_codecs": [endian, checksum],
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        return canonical_json(
            {
                "attributes": dict(self.attributes),
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": self._grid_shape(self.shard_rows)},
                },
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "codecs": codecs,
                "data_type": self.dtype,
                "dimension_names": list(self.dimensions),
                "fill_value": "NaN" if isinstance(self.fill, float) else self.fill,
                "node_type": "array",
                "shape": list(self.shape),
                "zarr_format": 3,
            }
        )

    @classmethod
    def from_bytes(cls, name: str, data: bytes, where: str) -> "ArrayLayout":
        """Check a `zarr.json` against the format and parse it, without allocating anything of the array's size.

        Raises ManifestInvalid if it does not parse, UntrustedStoreError if it needs anything that the format does not
        have, LimitExceeded if a size is above the limits.
        """
        value = parse_json(data, where)
        try:
            layout = cls._from_json(name, value)
            known = layout is not None and layout.to_bytes() == data
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            layout, known = None, False
        if layout is None or not known:
            raise UntrustedStoreError(
                where,
                expected=f"an array of format {NEWEST_VERSION} (its dtypes, codecs and chunk grids)",
                found=f"{str(value.get('data_type'))[:40]!r} with metadata of another form",
                remedy="do not read it with logitstore; inspect it with zarr.open(..., zarr_format=3)",
            )
        layout.check_sizes(where)
        return layout

    @classmethod
    def _from_json(cls, name: str, value: Mapping[str, Any]) -> "ArrayLayout | None":
        """Return the layout that may spell `value`, or None; the caller compares the two."""
        shape, dimensions = tuple(value["shape"]), tuple(value["dimension_names"])
        if value["data_type"] not in DTYPES or len(shape) != len(dimensions) or not shape:
            return None
        if not _ARRAY_NAME.fullmatch(name) or not all(isinstance(d, str) for d in dimensions):
            return None
        axis = dimensions.index("row") if "row" in dimensions else 0
        grid = value["chunk_grid"]["configuration"]["chunk_shape"]
        codec = value["codecs"][0]
        inner = codec["configuration"]["chunk_shape"][axis] if "row" in dimensions else 0
        compression = codec_of(codec["configuration"]["codecs"]) if "row" in dimensions else RAW
        fill = math.nan if value["fill_value"] == "NaN" else value["fill_value"]
        numbers = [*shape, grid[axis], inner]
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers):
            return None
        dtype, attributes = value["data_type"], value["attributes"]
        return cls(name, shape, dtype, dimensions, grid[axis], inner, fill, compression, attributes)

    def check_sizes(self, where: str) -> None:
        """Refuse sizes that no array of a store has. Raises LimitExceeded or ManifestInvalid."""
        if len(self.shape) > MAX_DIMENSIONS:
            raise beyond(where, MAX_DIMENSIONS, "dimensions", len(self.shape))
        if max(self.shape) > MAX_ROWS:
            raise beyond(where, MAX_ROWS, "elements along a dimension", shorten(max(self.shape)))
        if 0 in self.shape or self.shard_rows < 1 or (self.is_block_array and self.chunk_rows < 1):
            raise invalid(where, "sizes of at least 1", f"shape {shorten(self.shape)}, {self._sizes}")
        if self.shard_rows * self.row_bytes > MAX_SHARD_BYTES:
            raise beyond(where, MAX_SHARD_BYTES, "bytes a shard", shorten(self.shard_rows * self.row_bytes))
        chunk_rows = self.chunk_rows if self.is_block_array else self.shard_rows
        if chunk_rows * self.row_bytes > MAX_CHUNK_BYTES:
            raise beyond(where, MAX_CHUNK_BYTES, "bytes a chunk", shorten(chunk_rows * self.row_bytes))
        if self.is_block_array:
            if self.shard_rows % self.chunk_rows:
                raise invalid(where, "chunks that divide the shard", self._sizes)
            if self.chunks_per_shard > MAX_CHUNKS_PER_SHARD:
                raise beyond(where, MAX_CHUNKS_PER_SHARD, "chunks a shard", self.chunks_per_shard)
        elif -(-self.shape[0] // self.shard_rows) > MAX_SMALL_CHUNKS:
            raise beyond(
                where,
                MAX_SMALL_CHUNKS,
                "chunks of an array without rows",
                f"{self.shape[0]} in {self._sizes}",
            )

    @property
    def _sizes(self) -> str:
        return f"{shorten(self.shard_rows)} rows a shard, {shorten(self.chunk_rows)} rows a chunk"
