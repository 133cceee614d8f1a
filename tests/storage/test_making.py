"""Inputs that are made batch by batch, ahead of the loop: the same batches, errors and positions as without.

Threads take the place of worker processes here: `tests/pipeline/train/test_inputs.py` has the processes.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import stores
from support.stores import Made, Teacher

from logitstore.storage.errors import ConfigError, RowMismatch
from logitstore.storage.stream.making import InputMaker, Wanted
from logitstore.storage.stream.stream import Stream

ROWS = 37


class Threads:
    """Makers in threads, three rows each."""

    def __init__(self, transfer_set: Any, augment: Any) -> None:
        self._maker = InputMaker(transfer_set, augment)
        self._pool = ThreadPoolExecutor(2)
        self.begun = self.started = self.made = 0
        self.may_make = threading.Event()
        self.may_make.set()

    def batches_ahead(self, batch_bytes: int) -> int:
        return 2

    def begin(self, wanted: Wanted, out: NDArray[Any]) -> Sequence[Future[None]]:
        self.begun += 1
        return [
            self._pool.submit(self._make, wanted.part(start, start + 3), out[start : start + 3])
            for start in range(0, len(out), 3)
        ]

    def _make(self, wanted: Wanted, out: NDArray[Any]) -> None:
        self.started += 1
        self.may_make.wait(20)
        out[...] = self._maker.make(wanted)
        self.made += len(out)


class Pairs:
    """A transfer set of inputs and labels."""

    def __init__(self, made: Made) -> None:
        self._made = made

    def __len__(self) -> int:
        return len(self._made.inputs)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        return self._made.inputs[index], int(self._made.store.samples.labels[index])


@pytest.fixture(params=["stored", "transfer set"])
def sources(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Made, dict[str, Any], Threads]]:
    """A store of three views of which two are augmented, the settings of a stream of it, and makers."""
    is_stored = request.param == "stored"
    teachers = {"wide": Teacher(views=3, augmented=True)}
    made = stores.make(
        tmp_path / "store.zarr", rows=ROWS, teachers=teachers, store_inputs=is_stored, names=False
    )
    transfer_set = None if is_stored else Pairs(made)
    makers = Threads(transfer_set, stores.augment)
    settings = {"batch_size": 8, "seed": 5, "augment": stores.augment, "transfer_set": transfer_set}
    yield made, settings, makers


def content(stream: Stream) -> list[tuple[list[int], list[int], bytes, bytes]]:
    """Rows, views and every bit of the inputs and the logits of each batch."""
    found = []
    for batch in stream:
        assert batch.inputs is not None
        logits: Any = batch.logits["wide"]
        found.append((batch.rows.tolist(), batch.views.tolist(), batch.inputs.tobytes(), logits.tobytes()))
    return found


@pytest.mark.parametrize("views", ["all", "cycle", 0, 1])
def test_batches_have_the_same_bits(sources: tuple[Made, dict[str, Any], Threads], views: Any) -> None:
    made, settings, makers = sources
    plain = made.store.stream(**settings, views=views)
    stream = made.store.stream(**settings, views=views).made_by(makers)
    for _ in range(3):  # epochs
        assert content(stream) == content(plain)
    is_read = settings["transfer_set"] is None and views == 0
    assert bool(makers.begun) != is_read, "the makers are asked where there is anything to make"
    assert stream.makes_inputs != is_read


def test_the_position_is_that_of_the_loop(sources: tuple[Made, dict[str, Any], Threads]) -> None:
    """Batches are made ahead of it, and none of them is lost."""
    made, settings, makers = sources
    whole = content(made.store.stream(**settings, views="all"))
    for taken in (0, 1, len(whole) - 1):
        first = made.store.stream(**settings, views="all").made_by(makers)
        for _ in zip(range(taken), first, strict=False):
            pass
        second = made.store.stream(**settings, views="all").made_by(makers)
        second.load_state_dict(first.state_dict())
        assert content(second) == whole[taken:]


def test_another_input_is_the_same_line(sources: tuple[Made, dict[str, Any], Threads]) -> None:
    made, settings, _ = sources
    settings |= {"views": 2, "augment": lambda inputs, view, rows: stores.augment(inputs, 1, rows)}
    errors = []
    for makers in (None, Threads(settings["transfer_set"], settings["augment"])):
        stream = made.store.stream(**settings, shuffle=False)
        with pytest.raises(RowMismatch, match="from view 2, as `augment` makes it") as caught:
            list(stream if makers is None else stream.made_by(makers))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_another_label_is_refused(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr", rows=ROWS, teachers={"wide": Teacher()}, store_inputs=False)

    class Relabelled(Pairs):
        def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
            image, label = super().__getitem__(index)
            return image, (label + (index == 20)) % 5

    for kind, count in ((Pairs, 0), (Relabelled, 1)):  # the first is the control
        found = 0
        try:
            list(made.store.stream(8, transfer_set=kind(made)).made_by(Threads(kind(made), None)))
        except RowMismatch as error:
            assert ": label: expected" in str(error)
            found += 1
        assert found == count


def test_views_of_another_form_than_the_rows_are_refused(tmp_path: Path) -> None:
    """View 0 is the stored row, which no maker is asked for."""
    made = stores.make(
        tmp_path / "store.zarr", rows=ROWS, teachers={"wide": Teacher(views=2, augmented=True)}, names=False
    )
    wide = Threads(None, lambda inputs, view, rows: inputs.astype(np.uint16))
    stream = made.store.stream(8, views="all", augment=stores.augment).made_by(wide)
    with pytest.raises((ConfigError, RowMismatch)):
        list(stream)


def test_an_abandoned_iteration_begins_no_more(sources: tuple[Made, dict[str, Any], Threads]) -> None:
    made, settings, makers = sources
    stream = made.store.stream(**settings, views=1).made_by(makers)
    iterator = iter(stream)
    next(iterator)
    while makers.made < 3 * 8:  # the batch of the loop and two ahead
        time.sleep(0.01)
    makers.may_make.clear()
    next(iterator)  # a batch that is made, while two threads begin the one after the next
    while makers.started < 3 * 3 + 2:
        time.sleep(0.01)
    iterator.close()  # type: ignore[attr-defined]
    makers.may_make.set()
    makers._pool.shutdown(wait=True)
    assert makers.made == 3 * 8 + 2 * 3, "two chunks of three rows, and not the third"


def test_windows_hold_no_inputs_that_are_fetched(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr", rows=ROWS, teachers={"wide": Teacher()}, store_inputs=False)
    plain = made.store.stream(8, transfer_set=Pairs(made))
    stream = made.store.stream(8, transfer_set=Pairs(made)).made_by(Threads(Pairs(made), None))
    each = made.inputs[0].nbytes
    assert stream.row_bytes == plain.row_bytes - each + 16  # two digests
    assert stream.memory_bytes - 2 * stream.window_bytes > 4 * 8 * each
