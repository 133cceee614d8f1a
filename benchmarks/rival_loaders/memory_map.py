"""Rows in `.npy` files, mapped into memory, behind a `DataLoader`.

There are two ways:

    rows       a map-style dataset of one row an index, as nearly everyone writes it, and the default collation
    batches    the same with `__getitems__`, one fancy index a batch: reported; it is no product, but a yardstick
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .batches import BATCH, FIELDS, Batch, Source, open_source


class Rows(Dataset[tuple[Any, ...]]):
    """A dataset of one row an index."""

    def __init__(self, folder: Path) -> None:
        self.source = open_source(folder)

    def __len__(self) -> int:
        return len(self.source["labels"])

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        # Copied, for a tensor of a read-only map would be one that must not be written to.
        inputs, labels, logits = (self.source[name] for name in FIELDS)
        return np.array(inputs[row]), labels[row], np.array(logits[row])


class Batches(Rows):
    """A dataset of a whole batch an index."""

    def __getitems__(self, rows: list[int]) -> Batch:
        """Return the rows of a batch, as tensors."""
        inputs, labels, logits = (torch.from_numpy(self.source[name][rows]) for name in FIELDS)
        return inputs, labels, logits


def write(source: Source, folder: Path) -> None:
    """Write the .npy files."""
    folder.mkdir()
    for name, array in source.items():
        np.save(folder / f"{name}.npy", array)


def read_rows(folder: Path, workers: int) -> Iterator[Batch]:
    """Yield one shuffled epoch."""
    loader = DataLoader(Rows(folder), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    yield from map(tuple, loader)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def read_batches(folder: Path, workers: int) -> Iterator[Batch]:
    """Yield one shuffled epoch."""
    yield from DataLoader(
        Batches(folder),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=_as_it_is,
    )


WAYS = {"rows": read_rows, "batches": read_batches}
