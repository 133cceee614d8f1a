"""Rows as WebDataset keeps and reads them.

Its `ShardWriter` writes 16 tar files, of 64 MiB at full size, so that four workers have shards to share and
to shuffle. Arrays are `.pyd` members (pickles), which its decoder reads faster than `.npy` and than its own
`.ten`.

The pipeline of its documentation reads them. Shards are shuffled, and a shuffle buffer of 1000 stands
*before* decoding. `.batched` runs inside the workers so that whole batches cross to the parent, and
`WebLoader(batch_size=None)` follows. Batches that are not full are left out.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset

from .batches import BATCH, Batch, Source

SHARDS, BUFFER = 16, 1000


def write(source: Source, folder: Path) -> None:
    """Write the tar files."""
    folder.mkdir()
    most = -(-len(source["labels"]) // SHARDS)
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=most, verbose=0) as writer:
        for row, (inputs, label, logits) in enumerate(zip(*source.values(), strict=True)):
            writer.write(
                {
                    "__key__": f"{row:08d}",
                    "inputs.pyd": np.array(inputs),
                    "cls": int(label),
                    "logits.pyd": np.array(logits),
                }
            )


def read(folder: Path, workers: int) -> Iterator[Batch]:
    """Yield one shuffled epoch."""
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(BUFFER)
        .decode()
        .to_tuple("inputs.pyd", "cls", "logits.pyd")
        .batched(BATCH, partial=False)
    )
    yield from map(tuple, webdataset.WebLoader(dataset, batch_size=None, num_workers=workers))


WAYS = {"WebLoader": read}
