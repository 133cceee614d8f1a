"""Loops that count their steps: an epoch is over with its last batch, whatever becomes of the iterator."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.torch_batches import array_stream, tensor_stream

from logitstore.pipeline.stream import torch_stream
from logitstore.storage.api import Store
from logitstore.storage.stream.stream import Stream

SETTINGS: dict[str, Any] = {"views": "cycle", "batch_size": 32}
Rows = list[tuple[list[int], list[int]]]


def rows_of(batches: Any) -> Rows:
    return [(batch.rows.tolist(), batch.views.tolist()) for batch in batches]


def held(stream: Any) -> Rows:
    """Take one epoch by `next`; the iterator stays referenced after the function by the stream's list."""
    iterator = iter(stream)
    KEPT.append(iterator)
    return rows_of(next(iterator) for _ in range(len(stream)))


def broken(stream: Any) -> Rows:
    taken = []
    for number, batch in enumerate(stream):
        taken.append(batch)
        if number == len(stream) - 1:
            break
    return rows_of(taken)


def zipped(stream: Any) -> Rows:
    return rows_of(batch for _, batch in zip(range(len(stream)), stream, strict=False))


KEPT: list[Iterator[Any]] = []
LOOPS: dict[str, Callable[[Any], Rows]] = {"held": held, "broken": broken, "zipped": zipped}


class Sending:
    """A copier without a GPU: a thread runs ahead of the loop all the same."""

    def __init__(self, then: Any) -> None:
        self.send, self.receive = then, lambda batch: batch


@pytest.fixture(params=["arrays", "tensors", "ahead"])
def make(request: pytest.FixtureRequest, store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Make a stream of arrays, of tensors, or of tensors that a thread reads ahead."""
    if request.param == "arrays":
        return lambda: array_stream(store, **SETTINGS)
    if request.param == "tensors":
        return lambda: tensor_stream(store, **SETTINGS)
    monkeypatch.setattr(torch_stream, "copier_for", lambda device, then: Sending(then))
    return lambda: tensor_stream(store, device="cpu", **SETTINGS)


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    """Close the iterators that a test held."""
    yield
    while KEPT:
        KEPT.pop().close()  # type: ignore[attr-defined]


def whole_epochs(make: Callable[[], Any], number: int) -> list[Rows]:
    stream = make()
    epochs = [rows_of(stream) for _ in range(number)]
    assert len({str(epoch) for epoch in epochs}) == number
    return epochs


@pytest.mark.parametrize("loop", LOOPS)
def test_counted_epochs_are_those_of_whole_loops(make: Callable[[], Any], loop: str) -> None:
    stream = make()
    assert [LOOPS[loop](stream) for _ in range(3)] == whole_epochs(make, 3)
    assert stream.epoch == 3


def test_without_the_step_at_the_last_batch_the_epoch_repeats(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the loops above find a stream that ends an epoch with `StopIteration` alone."""
    hand_out = Stream.hand_out

    def without_step(self: Stream, iteration: Any) -> None:
        pinned, self._pinned = self._pinned, True
        hand_out(self, iteration)
        self._pinned = pinned

    monkeypatch.setattr(Stream, "hand_out", without_step)
    stream = array_stream(store, **SETTINGS)
    assert held(stream) == held(stream)


def test_the_state_after_the_last_batch_is_that_of_the_next_epoch(make: Callable[[], Any]) -> None:
    stream, other = make(), make()
    held(stream)
    state = stream.state_dict()
    assert state == stream.state_dict()
    assert state["epoch"] == 1
    other.load_state_dict(state)
    assert [rows_of(other), rows_of(other)] == whole_epochs(make, 3)[1:]


@pytest.mark.parametrize("taken", [1, 3, 4])
def test_an_epoch_that_was_left_begins_anew_though_its_iterator_is_kept(
    make: Callable[[], Any], taken: int
) -> None:
    """A thread may have read the last batch: the loop has not."""
    stream = make()
    iterator = iter(stream)
    KEPT.append(iterator)
    for _ in range(taken):
        next(iterator)
    state = stream.state_dict()
    assert state["epoch"] == 0
    assert rows_of(stream) == whole_epochs(make, 1)[0]
    other = make()
    other.load_state_dict(state)
    assert rows_of(other) == whole_epochs(make, 1)[0][taken:]


def test_an_older_iterator_moves_no_position(make: Callable[[], Any]) -> None:
    stream = make()
    older, newer = iter(stream), iter(stream)
    KEPT.extend((older, newer))
    next(older), next(newer), next(newer)
    state = stream.state_dict()
    list(older)
    assert stream.state_dict() == state
    assert len(list(newer)) == len(stream) - 2
    assert stream.epoch == 1


def test_an_epoch_that_was_set_stays(make: Callable[[], Any]) -> None:
    stream = make()
    stream.set_epoch(1)
    assert held(stream) == held(stream) == whole_epochs(make, 2)[1]
    ended = stream.state_dict()
    other = make()
    other.load_state_dict(ended)
    assert ended["epoch"] == 1
    assert rows_of(other) == []


def test_a_state_loaded_inside_a_loop_is_kept(make: Callable[[], Any]) -> None:
    stream = make()
    iterator = iter(stream)
    KEPT.append(iterator)
    next(iterator)
    state = stream.state_dict()
    next(iterator)
    stream.load_state_dict(state)
    list(iterator)
    assert rows_of(stream) == whole_epochs(make, 1)[0][1:]
