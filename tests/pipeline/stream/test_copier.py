"""The thread that runs ahead: it keeps order, bound and errors, and leaves nothing behind.

The copy itself needs a GPU; its place is taken by a copier that counts, so that all around it is tried here.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import stores
from support.torch_batches import begun, content, contents, context, tensor_stream
from torch.utils.data import DataLoader

from logitstore.pipeline.runtime.ahead import AHEAD, run_ahead
from logitstore.pipeline.stream import torch_stream
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.stream.copier import copier_for, to_device
from logitstore.storage.api import Store
from logitstore.storage.errors import RowMismatch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the copy by a side stream needs a GPU")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Whatever a test did, it leaves no more threads than it found."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class CountingCopier:
    """Stands for `Copier` where there is no GPU: copies in memory, and knows the most that was on its way."""

    def __init__(self, then: Any) -> None:
        self.then, self.sent, self.received, self.most = then, 0, 0, 0
        self.thread = ""

    def send(self, batch: TorchBatch) -> tuple[TorchBatch, Any]:
        self.thread = threading.current_thread().name
        self.sent += 1
        self.most = max(self.most, self.sent - self.received)
        return self.then(batch._map(torch.Tensor.clone)), None

    def receive(self, sent: tuple[TorchBatch, Any]) -> TorchBatch:
        self.received += 1
        return sent[0]


@pytest.fixture
def copiers(monkeypatch: pytest.MonkeyPatch) -> list[CountingCopier]:
    """The copiers that were made; every device gets one."""
    made: list[CountingCopier] = []

    def copier(device: Any, then: Any) -> CountingCopier:
        made.append(CountingCopier(then))
        return made[-1]

    for module in ("torch_stream", "copier"):
        monkeypatch.setattr(f"logitstore.pipeline.stream.{module}.copier_for", copier)
    return made


# The thread


def test_items_come_prepared_and_in_order() -> None:
    assert list(run_ahead(range(100), lambda n: n * n)) == [n * n for n in range(100)]


def test_at_most_two_are_taken_before_they_are_asked_for() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    numbers = run_ahead(source(), lambda n: n)
    assert taken == []
    for asked in range(10):
        assert next(numbers) == asked
        deadline = time.monotonic() + 5
        while len(taken) < min(asked + 1 + AHEAD, 10) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)  # and no further
        assert len(taken) == min(asked + 1 + AHEAD, 10)
    numbers.close()


@pytest.mark.parametrize("where", ["items", "prepare"])
def test_an_error_comes_in_its_turn(where: str) -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        if where == "items":
            raise OSError("the disk is gone")
        yield 3

    def prepare(number: int) -> int:
        if number == 3:
            raise OSError("the disk is gone")
        return number

    numbers = run_ahead(source(), prepare)
    assert [next(numbers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(numbers)
    with pytest.raises(StopIteration):
        next(numbers)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_leaving_early_closes_the_source_and_leaves_no_thread(taken: int) -> None:
    closed: list[str] = []

    def source() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    before = threading.active_count()
    numbers = run_ahead(source(), lambda n: n)
    for _ in range(taken):
        next(numbers)
    assert threading.active_count() == before + (taken > 0)
    del numbers
    assert threading.active_count() == before
    assert closed == (["logitstore-to-device"] if taken else [])


# Streams


def test_batches_of_a_device_are_those_of_the_host(store: Store, copiers: list[CountingCopier]) -> None:
    expected = [contents(stream) for stream in [tensor_stream(store)] for _ in range(2)]
    copiers.clear()
    stream = tensor_stream(store, "cuda")
    assert [contents(stream) for _ in range(2)] == expected
    assert [copier.sent for copier in copiers] == [len(stream)] * 2
    assert {copier.thread for copier in copiers} == {"logitstore-to-device"}
    assert all(1 <= copier.most <= AHEAD + 1 for copier in copiers)


def test_what_is_copied_is_what_is_stored(
    store: Store, copiers: list[CountingCopier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 goes over the bus, and becomes float32 on the device."""
    dtypes = []
    send = CountingCopier.send

    def look(self: CountingCopier, batch: TorchBatch) -> Any:
        dtypes.append({name: logits.dtype for name, logits in batch.logits.items()})
        return send(self, batch)

    monkeypatch.setattr(CountingCopier, "send", look)
    batches = list(tensor_stream(store, "cuda"))
    assert all(found == {"wide": torch.float16, "deep": torch.float32} for found in dtypes)
    assert {batch.logits["wide"].dtype for batch in batches} == {torch.float32}


