"""Batches as tensors: the same numbers, in DataLoader's processes too, each row once."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stores
import torch
from jaxtyping import TypeCheckError
from torch.utils.data import DataLoader

from logitstore.pipeline.torch_stream import TorchBatch, TorchStream
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import ConfigError

ROWS = 150


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> stores.Made:
    """A store of three blocks with two teachers."""
    return stores.make(
        tmp_path_factory.mktemp("store") / "store.zarr",
        rows=ROWS,
        block_rows=64,
        teachers={"wide": stores.Teacher(views=2), "deep": stores.Teacher(views=2, encoding="float32")},
    )


@pytest.fixture
def store(made: stores.Made) -> Store:
    """The store, opened anew."""
    return open_store(made.path)


def test_tensors_are_the_arrays(store: Store) -> None:
    arrays, tensors = (list(make(store)) for make in (array_stream, tensor_stream))
    assert len(arrays) == len(tensors) == len(tensor_stream(store))
    for array, tensor in zip(arrays, tensors, strict=True):
        assert len(array) == len(tensor)
        for name in ("rows", "views", "labels", "inputs"):
            np.testing.assert_array_equal(getattr(array, name), getattr(tensor, name).numpy())
        assert set(array.logits) == set(tensor.logits) == {"wide", "deep"}
        for name in array.logits:
            assert tensor.logits[name].dtype == torch.float32
            np.testing.assert_array_equal(array.logits[name], tensor.logits[name].numpy())


def array_stream(store: Store, **changes: Any) -> Any:
    """Both views of both teachers, in batches of 16."""
    settings: dict[str, Any] = {"batch_size": 16, "views": "all", "seed": 3} | changes
    return store.stream(**settings)


def tensor_stream(store: Store, **changes: Any) -> TorchStream:
    """The same, as tensors."""
    return TorchStream(array_stream(store, **changes))


def test_a_batch_is_a_window_onto_the_arrays_and_not_a_copy(store: Store) -> None:
    batch = next(iter(array_stream(store)))
    assert np.shares_memory(TorchBatch.of(batch).logits["wide"].numpy(), batch.logits["wide"])


def test_a_batch_without_inputs_or_teachers(store: Store) -> None:
    batch = next(iter(tensor_stream(store, inputs=False, teachers=[], views=0)))
    assert (batch.inputs, dict(batch.logits)) == (None, {})
    moved = batch.to("cpu")
    assert (moved.inputs, dict(moved.logits)) == (None, {})


def test_moving_a_batch_keeps_all_of_it(store: Store) -> None:
    batch = next(iter(tensor_stream(store)))
    moved = batch.to("meta")
    assert moved.inputs is not None
    assert {moved.inputs.device.type, moved.labels.device.type} == {"meta"}
    assert {logits.device.type for logits in moved.logits.values()} == {"meta"}
    assert {moved.rows.device.type, moved.views.device.type} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_a_pinned_batch_is_the_same(store: Store) -> None:
    batch = next(iter(tensor_stream(store)))
    pinned = batch.pin_memory()
    assert pinned.inputs is not None
    assert pinned.inputs.is_pinned() and all(logits.is_pinned() for logits in pinned.logits.values())
    torch.testing.assert_close(dict(pinned.logits), dict(batch.logits))


# DataLoader


def epoch_of(loader: Any) -> Counter[tuple[int, int]]:
    """How often each (view, row) comes."""
    counter: Counter[tuple[int, int]] = Counter()
    for batch in loader:
        counter.update(zip(batch.views.tolist(), batch.rows.tolist(), strict=True))
    return counter


ONCE = Counter((view, row) for view in range(2) for row in range(ROWS))


def test_a_loader_without_processes_is_the_stream(store: Store) -> None:
    loader = DataLoader(tensor_stream(store), batch_size=None)
    assert [b.rows.tolist() for b in loader] == [b.rows.tolist() for b in tensor_stream(store)]
    assert len(loader) == len(tensor_stream(store))


@pytest.mark.parametrize("rank", [None, 1])
def test_a_loader_with_processes_gives_every_row_once(store: Store, rank: int | None) -> None:
    """And as one rank of two, every row of that rank."""
    changes = {} if rank is None else {"rank": rank, "world_size": 2}
    loader = DataLoader(
        tensor_stream(store, **changes), batch_size=None, num_workers=2, multiprocessing_context="forkserver"
    )
    assert epoch_of(loader) == (ONCE if rank is None else epoch_of(tensor_stream(store, **changes)))


Seen = list[tuple[list[int], list[int]]]


def epochs_of(loader: Any, stream: TorchStream, epochs: list[int | None]) -> list[Seen]:
    """The batches of several epochs, the ones with a number set first."""
    seen = []
    for epoch in epochs:
        if epoch is not None:
            stream.set_epoch(epoch)
        seen.append([(b.views.tolist(), b.rows.tolist()) for b in loader])
    return seen


@pytest.mark.parametrize("epochs", [[None, None, None], [0, 1, 2], [2, 2]], ids=str)
@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "persistent"])
def test_batches_come_as_they_would_without_processes(
    store: Store, persistent: bool, epochs: list[int | None]
) -> None:
    """The same batches in the same order, epoch after epoch, set or not."""
    stream, here = tensor_stream(store, views="cycle"), tensor_stream(store, views="cycle")
    loader = DataLoader(
        stream,
        batch_size=None,
        num_workers=2,
        multiprocessing_context="forkserver",
        persistent_workers=persistent,
    )
    seen = epochs_of(loader, stream, epochs)
    del loader
    assert seen == epochs_of(here, here, epochs)


def test_a_state_that_workers_have_left_behind_is_refused(store: Store) -> None:
    stream = tensor_stream(store)
    assert stream.state_dict()["epoch"] == 0
    list(DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="forkserver"))
    with pytest.raises(ConfigError, match="state_dict: expected a stream that is iterated in this process"):
        stream.state_dict()


def test_workers_that_all_read_everything_would_be_caught(store: Store) -> None:
    """Negative control: without shares each row comes as often as there are workers."""
    twice = epoch_of(tensor_stream(store)) + epoch_of(tensor_stream(store))
    assert twice != ONCE
    assert set(twice.values()) == {2}


# State


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_state_between_two_batches_gives_the_same_rest(store: Store, stop: int) -> None:
    stream = tensor_stream(store)
    stream.set_epoch(4)
    iterator = iter(stream)
    for _ in range(stop):
        next(iterator)
    state = stream.state_dict()
    rest = [b.rows.tolist() for b in iterator]
    other = tensor_stream(store)
    other.load_state_dict(state)
    assert [b.rows.tolist() for b in other] == rest


def test_set_epoch_reaches_the_stream(store: Store) -> None:
    orders = []
    for epoch in (0, 1, 0):
        stream = tensor_stream(store)
        stream.set_epoch(epoch)
        orders.append([b.rows.tolist() for b in stream])
    assert orders[0] == orders[2] != orders[1]


# Types


def test_a_batch_of_other_shapes_or_dtypes_is_refused_here() -> None:
    """The annotations are enforced in tests: this fails if the import hook is off."""
    three = torch.zeros(3, dtype=torch.int64)
    logits = {"wide": torch.zeros(3, 4)}
    assert len(TorchBatch(three, three, None, three, logits)) == 3
    wrong: list[tuple[Any, ...]] = [
        (three.float(), three, None, three, logits),
        (three, three[:2], None, three, logits),
        (three, three, None, three, {"wide": torch.zeros(3, 4).double()}),
        (three, three, None, three, {"wide": torch.zeros(2, 4)}),
    ]
    for fields in wrong:
        with pytest.raises(TypeCheckError):
            TorchBatch(*fields)


def test_a_stream_survives_pickling(store: Store, tmp_path: Path) -> None:
    """What `spawn` and `forkserver` do to it; a path and plans travel, no open file does."""
    torch.save(tensor_stream(store), tmp_path / "stream.pt")
    loaded = torch.load(tmp_path / "stream.pt", weights_only=False)
    assert [b.rows.tolist() for b in loaded] == [b.rows.tolist() for b in tensor_stream(store)]
