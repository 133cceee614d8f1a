"""Parts that no seal could hold, refused before anything is written to them.

A reader refuses a part beyond its limits (docs/format-v1.md), whoever wrote it. Most sizes are limited by the layout of an array.
These follow from the part as a whole:

    bytes of seal.bin   views · blocks · Σ over arrays of (40 + 4 · chunks a shard)
    views, dimensions of an array, bytes of the class names, parts of a store
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from ..errors import ConfigError, LogitStoreError
from ..format.constants import (
    MAX_DIMENSIONS,
    MAX_NAMES_BYTES,
    MAX_PARTS,
    MAX_SEAL_TABLE_BYTES,
    MAX_SHARD_BYTES,
    MAX_VIEWS,
    SAMPLES,
)
from ..format.grid import Grid
from ..format.layouts import DTYPES_OF, block_array, form_of
from ..format.metadata import ArrayLayout

_SHARD_RECORD_BYTES: Final = 40
"""Size and sha256 of a shard in seal.bin."""
_CHECKSUM_BYTES: Final = 4
"""crc32c of a chunk."""


def table_bytes(layouts: Sequence[ArrayLayout], grid: Grid, views: int) -> int:
    """Return the bytes of the `seal.bin` of a part with these block arrays."""
    sizes = (_SHARD_RECORD_BYTES + _CHECKSUM_BYTES * layout.chunks_per_shard for layout in layouts)
    return views * grid.num_blocks * sum(sizes)


def check_sealable(form: str, layouts: Sequence[ArrayLayout], grid: Grid, views: int, where: str) -> None:
    """Refuse a part that could not be sealed within the limits of readers. Raises ConfigError with a remedy.

    layouts: all arrays of the part. where: the part, for messages.
    """
    if views > MAX_VIEWS:
        raise _beyond(f"{where}: views", f"at most {MAX_VIEWS:,} views", f"{views:,}", "capture fewer views")
    for layout in layouts:
        if len(layout.shape) > MAX_DIMENSIONS:
            raise _beyond(
                f"{where}/{layout.name}",
                f"rows of at most {MAX_DIMENSIONS - 1} dimensions",
                f"rows of shape {layout.row_shape}",
                "flatten them, or do not store the inputs (store_inputs = false)",
            )
        if 0 in layout.shape:
            raise _beyond(
                f"{where}/{layout.name}",
                "rows of at least one element",
                f"rows of shape {layout.row_shape}",
                "do not store the inputs (store_inputs = false)",
            )
        if layout.name == "class_name":
            _check_names(layout.shape[0], layout.row_bytes, where)
    blocks = [layout for layout in layouts if layout.is_block_array]
    size = table_bytes(blocks, grid, views) if blocks else 0
    if size > MAX_SEAL_TABLE_BYTES:
        raise _beyond(
            f"{where}: seal.bin",
            f"at most {MAX_SEAL_TABLE_BYTES:,} bytes",
            f"{size:,}, for {views:,} view{'s' * (views > 1)} of {grid.num_blocks:,} blocks of {grid.block_rows:,} row{'s' * (grid.block_rows > 1)}",
            _remedy(form, blocks, grid, views, where),
        )


def check_log(num_parts: int, name: str, where: str) -> None:
    """Refuse one more part than the log of a store may name. num_parts: sealed ones. Raises ConfigError."""
    # The log has one record beside those of the parts.
    if num_parts + 1 >= MAX_PARTS:
        raise _beyond(
            where,
            f"at most {MAX_PARTS - 1:,} sealed parts in a store",
            f"{num_parts:,}, and {name}",
            "make a new store for further captures",
        )


def check_class_names(names: Sequence[str] | None, where: str) -> None:
    """Refuse names of classes that no reader takes. Raises ConfigError."""
    if names:
        _check_names(len(names), max(len(name.encode()) for name in names), f"{where}: {SAMPLES}")


def _check_names(number: int, width: int, where: str) -> None:
    if number * width > MAX_NAMES_BYTES:
        raise _beyond(
            f"{where}/class_name",
            f"at most {MAX_NAMES_BYTES:,} bytes of class names, each as wide as the longest",
            f"{number:,} names of {width:,} bytes",
            "shorten the longest names, or pass num_classes instead of names",
        )


def optional_arrays(
    example: NDArray[Any] | None, ids: Sequence[str] | None, file_width: int | None = None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and row shape of the arrays of `samples` that not every store has.

    example: an input that is kept. file_width: bytes of the longest file that is kept.
    """
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
    if example is not None:
        arrays["input"] = (example.dtype.name, example.shape)
    if width := max((len(one.encode()) for one in ids or ()), default=0):
        arrays["id"] = (DTYPES_OF["id"], (width,))
    if file_width is not None:
        arrays |= {"file": (DTYPES_OF["file"], (file_width,)), "file_bytes": (DTYPES_OF["file_bytes"], ())}
    return arrays


def check_samples_sealable(grid: Grid, arrays: Mapping[str, tuple[str, tuple[int, ...]]], where: str) -> None:
    """Refuse a store whose samples could not be sealed. Raises ConfigError, or LimitExceeded for rows that are too large.

    arrays: dtype and row shape of those beside source, digest and label.
    """
    named = {name: (DTYPES_OF[name], ()) for name in ("source", "digest", "label")} | dict(arrays)
    form = form_of(SAMPLES, named)
    layouts = [
        block_array(form, name, dtype, grid, views=1, row_shape=shape, where=f"{where}: {SAMPLES}")
        for name, (dtype, shape) in named.items()
    ]
    check_sealable(form, layouts, grid, 1, f"{where}: {SAMPLES}")


def _remedy(form: str, blocks: Sequence[ArrayLayout], grid: Grid, views: int, where: str) -> str:
    """Return the settings with which such a part could be sealed."""
    remedies: list[str] = []
    larger = grid.block_rows
    while larger < grid.num_rows and not remedies:
        larger *= 2
        wider = Grid(grid.num_rows, larger)
        try:
            again = [
                block_array(
                    form, one.name, one.dtype, wider, views=views, row_shape=one.row_shape, where=where
                )
                for one in blocks
            ]
        except LogitStoreError:
            break  # a shard would pass its limit
        if table_bytes(again, wider, views) <= MAX_SEAL_TABLE_BYTES:
            remedies.append(f"make a new store with block_rows = {larger} or more")
    if form != SAMPLES and (fewer := MAX_SEAL_TABLE_BYTES // table_bytes(blocks, grid, 1)):
        remedies.append(f"capture at most {fewer:,} view{'s' * (fewer > 1)}")
    return ", or ".join(remedies) or (
        f"divide the rows between several stores: a shard holds at most {MAX_SHARD_BYTES:,} bytes"
    )


def _beyond(where: str, expected: str, found: str, remedy: str) -> ConfigError:
    return ConfigError(where, expected=f"{expected}, a limit of readers", found=found, remedy=remedy)
