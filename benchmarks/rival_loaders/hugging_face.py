"""Rows as Hugging Face `datasets` keeps and reads them.

`save_to_disk` writes arrays as lists of fixed length, which Arrow keeps as one buffer. Images are flat, and
viewed as 3 x 32 x 32 after reading, which costs nothing. Of these ways from its documentation for PyTorch the
fastest counts:

    map-style    `with_format("torch")` behind a shuffling `DataLoader`, which fetches a batch at a time (`__getitems__`)
    iterable     `to_iterable_dataset(num_shards=64).shuffle(buffer_size=1000)`, by `.iter(256)`, or with workers by
                 `.batch(256)` behind a `DataLoader`: contiguous reading and a shuffle buffer of Arrow rows

This format gives integers as int64 and floats as float32. The values are the same, and it is not asked to
convert them back. Two more ways are reported:

    Array3D          map-style with images as `Array3D`, the type that the documentation names for arrays; about
                     ten times slower than lists of fixed length
    Arrow by hand    the iterable of `with_format("arrow")`, whose user views the columns as tensors of their own types
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Array3D, Dataset, DatasetInfo, Features, IterableDataset, List, Value, load_from_disk
from datasets.features.features import Array3DExtensionType
from datasets.table import InMemoryTable
from torch import Tensor
from torch.utils.data import DataLoader

from .batches import BATCH, CLASSES, INPUT_SHAPE, Batch, Source

PIXELS = 3 * 32 * 32
SHARDS, BUFFER = 64, 1000
FEATURES = Features(
    {
        "inputs": List(Value("uint8"), length=PIXELS),
        "labels": Value("int64"),
        "logits": List(Value("float16"), length=CLASSES),
    }
)


def write(source: Source, folder: Path) -> None:
    """Write the Arrow files by a table; `from_dict` and `from_generator` take minutes for the same."""
    pixels = pyarrow.array(source["inputs"].reshape(-1))
    labels = pyarrow.array(source["labels"])
    logits = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(source["logits"].reshape(-1)), CLASSES)
    flat = pyarrow.FixedSizeListArray.from_arrays(pixels, PIXELS)
    _save([flat, labels, logits], FEATURES, folder / "lists")
    nested = pixels
    for size in reversed(INPUT_SHAPE):
        offsets = pyarrow.array(np.arange(0, len(nested) + 1, size, dtype=np.int32))
        nested = pyarrow.ListArray.from_arrays(offsets, nested)
    images = pyarrow.ExtensionArray.from_storage(Array3DExtensionType(INPUT_SHAPE, "uint8"), nested)
    features = Features({**FEATURES, "inputs": Array3D(INPUT_SHAPE, "uint8")})
    _save([images, labels, logits], features, folder / "arrays")


def _save(columns: list[pyarrow.Array], features: Features, folder: Path) -> None:
    table = InMemoryTable(pyarrow.table(columns, schema=features.arrow_schema))
    Dataset(table, info=DatasetInfo(features=features)).save_to_disk(str(folder))


def _tensors(batch: dict[str, Tensor]) -> Batch:
    return batch["inputs"].view(-1, *INPUT_SHAPE), batch["labels"], batch["logits"]


def read_by_index(folder: Path, workers: int, kept_as: str = "lists") -> Iterator[Batch]:
    """Yield one shuffled epoch, by a permutation of all rows."""
    dataset = load_from_disk(str(folder / kept_as)).with_format("torch")
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    yield from map(_tensors, loader)


def _shuffled(folder: Path, form: str) -> IterableDataset:
    dataset = load_from_disk(str(folder / "lists")).to_iterable_dataset(num_shards=SHARDS)
    return dataset.shuffle(seed=0, buffer_size=BUFFER).with_format(form)


def read_in_turn(folder: Path, workers: int) -> Iterator[Batch]:
    """Yield one epoch, shards and a buffer shuffled."""
    dataset = _shuffled(folder, "torch")
    if workers:
        batches: Any = DataLoader(
            dataset.batch(BATCH, drop_last_batch=True), batch_size=None, num_workers=workers
        )
    else:
        batches = dataset.iter(BATCH, drop_last_batch=True)
    yield from map(_tensors, batches)


def read_arrow(folder: Path, workers: int) -> Iterator[Batch]:
    """Yield the same as Arrow tables, viewed as tensors; in this process alone, whatever `workers`."""

    def tensor(table: pyarrow.Table, name: str) -> Tensor:
        column = table.column(name).combine_chunks()
        values = column.flatten() if pyarrow.types.is_fixed_size_list(column.type) else column
        return torch.from_numpy(values.to_numpy(zero_copy_only=True)).view(table.num_rows, -1)

    for table in _shuffled(folder, "arrow").iter(BATCH, drop_last_batch=True):
        inputs, labels, logits = (tensor(table, name) for name in FEATURES)
        yield inputs.view(-1, *INPUT_SHAPE), labels.view(-1), logits


WAYS = {
    "map-style": read_by_index,
    "iterable": read_in_turn,
    "Array3D": partial(read_by_index, kept_as="arrays"),
    "Arrow by hand": read_arrow,
}
