"""Matrix products that give the same bits on any number of threads and in any division of the rows.

A BLAS may add the terms of a sum in another order for another shape, or on another number of threads, and the last bit of a
sum decides a code beside a tie. So rows are multiplied in tiles of one shape, the last filled up with zeros, each by one
thread. Several tiles run at once in threads of Python.
"""

import threading
from functools import cache
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

TILE: Final = 128
"""Rows of a tile."""


class _OneThread:
    """A limit of NumPy's BLAS to the calling thread, which lasts while any thread is inside."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit = _blas().limit(limits=1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


@cache
def _blas() -> Any:
    """Return the controller of the BLAS of NumPy alone: that of torch serves a teacher at the same time."""
    return ThreadpoolController().select(internal_api="openblas")


one_thread: Final = _OneThread()
"""`with one_thread:` NumPy's BLAS computes by the calling thread alone, in all threads of the process."""


def tiled_product(
    rows: Float32[np.ndarray, "rows inner"], matrix: Float32[np.ndarray, "inner outer"]
) -> Float32[np.ndarray, "rows outer"]:
    """Multiply rows by a matrix, each row to the same bits whatever rows stand beside it. Inside `one_thread`."""
    out = np.empty((len(rows), matrix.shape[1]), np.float32)
    for first in range(0, len(rows), TILE):
        piece = rows[first : first + TILE]
        if len(piece) == TILE:
            np.matmul(piece, matrix, out=out[first : first + TILE])
        else:
            tile = np.zeros((TILE, rows.shape[1]), np.float32)
            tile[: len(piece)] = piece
            out[first : first + len(piece)] = (tile @ matrix)[: len(piece)]
    return out
