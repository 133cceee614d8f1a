"""Rows of samples that are not sealed yet, for a comparison before a writer resumes them."""

import contextlib
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ..format.constants import SAMPLES
from ..format.layouts import DTYPES_OF, block_array
from ..format.shard import decode_shard, shard_bytes
from .journal import committed_blocks
from .root import Root


def committed_samples(root: Root, array: str) -> Iterator[tuple[range, NDArray[Any]]]:
    """Yield the rows of each committed block of unfinished samples, and the values of an array.

    array: "source", "digest" or "label". A block without its file is left out: a writer repairs it. Raises ShardCorrupt.
    """
    folder = root.folder.sub(SAMPLES)
    where = f"{root.path}: {SAMPLES}"
    layout = block_array(SAMPLES, array, DTYPES_OF[array], root.grid, views=1, row_shape=(), where=where)
    for _, block in sorted(committed_blocks(folder)):
        rows, key = root.grid.rows(block), layout.shard_key(0, block)
        with contextlib.suppress(FileNotFoundError):
            data, _ = folder.read_range(key, 0, shard_bytes(layout, len(rows)) + 1)
            yield rows, decode_shard(layout, data, len(rows), f"{folder.path}/{key}")