@pytest.mark.parametrize("stop", [0, 1, 7, 18, 19])
def test_a_state_is_of_the_batch_that_was_used_and_not_of_the_one_that_was_read(
    store: Store, copiers: list[CountingCopier], stop: int
) -> None:
    here, there = (begun(lambda d=device: tensor_stream(store, d), stop) for device in (None, "cuda"))
    time.sleep(0.02)  # the thread is ahead by now
    assert there[0].state_dict() == here[0].state_dict()
    state = there[0].state_dict()
    rest = contents(there[1])
    assert rest == contents(here[1])
    if rest:
        other = tensor_stream(store, "cuda")
        other.load_state_dict(state)
        assert contents(other) == rest
    assert there[0].state_dict() == here[0].state_dict()


# Far from the end, where the thread that is ahead has nothing left to do.
@pytest.mark.parametrize("stop", [1, 9])
def test_leaving_a_loop_early_keeps_the_state_and_no_thread(
    store: Store, copiers: list[CountingCopier], stop: int
) -> None:
    stream, iterator = begun(lambda: tensor_stream(store, "cuda"), stop)
    assert any(thread.name == "logitstore-to-device" for thread in threading.enumerate())
    state = stream.state_dict()
    del iterator
    assert not any(thread.name == "logitstore-to-device" for thread in threading.enumerate())
    assert stream.state_dict() == state


def test_a_stream_without_a_device_copies_nothing(store: Store) -> None:
    assert copier_for(torch.device("cpu"), lambda batch: batch) is None
    for device in (None, "cpu"):
        before = threading.active_count()
        iterator = iter(tensor_stream(store, device))
        next(iterator)
        names = {thread.name for thread in threading.enumerate()}
        assert "logitstore-to-device" not in names
        del iterator
        assert threading.active_count() == before


def test_an_error_of_the_stream_reaches_the_loop(
    store: Store, made: stores.Made, copiers: list[CountingCopier]
) -> None:
    changed = made.inputs.copy()
    changed[store.samples.source[130]] ^= 1
    settings = {"views": 0, "shuffle": False, "batch_size": 64, "window": 64}
    stream = tensor_stream(store, "cuda", transfer_set=changed, **settings)
    seen = 0
    with pytest.raises(RowMismatch, match="row 130"):
        for _ in stream:
            seen += 1
    assert seen == 2


def test_a_loop_that_fails_leaves_no_thread(store: Store, copiers: list[CountingCopier]) -> None:
    def train() -> None:
        for _ in tensor_stream(store, "cuda"):
            raise FloatingPointError("the loss is NaN")

    with pytest.raises(FloatingPointError):
        train()


# Loaders


def test_batches_of_a_loader_go_to_the_device_as_they_are_stored(
    store: Store, copiers: list[CountingCopier]
) -> None:
    stream = tensor_stream(store, decode=False)
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context=context("forkserver"))
    moved = list(to_device(loader, "cuda", lambda batch: batch.decoded()))
    assert contents(moved) == contents(tensor_stream(store))
    assert [copier.sent for copier in copiers] == [len(stream)]


def test_batches_stay_where_they_are_for_the_cpu(store: Store) -> None:
    batches = list(tensor_stream(store))
    moved = list(to_device(batches, "cpu"))
    assert contents(moved) == contents(batches)
    assert [m.logits["wide"].data_ptr() for m in moved] == [b.logits["wide"].data_ptr() for b in batches]


def test_a_device_that_is_no_gpu_gets_its_batches_too(store: Store) -> None:
    batch = next(iter(tensor_stream(store, "meta")))
    assert {logits.device.type for logits in batch.logits.values()} == {"meta"}


# The copy itself


@needs_gpu
def test_a_gpu_gets_the_same_bits(store: Store) -> None:
    for here, there in zip(tensor_stream(store), tensor_stream(store, "cuda"), strict=True):
        assert {logits.device.type for logits in there.logits.values()} == {"cuda"}
        assert content(here) == content(there.to("cpu"))


@needs_gpu
def test_memory_of_a_batch_is_not_given_away_while_the_loop_computes(store: Store) -> None:
    """Sums that the GPU has not come to yet, of batches that the loop has let go."""
    expected = [float(batch.logits["wide"].double().sum()) for batch in tensor_stream(store)]
    busy = torch.ones(2048, 2048, device="cuda")
    sums = []
    for batch in tensor_stream(store, "cuda"):
        for _ in range(5):
            busy = busy @ busy / 2048
        sums.append(batch.logits["wide"].double().sum())
        del batch
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.tensor(expected, dtype=torch.float64))


def test_the_module_that_streams_asks_here_for_its_copier() -> None:
    """So that the copiers of these tests are the ones that are used."""
    assert torch_stream.copier_for is copier_for
