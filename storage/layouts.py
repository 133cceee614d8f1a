"""Which arrays does a part have, and how is each of them cut?

Shape, shards, chunks and fill value of an array follow from its name, its dtype and the grid of the store. A
writer makes layouts here; a reader makes them again and compares, so that nothing that a store says of its
sizes is believed.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from .errors import LimitExceeded, ManifestInvalid
from .format import MAX_SHARD_BYTES, ArrayLayout
from .grid import Grid, plan_chunk_rows

SMALL_CHUNK_BYTES: Final = 32 << 20
"""Most bytes of a chunk of a small array (unless a single element of its first dimension is larger)."""

DIMENSIONS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "samples": {
        "source": ("row",),
        "digest": ("row",),
        "label": ("row",),
        "id": ("row", "id_width"),
        "class_name": ("class", "class_name_width"),
    },
    "capture": {
        "logits": ("view", "row", "class"),
        "peak": ("view", "row"),
        "seen": ("view", "row"),
        "classes": ("class",),
    },
    "clustering": {
        "covariance": ("class", "other_class"),
        "assignment": ("class",),
        "centres": ("cluster", "class"),
        "sets": ("cluster", "member"),
    },
}
"""Dimensions of the arrays of each kind of part. `input` of samples has as many as an input has."""

DTYPES_OF: Final[Mapping[str, str]] = {
    "source": "int64",
    "digest": "uint64",
    "label": "int64",
    "id": "uint8",
    "class_name": "uint8",
    "peak": "float32",
    "seen": "uint64",
    "classes": "int64",
    "covariance": "float32",
    "assignment": "int64",
    "centres": "float32",
    "sets": "int64",
}
"""Zarr's dtype of the arrays that have only one; `logits` and `input` have several."""


def dimensions_of(kind: str, name: str, num_dimensions: int) -> tuple[str, ...] | None:
    """The dimensions of an array; None where the format does not know it.

    >>> dimensions_of("samples", "input", 3)
    ('row', 'input_0', 'input_1')
    """
    if (kind, name) == ("samples", "input"):
        return ("row", *(f"input_{axis}" for axis in range(num_dimensions - 1)))
    return DIMENSIONS[kind].get(name)


def fill_value(dtype: str) -> float | int:
    """What stands where no value was written: NaN, -1, or 0 where there are no negative numbers.

    >>> [fill_value(dtype) for dtype in ("float16", "int64", "uint8")]
    [nan, -1, 0]
    """
    return {"f": math.nan, "i": -1}.get(np.dtype(dtype).kind, 0)


def block_array(
    kind: str, name: str, dtype: str, grid: Grid, *, views: int, row_shape: tuple[int, ...], where: str
) -> ArrayLayout:
    """The layout of an array of rows. Raises LimitExceeded where a shard would pass 1 GiB.

    views: views of a capture; not used in samples. row_shape: shape of one row.
    """
    row_bytes = math.prod(row_shape) * np.dtype(dtype).itemsize
    if grid.block_rows * row_bytes > MAX_SHARD_BYTES:
        raise LimitExceeded(
            f"{where}: {name}",
            expected=f"shards of at most {MAX_SHARD_BYTES} bytes",
            found=f"{grid.block_rows} rows of {row_bytes} bytes",
            remedy="make a store with a smaller block_rows",
        )
    shape = (grid.num_rows, *row_shape) if kind == "samples" else (views, grid.num_rows, *row_shape)
    dimensions = dimensions_of(kind, name, len(shape))
    assert dimensions is not None  # writers name arrays of the format
    chunk_rows = plan_chunk_rows(grid.block_rows, row_bytes)
    return ArrayLayout(name, shape, dtype, dimensions, grid.block_rows, chunk_rows, fill_value(dtype))


def small_array(kind: str, name: str, shape: tuple[int, ...]) -> ArrayLayout:
    """The layout of an array without rows."""
    dtype, dimensions = DTYPES_OF[name], DIMENSIONS[kind][name]
    element_bytes = max(1, math.prod(shape[1:]) * np.dtype(dtype).itemsize)
    rows = max(1, min(shape[0], SMALL_CHUNK_BYTES // element_bytes))
    return ArrayLayout(name, shape, dtype, dimensions, rows, 0, fill_value(dtype))


def check_layout(layout: ArrayLayout, kind: str, grid: Grid, views: int, where: str) -> None:
    """Refuse a layout that this store would not have. Arrays that the format does not know pass: none reads them.

    Raises ManifestInvalid.
    """
    dimensions = dimensions_of(kind, layout.name, len(layout.shape))
    if dimensions is None:
        return
    expected = None
    dtype = DTYPES_OF.get(layout.name, layout.dtype)
    if layout.dimensions == dimensions and layout.dtype == dtype:
        if layout.is_block_array:
            expected = block_array(
                kind, layout.name, dtype, grid, views=views, row_shape=layout.row_shape, where=where
            )
        else:
            expected = small_array(kind, layout.name, layout.shape)
    if layout != expected:
        raise ManifestInvalid(
            where,
            expected=f"an array {layout.name!r} of this store: {grid.num_rows} rows, blocks of {grid.block_rows}",
            found=f"{layout.dtype} {dict(zip(layout.dimensions, layout.shape, strict=True))}, "
            f"shards of {layout.shard_rows}",
            remedy="run `logitstore verify`; do not read this part",
        )
