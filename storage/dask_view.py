"""A capture as a dask array of one layer, whose chunks are blocks.

`dask.array.from_zarr` reads inner chunks and fills missing ones. Here each chunk is checked against the seal, and decoded
to float32 logits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from jaxtyping import Float32

from .checks import whole_number
from .parts.reader import CaptureReader

CHUNK_BYTES = 16 << 20
"""Bytes of logits in a chunk, unless a block has more, or its rows are given."""


def logits_array(
    capture: CaptureReader, temperature: float | None = None, rows_per_chunk: int | None = None
) -> Any:
    """Return a dask.array, float32 (view, row, class): the largest logit of each row 0.

    temperature: as for `CaptureReader.read`. rows_per_chunk: by default whole blocks, as many as 16 MiB of logits hold.
    """
    capture.check_temperature(temperature)
    views, rows, classes = capture.shape
    if rows_per_chunk is None:
        block_rows = capture.reader.grid.block_rows
        rows_per_chunk = block_rows * max(1, CHUNK_BYTES // (block_rows * classes * 4))
    step = whole_number("rows_per_chunk", rows_per_chunk, least=1)
    chunks = ((1,) * views, tuple(min(step, rows - start) for start in range(0, rows, step)), (classes,))
    # One name for one computation, in every process: dask then reads what two expressions share once.
    token = tokenize(str(capture.part.folder.path), capture.digest, temperature, step)
    return da.map_blocks(
        _read_chunk,
        capture,
        temperature,
        name=f"read-{capture.name}-{token}",
        chunks=chunks,
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
    )


def _read_chunk(
    capture: CaptureReader, temperature: float | None, block_info: Mapping[Any, Mapping[str, Any]]
) -> Float32[np.ndarray, "1 rows classes"]:
    """Read a chunk: a view of some rows."""
    places: Sequence[tuple[int, int]] = block_info[None]["array-location"]
    (view, _), rows, _ = places
    return capture.read(range(*rows), view, temperature)[None]
