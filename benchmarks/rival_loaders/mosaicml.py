"""Rows as MosaicML Streaming keeps and reads them.

They are written as its documentation shows: MDS shards of the default 64 MiB, uncompressed. Each array has
one fixed-shape `ndarray:dtype:shape` column (the encoding that stores no header).
`StreamingDataset(shuffle=True)` reads them with the default algorithm, py1e, and the batch size, behind its
own `StreamingDataLoader`. It reads a sample at a time, and has no batched way.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .batches import BATCH, Batch, Source

if torch.version.cuda is None:
    # It imports torchvision, whose wheels in a package index are made for CUDA: beside a CPU build of torch their
    # operators are not there. It uses none of them here; to be imported, torchvision wants these two to be declared.
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

COLUMNS = {"inputs": "ndarray:uint8:3,32,32", "label": "int64", "logits": "ndarray:float16:1000"}


def write(source: Source, folder: Path) -> None:
    """Write the shards."""
    with MDSWriter(out=str(folder), columns=COLUMNS) as writer:
        for inputs, label, logits in zip(*source.values(), strict=True):
            writer.write(
                {"inputs": np.asarray(inputs), "label": np.int64(label), "logits": np.asarray(logits)}
            )


def read(folder: Path, workers: int) -> Iterator[Batch]:
    """Yield one shuffled epoch."""
    clean_stale_shared_memory()  # of an epoch that was not read to its end, which it takes for its own
    dataset = StreamingDataset(local=str(folder), batch_size=BATCH, shuffle=True)
    for batch in StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers):
        yield batch["inputs"], batch["label"], batch["logits"]


WAYS = {"DataLoader": read}
