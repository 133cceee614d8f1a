"""Stores on which streams are measured.

Rows are (uint8 3 x 32 x 32, int64 label, logits of 1000 classes), drawn from a fixed seed. Logits have a
standard deviation of 2.5, and five classes of each row are raised by 8, as in real_logits.py. POOL rows are
drawn once and repeated. No chunk is long enough to be affected.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from real_logits import synthetic_logits
from torch import Tensor

import logitstore

ROWS, CLASSES, BATCH = 131_072, 1000, 256
INPUT_SHAPE = (3, 32, 32)
POOL = 4096
"""Rows of drawn logits; a chunk has at most a thousand."""


def random_inputs(rows: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw pixels (rows, 3, 32, 32)."""
    return np.random.default_rng(seed).integers(0, 256, (rows, *INPUT_SHAPE), dtype=np.uint8)


def make_store(
    path: Path,
    rows: int,
    encodings: Mapping[str, Any],
    *,
    views: int = 1,
    inputs: NDArray[Any] | None = None,
    store_inputs: bool = True,
) -> logitstore.Store:
    """Make a store of `rows` rows.

    encodings: of each teacher's logits, by name. inputs: none if not given.
    """
    labels = np.random.default_rng(1).integers(0, CLASSES, rows)
    store = logitstore.create_store(
        path,
        num_classes=CLASSES,
        labels=labels,
        inputs=inputs,
        digests=np.zeros(rows, np.uint64) if inputs is None else None,
        store_inputs=store_inputs and inputs is not None,
    )
    pool = synthetic_logits(POOL, CLASSES)
    for number, (name, encoding) in enumerate(encodings.items()):
        with store.capture(name, provenance={"made": "benchmark"}, views=views, encoding=encoding) as capture:
            for view in range(views):
                for block in capture.missing_blocks(view):
                    places = (np.arange(block.start, block.stop) + 17 * (number * views + view)) % POOL
                    capture.write(block, pool[places], view=view)
    return logitstore.open_store(path)


def in_memory(store: logitstore.Store, teacher: str, views: int = 1) -> Tensor:
    """Load the stored logits of a capture, contiguous: (views x rows, classes) float16."""
    held = torch.empty((views * store.num_rows, store.num_classes), dtype=torch.float16)
    for view in range(views):
        stored = store.teachers[teacher].read_stored(slice(None), view)["logits"]
        held[view * store.num_rows : (view + 1) * store.num_rows] = torch.from_numpy(stored)
    return held
