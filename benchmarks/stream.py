"""Speed of batches out of a store, against an index into arrays in memory.

Batches are shuffled, 256 rows each. The page cache is hot, and both sides have one torch thread.

1. One teacher, 131,072 rows of (uint8 3 x 32 x 32, int64 label, logits x 1000), stored as float16 and as
   error budget 1e-2.
2. Three teachers and four views: every (view, row) of 32,768 rows with its label, no inputs.

The yardstick is one fancy index a batch into contiguous tensors in memory, in an order drawn before the clock
starts. Its logits are float16 for every encoding of the store. "as stored" compares logits as they are kept
(`decode=False`) with the index alone. "decoded" compares float32 logits with the index and `.float()`.
`index_select`, four times faster than an index by a tensor, is reported beside it.

Alone, with fewer rows: python benchmarks/stream.py [rows]
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from encoding import bar
from measured_stores import BATCH, ROWS, in_memory, make_store, random_inputs
from timing import compare
from torch import Tensor

from logitstore.pipeline import TorchBatch, TorchStream
from logitstore.storage import Stream

BUDGET = {"max_kl": 1e-2}
TEACHERS, VIEWS = 3, 4
FLOATS_BAR, BUDGET_BAR = 0.8, 0.4

Index = Callable[[Tensor], tuple[Tensor, ...]]
"""The yardstick: from the places of a batch to its tensors."""


def batches_of(order: Tensor) -> Iterator[Tensor]:
    """Yield the places of each batch."""
    return iter(order.split(BATCH))


def against_memory(what: str, stream: Stream, index: Index, order: Tensor, least: float | None) -> None:
    """Time an epoch of a stream against the same batches in memory, and print the ratio and its bar."""
    batches = TorchStream(stream)

    def from_store() -> None:
        assert sum(len(batch) for batch in batches) == len(order)

    def from_memory() -> None:
        assert sum(len(index(places)[0]) for places in batches_of(order)) == len(order)

    found = compare(from_memory, from_store)
    spread = f"{found.low:.2f} … {found.high:.2f}; {len(order) / found.theirs:,.0f} rows/s"
    if least is None:
        print(f"  {'':8s}{f'{what} ({spread})':122s} {found.ratio:14.2f}", flush=True)
        return
    bar(f"{what} ({spread})", f"{found.ratio:.2f}", f">= {least:g}", found.ratio >= least)


def check_same(batch: TorchBatch, expected: dict[str, Tensor]) -> None:
    """Assert that the stream gives the yardstick's values: a fast wrong answer is worthless."""
    for name, logits in expected.items():
        given = batch.logits[name]
        assert isinstance(given, Tensor) and torch.equal(given, logits)


def one_teacher(folder: Path, rows: int) -> None:
    """Time one teacher's logits as float16 and by budget, with inputs and labels."""
    store = make_store(
        folder / "one.zarr", rows, {"float16": "float16", "budget": BUDGET}, inputs=random_inputs(rows)
    )
    assert store.samples.inputs is not None
    inputs = torch.from_numpy(store.samples.inputs[slice(None)])
    labels = torch.from_numpy(store.samples.labels)
    logits = in_memory(store, "float16")
    order = torch.randperm(rows)

    def stored(places: Tensor) -> tuple[Tensor, ...]:
        return inputs[places], labels[places], logits[places]

    def decoded(places: Tensor) -> tuple[Tensor, ...]:
        return inputs[places], labels[places], logits[places].float()

    for teacher, least in (("float16", FLOATS_BAR), ("budget", BUDGET_BAR)):
        for decode, index, how in ((False, stored, "as stored"), (True, decoded, "decoded")):
            stream = store.stream(BATCH, teachers=[teacher], seed=0, decode=decode)
            first = next(iter(TorchStream(stream)))
            assert first.inputs is not None and torch.equal(first.inputs, inputs[first.rows])
            if teacher == "float16":
                check_same(first, {teacher: index(first.rows)[2]})
            against_memory(f"rows/s, {teacher}, {how} / in memory", stream, index, order, least)

    def selected(places: Tensor) -> tuple[Tensor, ...]:
        return inputs.index_select(0, places), labels.index_select(0, places), logits.index_select(0, places)

    stream = store.stream(BATCH, teachers=["float16"], seed=0, decode=False)
    against_memory("rows/s, float16, as stored / index_select in memory", stream, selected, order, None)


def many_teachers(folder: Path, rows: int) -> None:
    """Time three teachers and four views in one pass."""
    names = [f"teacher-{number}" for number in range(TEACHERS)]
    store = make_store(folder / "many.zarr", rows, dict.fromkeys(names, "float16"), views=VIEWS)
    labels = torch.from_numpy(store.samples.labels)
    logits = [in_memory(store, name, VIEWS) for name in names]
    order = torch.randperm(VIEWS * rows)

    def stored(places: Tensor) -> tuple[Tensor, ...]:
        return labels[places % rows], *(array[places] for array in logits)

    def decoded(places: Tensor) -> tuple[Tensor, ...]:
        return labels[places % rows], *(array[places].float() for array in logits)

    for decode, index, how in ((False, stored, "as stored"), (True, decoded, "decoded")):
        stream = store.stream(BATCH, teachers=names, views="all", seed=0, decode=decode)
        first = next(iter(TorchStream(stream)))
        expected = index(first.views * rows + first.rows)[1:]
        check_same(first, dict(zip(names, expected, strict=True)))
        what = f"rows/s, {TEACHERS} teachers and {VIEWS} views, {how} / arrays in memory"
        against_memory(what, stream, index, order, FLOATS_BAR)


def main(rows: int = ROWS) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"stream: {rows:,} rows, batches of {BATCH}, against one torch index a batch in memory")
    with tempfile.TemporaryDirectory() as folder:
        one_teacher(Path(folder), rows)
    with tempfile.TemporaryDirectory() as folder:
        many_teachers(Path(folder), rows // VIEWS)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
