"""A stream of tensors: a state between any two batches gives the same rest, in this process.

Workers are in test_data_loader.py and test_stateful_data_loader.py, other devices in test_device_feed.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import stores
from support.torch_batches import ROWS, begun, contents, make_store, tensor_stream

from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import ConfigError, RowMismatch

BATCHES = 19


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> stores.Made:
    """The store of these tests."""
    return make_store(tmp_path_factory.mktemp("store") / "store.zarr")


@pytest.fixture
def store(made: stores.Made) -> Store:
    """The store, opened anew."""
    return open_store(made.path)


def epochs(store: Store, number: int) -> list[Any]:
    """The batches of several epochs, one after the other, of a stream that nobody disturbs."""
    stream = tensor_stream(store)
    return [batch for _ in range(number) for batch in contents(stream)]


@pytest.mark.parametrize("stop", range(BATCHES + 1))
def test_a_state_between_two_batches_gives_the_same_rest(store: Store, stop: int) -> None:
    stream, iterator = begun(lambda: tensor_stream(store), stop)
    state = stream.state_dict()
    again = stream.state_dict()
    rest = contents(iterator)
    assert state == again
    other = tensor_stream(store)
    other.load_state_dict(state)
    assert contents(other) == (rest or epochs(store, 2)[BATCHES:])
    assert contents(other) == epochs(store, 3)[(1 if rest else 2) * BATCHES :][:BATCHES]


def test_taking_a_state_changes_no_batch(store: Store) -> None:
    stream = tensor_stream(store)
    seen = []
    for _ in range(2):
        for batch in stream:
            stream.state_dict()
            seen += contents([batch])
    assert seen == epochs(store, 2)


@pytest.mark.parametrize("with_states", [False, True])
def test_an_epoch_is_over_with_its_last_batch_though_nobody_asks_for_more(
    store: Store, with_states: bool
) -> None:
    """Loops that count their steps leave an iterator before it ends: Lightning's, and transformers' Trainer."""
    stream = tensor_stream(store)
    seen = []
    for _ in range(3):
        iterator = iter(stream)
        for _ in range(len(stream)):
            seen += contents([next(iterator)])
            if with_states:
                stream.state_dict()
        del iterator
    assert seen == epochs(store, 3)


def test_after_the_last_batch_the_state_is_that_of_the_next_epoch(store: Store) -> None:
    stream, iterator = begun(lambda: tensor_stream(store), BATCHES)
    inside = stream.state_dict()
    assert list(iterator) == []
    assert inside == stream.state_dict()
    assert inside["epoch"] == 1


@pytest.mark.parametrize("stop", [1, 7, BATCHES])
def test_the_state_outlives_an_iterator_that_was_left(store: Store, stop: int) -> None:
    stream, iterator = begun(lambda: tensor_stream(store), stop)
    state = stream.state_dict()
    del iterator
    assert stream.state_dict() == state
    other, unasked = begun(lambda: tensor_stream(store), stop)
    del unasked
    assert other.state_dict() == state


def test_an_epoch_that_was_left_begins_anew(store: Store) -> None:
    stream, iterator = begun(lambda: tensor_stream(store), 5)
    del iterator
    assert contents(stream) == epochs(store, 1)


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_state_in_an_epoch_that_was_set(store: Store, stop: int) -> None:
    stream = tensor_stream(store)
    stream.set_epoch(4)
    iterator = iter(stream)
    for _ in range(stop):
        next(iterator)
    state = stream.state_dict()
    rest = contents(iterator)
    assert state["epoch"] == 4
    other = tensor_stream(store)
    other.load_state_dict(state)
    assert contents(other) == rest


def test_an_error_of_the_next_batch_comes_with_it_and_not_with_the_state(store: Store, made: Any) -> None:
    """The state looks one batch ahead; what it finds there is told to who asks for that batch."""
    settings = {"views": 0, "shuffle": False, "batch_size": 64, "window": 64}
    changed = made.inputs.copy()
    changed[store.samples.source[130]] ^= 1  # in the third of three batches
    stream = tensor_stream(store, transfer_set=changed, **settings)
    iterator = iter(stream)
    next(iterator)
    next(iterator)
    state = stream.state_dict()
    with pytest.raises(RowMismatch, match="row 130"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)
    good = tensor_stream(store, transfer_set=made.inputs, **settings)
    good.load_state_dict(state)
    assert [rows for rows, _, _ in contents(good)] == [list(range(128, ROWS))]


def test_set_epoch_reaches_the_stream(store: Store) -> None:
    orders = []
    for epoch in (0, 1, 0):
        stream = tensor_stream(store)
        stream.set_epoch(epoch)
        orders.append([b.rows.tolist() for b in stream])
    assert orders[0] == orders[2] != orders[1]


def test_a_state_of_another_stream_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="state: seed"):
        tensor_stream(store, seed=4).load_state_dict(tensor_stream(store).state_dict())


def test_a_stream_survives_pickling(store: Store, tmp_path: Path) -> None:
    """What `spawn` and `forkserver` do to it; a path and plans travel, no open file does. In mid-epoch, too."""
    stream, iterator = begun(lambda: tensor_stream(store), 3)
    torch.save(stream, tmp_path / "stream.pt")
    assert len(contents(iterator)) == BATCHES - 3
    loaded: TorchStream = torch.load(tmp_path / "stream.pt", weights_only=False)
    assert contents(loaded) == epochs(store, 1)


def test_inputs_of_a_transfer_set_come_as_tensors(store: Store, made: Any) -> None:
    for batch in tensor_stream(store, transfer_set=made.inputs):
        np.testing.assert_array_equal(batch.inputs.numpy(), made.inputs[store.samples.source[batch.rows]])


def test_what_is_no_stream_or_no_device_is_refused_at_once(store: Store) -> None:
    stream = store.stream(batch_size=5)
    with pytest.raises(ConfigError, match="device: expected a device such as cpu or cuda:0, found 'nope'"):
        TorchStream(stream, device="nope")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device: expected a device that PyTorch can use here"):
            list(TorchStream(stream, device="cuda"))
