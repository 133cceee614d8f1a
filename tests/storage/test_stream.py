"""Laws of a stream: every row exactly once, with its own inputs and logits, wherever it is interrupted.

Hypothesis draws the store, the arguments and the interruption. `items` and `assert_belongs` look at batches as a
training loop does; broken streams must not pass them.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.traces import unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import stores
from support.messages import Sentences
from support.orders import Item, flaws
from support.stores import Made, Teacher

from logitstore.storage.errors import (
    BadDataError,
    ConfigError,
    PartNotFound,
    RowMismatch,
    ShardCorrupt,
    SpecMismatch,
)
from logitstore.storage.parts.reader import CaptureReader
from logitstore.storage.stream.batch import Batch
from logitstore.storage.stream.stream import Stream
from logitstore.storage.stream.window import Buffers, Field

VIEWS = 3


@pytest.fixture(scope="module")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Made]:
    """Return a function that makes a store of some rows and blocks once."""
    folder = tmp_path_factory.mktemp("streams")

    @lru_cache
    def make(rows: int, block_rows: int) -> Made:
        teachers = {"wide": Teacher(views=VIEWS), "deep": Teacher(views=VIEWS, encoding="float32")}
        return stores.make(
            folder / f"{rows}-{block_rows}.zarr",
            rows=rows,
            block_rows=block_rows,
            teachers=teachers,
            names=False,
        )

    return make


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a store, and arguments for a stream of it."""
    rows, block_rows = draw(st.sampled_from([(1, 8), (5, 1), (16, 4), (37, 8), (100, 32), (61, 64)]))
    return {
        "store": (rows, block_rows),
        "world_size": draw(st.integers(1, 5)),
        "epoch": draw(st.integers(0, 4)),
        "arguments": {
            "batch_size": draw(st.integers(1, rows + 2)),
            "views": draw(st.sampled_from(["all", "cycle", 0, VIEWS - 1])),
            "rows": draw(st.none() | st.lists(st.integers(0, rows - 1), max_size=20).map(sorted)),
            "shuffle": draw(st.booleans()),
            "seed": draw(st.integers(0, 2)),
            "window": draw(st.none() | st.integers(1, rows)),
        },
    }


def streams(made: Made, world_size: int, epoch: int = 0, **arguments: Any) -> list[Stream]:
    """Return the stream of each rank, at an epoch."""
    ranks = [made.store.stream(rank=rank, world_size=world_size, **arguments) for rank in range(world_size)]
    for stream in ranks:
        stream.set_epoch(epoch)
    return ranks


def items(batches: Sequence[Batch]) -> list[Item]:
    """Return (view, row) of every row in some batches."""
    return [item for batch in batches for item in zip(batch.views.tolist(), batch.rows.tolist(), strict=True)]


def bits(batch: Batch) -> tuple[bytes, ...]:
    """Return every bit of a batch."""
    arrays = [batch.rows, batch.views, batch.labels, *batch.logits.values()]
    return tuple(a.tobytes() for a in [*arrays, *([] if batch.inputs is None else [batch.inputs])])


def asked_for(case: dict[str, Any]) -> tuple[list[int], Sequence[int]]:
    """Return the views and rows that an epoch of a case must hold."""
    views = case["arguments"]["views"]
    rows = case["arguments"]["rows"]
    chosen = {"all": list(range(VIEWS)), "cycle": [case["epoch"] % VIEWS]}.get(views, [views])
    return chosen, range(case["store"][0]) if rows is None else rows


def assert_belongs(made: Made, batch: Batch) -> None:
    """Assert that inputs, labels and logits are those of the batch's rows and views."""
    assert np.array_equal(batch.labels, made.labels[batch.rows])
    if batch.inputs is not None:
        assert np.array_equal(batch.inputs, made.inputs[batch.rows])
    for name, dtype in (("wide", "float16"), ("deep", "float32")):
        if name in batch.logits:
            wanted = made.centred(name, dtype)[batch.views, batch.rows]
            assert batch.logits[name].dtype == np.float32
            assert batch.logits[name].tobytes() == wanted.tobytes()


