"""A store and streams for the tests of torch's side, and the content of a batch for comparison."""

import multiprocessing
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.storage.api import Store
from support import stores

ROWS = 150

Content = tuple[list[int], list[int], dict[str, bytes]]


def make_store(path: Path) -> stores.Made:
    """Make a store of three blocks with two teachers, in two views."""
    return stores.make(
        path,
        rows=ROWS,
        block_rows=64,
        teachers={"wide": stores.Teacher(views=2), "deep": stores.Teacher(views=2, encoding="float32")},
    )


def array_stream(store: Store, **changes: Any) -> Any:
    """Stream both views of both teachers, in batches of 16: 19 batches an epoch."""
    settings: dict[str, Any] = {"batch_size": 16, "views": "all", "seed": 3} | changes
    return store.stream(**settings)


def tensor_stream(store: Store, device: str | None = None, **changes: Any) -> TorchStream:
    """Stream the same as tensors."""
    return TorchStream(array_stream(store, **changes), device)


def content(batch: TorchBatch) -> Content:
    """Return the rows and views of a batch, and every bit of its logits."""
    bits = {name: bytes(logits.numpy().tobytes()) for name, logits in batch.logits.items()}
    return batch.rows.tolist(), batch.views.tolist(), bits


def contents(batches: Iterable[TorchBatch]) -> list[Content]:
    """Return the content of each batch."""
    return [content(batch) for batch in batches]


def context(name: str) -> BaseContext:
    """Return a start method; the server that forks the workers has torch already, so that each starts at once."""
    found = multiprocessing.get_context(name)
    if name == "forkserver":
        found.set_forkserver_preload(["logitstore.pipeline.stream.torch_stream"])
    return found


def begun(make: Callable[[], TorchStream], batches: int) -> tuple[TorchStream, Any]:
    """Return a stream of which some batches were taken, and its iterator."""
    stream = make()
    iterator = iter(stream)
    for _ in range(batches):
        next(iterator)
    return stream, iterator
