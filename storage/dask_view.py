"""A capture as a dask array, one task a block.

`dask.array.from_zarr` reads inner chunks and fills missing ones. Here a block is read once, checked against the seal,
and decoded to float32 logits.
"""

from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from .parts.reader import CaptureReader


def logits_array(capture: CaptureReader, temperature: float | None = None) -> Any:
    """Return a dask.array, float32 (view, row, class): a block a chunk, the largest logit of each row 0.

    temperature: as for `CaptureReader.read`.
    """
    capture.check_temperature(temperature)
    views, _, classes = capture.shape
    grid = capture.reader.grid

    @delayed(pure=False, name=f"read-{capture.name}")  # type: ignore[untyped-decorator]
    def read(view: int, rows: range) -> NDArray[Any]:
        return capture.read(rows, view, temperature)[None]

    blocks = [
        [
            da.from_delayed(read(view, rows), (1, len(rows), classes), dtype=np.float32)
            for rows in map(grid.rows, range(grid.num_blocks))
        ]
        for view in range(views)
    ]
    return da.concatenate([da.concatenate(row, axis=1) for row in blocks], axis=0)