@settings(max_examples=settings.default.max_examples // 3)  # reading takes longer than counting
@given(case=cases())
def test_an_epoch_of_all_ranks_is_every_row_once(
    made_store: Callable[[int, int], Made], case: dict[str, Any]
) -> None:
    made = made_store(*case["store"])
    ranks = streams(made, case["world_size"], case["epoch"], **case["arguments"])
    batches = [list(stream) for stream in ranks]
    assert {len(of_rank) for of_rank in batches} == {len(ranks[0])}
    everything = [batch for of_rank in batches for batch in of_rank]
    assert not flaws(items(everything), *asked_for(case))
    for batch in everything:
        assert len(batch) <= case["arguments"]["batch_size"]
        assert_belongs(made, batch)


@settings(max_examples=settings.default.max_examples // 3)  # reading takes longer than counting
@given(case=cases())
def test_the_same_arguments_give_the_same_bits(
    made_store: Callable[[int, int], Made], case: dict[str, Any]
) -> None:
    made = made_store(*case["store"])
    first, second = (
        [list(map(bits, s)) for s in streams(made, 2, case["epoch"], **case["arguments"])] for _ in "ab"
    )
    assert first == second


@settings(max_examples=settings.default.max_examples // 3)  # reading takes longer than counting
@given(case=cases())
def test_the_order_knows_nothing_of_teachers_batches_or_world(
    made_store: Callable[[int, int], Made], case: dict[str, Any]
) -> None:
    """Every rank passes over its rows in the same order, whatever its batch size and teachers."""
    made = made_store(*case["store"])
    arguments = case["arguments"]

    def orders(world_size: int, **other: Any) -> list[list[Item]]:
        ranks = streams(made, world_size, case["epoch"], **arguments | other)
        return [items(list(stream)) for stream in ranks]

    (wanted,) = orders(1, teachers=["wide"])
    assert orders(1, batch_size=3, teachers=["deep"], inputs=False, decode=False) == [wanted]
    for of_rank in orders(case["world_size"]):
        rest = iter(wanted)
        assert all(item in rest for item in of_rank)


@settings(max_examples=settings.default.max_examples // 3)  # reading takes longer than counting
@given(case=cases(), data=st.data())
def test_restoring_at_every_batch_gives_the_same_tail(
    made_store: Callable[[int, int], Made], case: dict[str, Any], data: st.DataObject
) -> None:
    made = made_store(*case["store"])
    rank = data.draw(st.integers(0, case["world_size"] - 1))

    def fresh() -> Stream:
        return made.store.stream(rank=rank, world_size=case["world_size"], **case["arguments"])

    stream = fresh()
    stream.set_epoch(case["epoch"])
    states, batches = [stream.state_dict()], []
    for batch in stream:
        batches.append(batch)
        states.append(stream.state_dict())
    # The end of an epoch has two states: no row of it remains, or all of the next.
    for number, state in enumerate(states[: len(batches) + 1]):
        again = fresh()
        again.load_state_dict(json.loads(json.dumps(state)))
        assert again.state_dict() == state
        tail = list(again)
        assert [bits(batch) for batch in tail] == [bits(batch) for batch in batches[number:]]


@settings(max_examples=settings.default.max_examples // 3)  # reading takes longer than counting
@given(case=cases(), data=st.data())
def test_interrupted_and_continued_by_others(
    made_store: Callable[[int, int], Made], case: dict[str, Any], data: st.DataObject
) -> None:
    """Three runs of one epoch with other batch sizes and ranks; the state of one rank suffices."""
    made = made_store(*case["store"])
    arguments = dict(case["arguments"])
    seen: list[Item] = []
    state = None
    for leg in range(3):
        world_size = data.draw(st.integers(1, 4))
        arguments["batch_size"] = data.draw(st.integers(1, 20))
        ranks = streams(made, world_size, case["epoch"], **arguments)
        for stream in ranks:
            if state is not None:
                stream.load_state_dict(state)
        iterators = [iter(stream) for stream in ranks]
        stop = data.draw(st.integers(0, len(ranks[0]))) if leg < 2 else None
        rounds, finished = 0, False
        while stop is None or rounds < stop:
            taken = [batch for batch in (next(iterator, None) for iterator in iterators) if batch is not None]
            if not taken:
                finished = True
                break
            assert len(taken) == world_size  # every rank has equally many
            seen += items(taken)
            rounds += 1
        states = [stream.state_dict() for stream in ranks]
        assert all(other == states[0] for other in states)
        state = states[data.draw(st.integers(0, world_size - 1))]
        for iterator in iterators:
            iterator.close()  # type: ignore[attr-defined]
        if finished:
            break
    assert not flaws(seen, *asked_for(case))


def test_drop_last_gives_full_batches_alone(made_store: Callable[[int, int], Made]) -> None:
    made = made_store(37, 8)
    ranks = streams(made, 2, batch_size=4, drop_last=True)
    batches = [list(stream) for stream in ranks]
    assert [[len(batch) for batch in of_rank] for of_rank in batches] == [[4] * 4, [4] * 4]
    seen = items([batch for of_rank in batches for batch in of_rank])
    assert len(set(seen)) == 32


def test_epochs_advance_and_stay_where_they_are_set(made_store: Callable[[int, int], Made]) -> None:
    made = made_store(37, 8)

    def of_epoch(epoch: int) -> list[tuple[bytes, ...]]:
        (stream,) = streams(made, 1, epoch, batch_size=10)
        return list(map(bits, stream))

    stream = made.store.stream(batch_size=10)
    assert [list(map(bits, stream)) for _ in range(3)] == [of_epoch(0), of_epoch(1), of_epoch(2)]
    assert stream.epoch == 3
    stream.set_epoch(1)
    assert [list(map(bits, stream)) for _ in range(2)] == [of_epoch(1)] * 2
    assert len({tuple(of_epoch(epoch)) for epoch in range(6)}) == 6


def test_setting_the_epoch_of_a_state_keeps_its_remainder(made_store: Callable[[int, int], Made]) -> None:
    """A resumed loop sets its epoch; accelerate does so by itself."""
    made = made_store(37, 8)
    first = made.store.stream(batch_size=5, views=0)
    first.set_epoch(2)
    batches = iter(first)
    next(batches)
    state, tail = first.state_dict(), [bits(batch) for batch in batches]
    again = made.store.stream(batch_size=5, views=0)
    again.load_state_dict(state)
    again.set_epoch(2)
    assert [bits(batch) for batch in again] == tail
    assert len(list(again)) == 8  # and then the whole of it
    again.load_state_dict(state)
    again.set_epoch(3)
    assert len(list(again)) == 8


def test_an_epoch_that_was_left_begins_again(made_store: Callable[[int, int], Made]) -> None:
    stream = made_store(37, 8).store.stream(batch_size=10)
    first = bits(next(iter(stream)))
    again = [bits(batch) for batch in stream]
    assert again[0] == first
    assert len(again) == 4
    assert stream.epoch == 1


def test_cycle_goes_through_the_views(made_store: Callable[[int, int], Made]) -> None:
    stream = made_store(16, 4).store.stream(batch_size=5, views="cycle")
    assert [{int(v) for b in stream for v in b.views} for _ in range(4)] == [{0}, {1}, {2}, {0}]


def test_as_stored(made_store: Callable[[int, int], Made]) -> None:
    made = made_store(16, 4)
    (batch,) = made.store.stream(batch_size=16, decode=False, shuffle=False, views=0)
    assert {name: z.dtype.name for name, z in batch.logits.items()} == {"wide": "float16", "deep": "float32"}
    assert np.array_equal(batch.logits["wide"].astype(np.float32), made.centred("wide")[0])
    assert batch.scale == {}


# Memory


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("window", [None, 8, 40])
def test_two_windows_and_no_more(
    made_store: Callable[[int, int], Made],
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
    world_size: int,
) -> None:
    made = made_store(100, 32)
    for rank in range(world_size):
        stream = made.store.stream(7, views="all", window=window, rank=rank, world_size=world_size)
        taken: dict[int, Any] = {}
        take = Buffers.take

        def counted(
            self: Buffers, rows: int, take: Any = take, taken: dict[int, Any] = taken
        ) -> dict[str, NDArray[Any]]:
            arrays = take(self, rows)
            taken[id(arrays)] = arrays
            return arrays

        with monkeypatch.context() as patched:
            patched.setattr(Buffers, "take", counted)
            for _ in range(3):  # the memory of an epoch is that of the next
                list(stream)
        sizes = [sum(array.nbytes for array in arrays.values()) for arrays in taken.values()]
        assert len(sizes) <= 2
        index = stream.window_bytes // stream.row_bytes * 8
        assert all(size + index <= stream.window_bytes for size in sizes)
        if world_size == 1:  # the stated size is the real one
            assert {size + index for size in sizes} == {stream.window_bytes}


def test_memory_that_is_not_used_again_is_noticed(
    made_store: Callable[[int, int], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Buffers, "give", lambda *_: None)
    with pytest.raises(AssertionError):
        test_two_windows_and_no_more(made_store, monkeypatch, 8, 1)


def test_batches_do_not_share_memory_with_windows(made_store: Callable[[int, int], Made]) -> None:
    """The memory of a window is used again: a batch that is kept must not change."""
    made = made_store(100, 32)
    stream = made.store.stream(7, views="all", window=8)
    kept = list(stream)
    before = [bits(batch) for batch in kept]
    list(stream)
    assert [bits(batch) for batch in kept] == before
    for batch in kept:
        assert_belongs(made, batch)


def test_two_iterations_at_once_do_not_disturb_each_other(made_store: Callable[[int, int], Made]) -> None:
    made = made_store(100, 32)
    stream = made.store.stream(7, views=0, window=8)
    stream.set_epoch(0)
    wanted = [bits(batch) for batch in stream]
    found = list(zip(map(bits, stream), map(bits, stream), strict=True))
    assert found == [(batch, batch) for batch in wanted]


# Strata


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Any]:
    """Draw arguments for a stream of strata of a store of 100 rows."""
    border = draw(st.integers(1, 99))
    return {
        "strata": [list(range(border)), list(range(border, 100))],
        "shares": draw(st.sampled_from([None, [0.5, 0.5], [1, 3]])),
        "batch_size": draw(st.integers(4, 30)),
        "window": draw(st.none() | st.integers(1, 100)),
        "views": draw(st.sampled_from(["all", "cycle", 1])),
        "seed": draw(st.integers(0, 2)),
    }


@settings(max_examples=settings.default.max_examples // 3)  # reading takes longer than counting
@given(case=mixtures(), world_size=st.integers(1, 3), stop=st.floats(0, 1))
def test_strata_and_shares_hold_in_every_batch(
    made_store: Callable[[int, int], Made], case: dict[str, Any], world_size: int, stop: float
) -> None:
    """Also after an interruption, from the state of one rank; every row of the longest stratum comes."""
    made = made_store(100, 32)
    border = len(case["strata"][0])
    shares = case["shares"] or [1, 1]
    batches: list[Batch] = []

    def checked(batch: Batch) -> Batch:
        special = int((batch.rows < border).sum())
        assert len(batch) == case["batch_size"]
        assert (batch.rows[:special] < border).all()
        assert abs(special - len(batch) * shares[0] / sum(shares)) < 1
        assert_belongs(made, batch)
        return batch

    ranks = streams(made, world_size, **case)
    done = round(len(ranks[0]) * stop)
    iterators = [iter(stream) for stream in ranks]
    for iterator in iterators:
        batches += [checked(next(iterator)) for _ in range(done)]
    states = [stream.state_dict() for stream in ranks]
    assert all(state == states[0] for state in states)
    tails = [[bits(batch) for batch in iterator] for iterator in iterators]
    if done < len(ranks[0]):
        for stream, tail in zip(streams(made, world_size, **case), tails, strict=True):
            stream.load_state_dict(json.loads(json.dumps(states[0])))
            rest = [checked(batch) for batch in stream]
            assert [bits(batch) for batch in rest] == tail
            batches += rest
    seen = Counter(items(batches))
    views = {"all": range(VIEWS), "cycle": [0], 1: [1]}[case["views"]]
    first, second = (
        [seen[view, row] for view in views for row in rows] for rows in (range(border), range(border, 100))
    )
    assert max(first) - min(first) <= 1
    assert max(second) - min(second) <= 1
    assert min(first if len(first) / shares[0] >= len(second) / shares[1] else second) >= 1


def test_a_stratum_that_fits_into_its_window_is_read_once(
    made_store: Callable[[int, int], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_store(100, 32)
    stream = made.store.stream(8, strata=[[1, 40, 70], range(100)], views=0, window=32)
    asked: Counter[int] = Counter()
    read = CaptureReader.read_stored_into

    def counted(self: CaptureReader, array: str, rows: Any, *others: Any) -> None:
        asked[len(rows)] += 1
        read(self, array, rows, *others)

    monkeypatch.setattr(CaptureReader, "read_stored_into", counted)
    visits = Counter(row for batch in stream for row in batch.rows[:4].tolist())
    assert set(visits) == {1, 40, 70}
    assert sum(visits.values()) == 100
    assert asked[1] == 2 * 3  # two teachers, three runs; thirty-four repetitions


# Inputs from a transfer set, and augmented ones


class Examples:
    """A transfer set that records the examples it is asked for."""

    def __init__(self, inputs: NDArray[Any], label: int = -1) -> None:
        self.inputs, self.label = inputs, label
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
        self.asked.append(index)
        return self.inputs[index], self.label


@pytest.fixture
def augmented(tmp_path: Path) -> Made:
    """Make a store without inputs, of a teacher that saw augmented ones from view 1 on."""
    teachers = {"wide": Teacher(views=3, augmented=True), "plain": Teacher(views=3)}
    return stores.make(tmp_path / "augmented.zarr", teachers=teachers, store_inputs=False, names=False)


def test_inputs_come_from_the_transfer_set(made_store: Callable[[int, int], Made]) -> None:
    made = made_store(37, 8)
    examples = Examples(made.inputs)
    for batch in made.store.stream(batch_size=8, transfer_set=examples):
        assert_belongs(made, batch)
    # The first was asked for its shape beforehand.
    assert sorted(examples.asked) == [0, *range(37)]


def test_a_changed_row_is_named(made_store: Callable[[int, int], Made]) -> None:
    made = made_store(37, 8)
    inputs = made.inputs.copy()
    inputs[21, 0, 0] ^= 1
    wanted = int(made.store.samples.digests[21])
    with pytest.raises(RowMismatch) as caught:
        list(made.store.stream(batch_size=8, transfer_set=Examples(inputs)))
    message = str(caught.value)
    assert message.startswith(
        f"row 21 (index 21 of the transfer set): expected the input that the teacher saw, digest {wanted:016x}, found "
    )
    assert message.endswith(
        "from the transfer set; use the transfer set and the augmentation that the store was made from"
    )


def test_another_order_or_dtype_is_noticed(made_store: Callable[[int, int], Made]) -> None:
    made = made_store(37, 8)
    for inputs in (made.inputs[::-1], made.inputs.astype(np.int64), made.inputs.reshape(37, 6)):
        with pytest.raises(RowMismatch, match=r"row \d+ \(index"):
            list(made.store.stream(batch_size=8, transfer_set=Examples(inputs)))


def test_augmented_inputs_are_replayed_and_checked(augmented: Made) -> None:
    stream = augmented.store.stream(
        batch_size=8,
        teachers=["wide"],
        views="all",
        transfer_set=Examples(augmented.inputs),
        augment=stores.augment,
    )
    seen = []
    for batch in stream:
        seen += items([batch])
        assert batch.inputs is not None
        for value, view, row in zip(batch.inputs, batch.views, batch.rows, strict=True):
            rows = np.array([row])
            wanted = (
                augmented.inputs[rows]
                if view == 0
                else stores.augment(augmented.inputs[rows], int(view), rows)
            )
            assert np.array_equal(value, wanted[0])
    assert not flaws(seen, range(3), range(37))


def test_another_augmentation_is_noticed(augmented: Made) -> None:
    def other(inputs: NDArray[Any], view: int, rows: NDArray[np.int64]) -> NDArray[Any]:
        return stores.augment(inputs, view + (view == 2), rows)

    stream = augmented.store.stream(
        teachers=["wide"], views=2, transfer_set=Examples(augmented.inputs), augment=other
    )
    with pytest.raises(RowMismatch, match=r"from view 2, as `augment` makes it; use the transfer set"):
        list(stream)


def test_augmented_views_need_their_augmentation(augmented: Made) -> None:
    examples = Examples(augmented.inputs)
    with pytest.raises(ConfigError) as caught:
        augmented.store.stream(teachers=["wide"], transfer_set=examples)
    error = caught.value
    assert (error.where, error.found) == ("augment", "None")
    assert error.expected == "the function that made views [1, 2] of the inputs"
    assert error.remedy == "pass augment=…, or views=0, or inputs=False if you need no inputs"
    assert len(list(augmented.store.stream(teachers=["wide"], views=0, transfer_set=examples)))
    assert len(list(augmented.store.stream(teachers=["wide"], inputs=False)))


def test_an_augmentation_of_single_inputs_is_referred_to_replay(augmented: Made, sentence: Sentences) -> None:
    def darker(example: Any, generator: Any) -> Any:
        return example

    asked: dict[str, Any] = {"teachers": ["wide"], "transfer_set": Examples(augmented.inputs)}
    with pytest.raises(ConfigError) as caught:
        augmented.store.stream(**asked, augment=darker)
    sentence(caught.value)
    augmented.store.stream(**asked, augment=lambda *given: stores.augment(*given))  # negative control


def test_captures_of_other_augmentations_are_not_mixed(augmented: Made) -> None:
    with pytest.raises(
        SpecMismatch, match="teachers 'wide' and 'plain': expected captures of the same augmented"
    ):
        augmented.store.stream(views="all")
    with pytest.raises(SpecMismatch, match="stream them one at a time"):
        augmented.store.stream(views=1)
    (batch,) = augmented.store.stream(batch_size=37, views=0)  # both saw the rows as they are
    assert set(batch.logits) == {"wide", "plain"}


def test_a_single_view_is_not_mixed_either(tmp_path: Path) -> None:
    """One view, and one of the teachers saw it augmented: the same mistake, and the easier one to make."""
    made = stores.make(tmp_path / "store.zarr", teachers={"plain": Teacher()})
    augmentation = {**stores.AUGMENTATION, "first_view": 0}
    with made.store.capture("other", provenance={"augmentation": augmentation}) as capture:
        for rows in capture.missing_blocks():
            seen = np.arange(len(rows), dtype=np.uint64)
            capture.write(rows, made.logits["plain"][0, rows.start : rows.stop], seen=seen)
    with pytest.raises(SpecMismatch, match="captures of the same augmented inputs"):
        made.store.stream(inputs=False)


# Arguments and states that are wrong


WHOLE, VIEW = "an integer of at least 1", '"all", "cycle" or a view from 0 to 2'
ROWS, SHARES = "a slice, or ascending integers from 0 to 36", "2 positive numbers, one a stratum"
STRATA, DATA_SET = (
    "a list of two or more selections of rows",
    "a data set with a length and examples by number",
)
RANK = "0 to 1 (world_size 2)"
ARRAY = "an array of shape ({},) and dtype {}".format
REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "batch size 0": ({"batch_size": 0}, "batch_size", WHOLE, "0"),
    "no batch size": ({"batch_size": None}, "batch_size", WHOLE, "None"),
    "batch size True": ({"batch_size": True}, "batch_size", WHOLE, "True"),
    "window 0": ({"window": 0}, "window", WHOLE, "0"),
    "seed -1": ({"seed": -1}, "seed", "an integer of at least 0", "-1"),
    "seed 2**64": ({"seed": 2**64}, "seed", "less than 2**64", str(2**64)),
    "no seed": ({"seed": None}, "seed", "an integer of at least 0", "None"),
    "no world": ({"rank": 0, "world_size": 0}, "world_size", WHOLE, "0"),
    "a world without a rank": ({"world_size": 2}, "rank", "an integer, as world_size=2 is given", "None"),
    "a world of one without a rank": (
        {"world_size": 1},
        "rank",
        "an integer, as world_size=1 is given",
        "None",
    ),
    "rank 0 of no world": ({"rank": 0}, "world_size", "an integer, as rank=0 is given", "None"),
    "rank 1 of no world": ({"rank": 1}, "world_size", "an integer, as rank=1 is given", "None"),
    "rank 2 of 2": ({"rank": 2, "world_size": 2}, "rank", RANK, "2"),
    "rank -1": ({"rank": -1, "world_size": 2}, "rank", RANK, "-1"),
    "rank as text": ({"rank": "0", "world_size": 1}, "rank", "0 to 0 (world_size 1)", "'0'"),
    "shuffle as text": ({"shuffle": "no"}, "shuffle", "True or False", "'no'"),
    "drop_last 1": ({"drop_last": 1}, "drop_last", "True or False", "1"),
    "temperature as text": ({"temperature": "2"}, "temperature", "a finite number above 0", "'2'"),
    "view 3 of 3": ({"views": 3}, "views", VIEW, "3"),
    "views as another word": ({"views": "both"}, "views", VIEW, "'both'"),
    "views as an array": ({"views": np.array([0, 1])}, "views", VIEW, "array([0, 1])"),
    "rows descending": ({"rows": [3, 2]}, "rows", ROWS, "rows that go down"),
    "row 37 of 37": ({"rows": [1, 37]}, "rows", ROWS, "row 37"),
    "row -1": ({"rows": [-1, 3]}, "rows", ROWS, "row -1"),
    "rows as a mask": ({"rows": np.ones(37, bool)}, "rows", ROWS, ARRAY(37, "bool")),
    "rows of rows": ({"rows": [[1, 2], [3]]}, "rows", ROWS, "[[1, 2], [3]]"),
    "rows and strata": ({"strata": [[1], [2]], "rows": [1]}, "rows", "rows or strata", "both"),
    "one stratum": ({"strata": [[1, 2]]}, "strata", STRATA, "[[1, 2]]"),
    "strata as a number": ({"strata": 5}, "strata", STRATA, "5"),
    "a stratum of fractions": ({"strata": [[1], [1.5]]}, "strata[1]", ROWS, ARRAY(1, "float64")),
    "an empty stratum": ({"strata": [[1], []]}, "strata[1]", "1 row or more", "0"),
    "a stratum with row 40": ({"strata": [[1], [40]]}, "strata[1]", ROWS, "row 40"),
    "shares without strata": ({"shares": [1, 1]}, "shares", "strata", "None"),
    "too few shares": ({"strata": [[1], [2]], "shares": [1]}, "shares", SHARES, "[1]"),
    "a negative share": ({"strata": [[1], [2]], "shares": [1, -1]}, "shares", SHARES, "[1, -1]"),
    "shares that overflow": (
        {"strata": [[1], [2]], "shares": [1e308, 1e308]},
        "shares",
        SHARES,
        "[1e+308, 1e+308]",
    ),
    "shares as text": ({"strata": [[1], [2]], "shares": "ab"}, "shares", SHARES, "'ab'"),
    "a share None": ({"strata": [[1], [2]], "shares": [None, 1]}, "shares", SHARES, "[None, 1]"),
    "one number of shares": ({"strata": [[1], [2]], "shares": 0.5}, "shares", SHARES, "0.5"),
    "a stratum without a row": (
        {"strata": [[1], [2]], "shares": [1, 99], "batch_size": 8},
        "batch_size",
        "a row of each of 2 strata in every batch",
        "8, of which stratum 0 has 0.08",
    ),
    "teachers as a name": ({"teachers": "wide"}, "teachers", "a list of names", "'wide'"),
    "teachers as a number": ({"teachers": 5}, "teachers", "a list of names", "5"),
    "augment 5": ({"augment": 5}, "augment", "a function", "5"),
    "transfer set 5": ({"transfer_set": 5}, "transfer_set", DATA_SET, "int"),
    "a short transfer set": (
        {"transfer_set": [1, 2]},
        "transfer_set",
        "37 examples, as in the transfer set of the store",
        "2",
    ),
}
REMEDIES = {
    "a world without a rank": "pass rank=…, too, or leave out world_size",
    "rank 0 of no world": "pass world_size=…, too, or leave out rank",
    "rank -1": "pass the rank of this process",
    "views as another word": "choose a view that every teacher of this stream has",
    "row 37 of 37": "sort them, and leave out those that the store does not have",
    "rows as a mask": "pass np.flatnonzero(mask)",
    "one stratum": "use rows=…",
    "shares without strata": "pass strata=[…], too",
    "an empty stratum": "leave out the stratum",
    "teachers as a name": "pass ['wide']",
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused(made_store: Callable[[int, int], Made], case: str) -> None:
    """Without the checks of annotations, as for a user."""
    arguments, where, expected, found = REFUSED[case]
    with unchecked(), pytest.raises(ConfigError) as caught:
        made_store(37, 8).store.stream(**arguments)
    error = caught.value
    assert (error.where, error.expected, error.found) == (where, expected, found)
    assert error.remedy == REMEDIES.get(case, error.remedy)


def test_a_transfer_set_that_fails_is_named_with_the_example(made_store: Callable[[int, int], Made]) -> None:
    made = made_store(37, 8)

    class Torn(Examples):
        def __getitem__(self, index: int) -> tuple[NDArray[Any], int]:
            if index == 17:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    with pytest.raises(
        BadDataError, match=r"transfer set, example 17: expected an example, found OSError: image"
    ):
        list(made.store.stream(batch_size=8, transfer_set=Torn(made.inputs)))


def test_numbers_may_be_those_of_numpy(made_store: Callable[[int, int], Made]) -> None:
    with unchecked():
        stream = made_store(37, 8).store.stream(
            np.int64(5), rank=np.int64(0), world_size=np.int64(1), seed=np.uint8(0), views=np.int8(1)
        )
    assert [bits(b) for b in stream] == [bits(b) for b in made_store(37, 8).store.stream(5, views=1)]


def test_a_teacher_that_is_not_there_is_named(made_store: Callable[[int, int], Made]) -> None:
    with pytest.raises(
        PartNotFound, match=r"teachers/wdie: expected one of the sealed parts .* \(wide, deep\)"
    ):
        made_store(37, 8).store.stream(teachers=["wdie"])


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"seed": 2}, "seed"),
        ({"window": 8}, "window"),
        ({"shuffle": False}, "shuffle"),
        ({"views": 0}, "views"),
        ({"rows": slice(1, None)}, "rows"),
        ({"strata": [[1], [2]]}, "strata"),
    ],
)
def test_a_state_of_another_order_is_refused(
    made_store: Callable[[int, int], Made], other: dict[str, Any], key: str
) -> None:
    """Its positions would be those of other rows: some would come twice and others never."""
    stream = made_store(37, 8).store.stream(batch_size=5)
    next(iter(stream))
    state = stream.state_dict()
    with pytest.raises(
        ConfigError, match=f"state: {key}: expected .*make the stream with the store and the arg"
    ):
        made_store(37, 8).store.stream(batch_size=5, **other).load_state_dict(state)
    with pytest.raises(ConfigError, match="state: samples"):
        made_store(100, 32).store.stream(batch_size=5).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"state: samples: expected 'sha256:.*', found nothing"):
        stream.load_state_dict({})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", -1),
        ("epoch", "1"),
        ("left", None),
        ("left", []),
        ("left", [[[0, 38, 0]]]),
        ("left", [[[5, 3, 0]]]),
        ("left", [[[0, 9, 0], [8, 12, 0]]]),
        ("left", [[[0, 9, -2]]]),
        ("reached", [36]),
    ],
)
def test_a_state_that_was_changed_is_refused(
    made_store: Callable[[int, int], Made], key: str, value: Any
) -> None:
    stream = made_store(37, 8).store.stream(batch_size=5)
    before = stream.state_dict()
    with pytest.raises(ConfigError, match=r"state: (epoch|left|reached): expected .*; make the stream with"):
        stream.load_state_dict(before | {key: value})
    assert stream.state_dict() == before


def test_damage_stops_the_stream(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr", names=False)
    stores.flip(tmp_path / "store.zarr/teachers/deep/logits/c.1.2.0", 99)
    with pytest.raises(ShardCorrupt, match=r"c\.1\.2\.0 \(rows 16 to 23\), chunk 0: expected crc32c"):
        list(made.store.stream(views="all"))
    assert len(list(made.store.stream(views="all", teachers=["wide"])))


# Negative controls: streams with the bugs that streams have


def drop_a_row(batch: Batch) -> Batch:
    return Batch(batch.rows[1:], batch.views[1:], None, batch.labels[1:], {})


def repeat_a_row(batch: Batch) -> Batch:
    return dataclasses.replace(batch, rows=np.repeat(batch.rows[:1], len(batch)))


@pytest.mark.parametrize("mutate", [drop_a_row, repeat_a_row])
def test_a_stream_that_loses_or_repeats_rows_is_noticed(
    made_store: Callable[[int, int], Made], mutate: Callable[[Batch], Batch]
) -> None:
    batches = list(made_store(37, 8).store.stream(batch_size=5, views=0))
    assert not flaws(items(batches), [0], range(37))
    assert flaws(items([mutate(batches[0]), *batches[1:]]), [0], range(37))


@pytest.mark.parametrize("field", ["labels", "inputs", "logits"])
def test_a_stream_that_mixes_rows_up_is_noticed(made_store: Callable[[int, int], Made], field: str) -> None:
    made = made_store(37, 8)
    (batch,) = made.store.stream(batch_size=37, views=1)
    assert_belongs(made, batch)
    value = getattr(batch, field)
    rolled = (
        {n: np.roll(z, 1, axis=0) for n, z in value.items()}
        if field == "logits"
        else np.roll(value, 1, axis=0)
    )
    with pytest.raises(AssertionError):
        assert_belongs(made, dataclasses.replace(batch, **{field: rolled}))


def test_iterating_is_lazy(made_store: Callable[[int, int], Made]) -> None:
    """Making a stream and asking for its length reads no block."""
    made = made_store(37, 8)
    stream = made.store.stream(batch_size=5, transfer_set=Examples(made.inputs))
    iterator: Iterator[Batch] = iter(stream)
    assert len(stream) == 8
    assert stream.epoch_rows == 37
    iterator.close()  # type: ignore[attr-defined]


def test_memory_of_a_smaller_window_is_not_used_for_a_larger_one() -> None:
    """Windows differ by a run. Rows beyond the end of the memory would be clipped to its last, without an error."""
    buffers = Buffers([Field("rows", np.dtype(np.int64), (), lambda run, into: None)])
    small = buffers.take(4)
    buffers.give(small)
    large = buffers.take(8)
    assert len(large["rows"]) >= 8
    buffers.give(large)
    assert buffers.take(4)["rows"] is large["rows"]  # memory that is large enough is used again
