"""Rows as LitData keeps and reads them.

Its `optimize` writes the recommended chunks of 64 MB, a dictionary of numpy arrays a row. Its serializer of
tensors was not faster than that of arrays. `StreamingDataset(shuffle=True, drop_last=True)` reads them behind
`StreamingDataLoader`. Local chunks are mapped in place by default ("POSIX-fast"). Of two settings the faster
counts:

    as it comes     all defaults: rows are decoded and shuffled in blocks of 256 of a chunk
    whole chunks    `batch_decode="all", item_shuffle_window="full"`: whole chunks decoded at once, and shuffled wholly
"""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from litdata import StreamingDataLoader, StreamingDataset, optimize

from .batches import BATCH, Batch, Source, open_source


@cache
def _opened(folder: str) -> Source:
    return open_source(Path(folder))


def sample(folder: str, row: int) -> dict[str, Any]:
    """Return one row of the data in a folder, in LitData's form."""
    source = _opened(folder)
    return {
        "inputs": np.array(source["inputs"][row]),
        "label": int(source["labels"][row]),
        "logits": np.array(source["logits"][row]),
    }


def write(source: Source, folder: Path) -> None:
    """Write the chunks."""
    labels = source["labels"]
    assert isinstance(labels, np.memmap) and labels.filename is not None
    optimize(
        partial(sample, str(Path(labels.filename).parent)),
        inputs=list(range(len(labels))),
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=2,
        verbose=False,
    )


def read(folder: Path, workers: int, **settings: Any) -> Iterator[Batch]:
    """Yield one shuffled epoch."""
    dataset = StreamingDataset(str(folder), shuffle=True, drop_last=True, **settings)
    for batch in StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers):
        yield batch["inputs"], batch["label"], batch["logits"]


WAYS = {
    "as it comes": read,
    "whole chunks": partial(read, batch_decode="all", item_shuffle_window="full"),
}
