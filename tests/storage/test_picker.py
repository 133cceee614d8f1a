"""Batches that are picked together: the same rows as one by one, of one window, in memory of their own."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import stores, transform_stores
from support.stores import Made, Teacher
from support.transform_stores import Transformed

from logitstore.storage.errors import ShardCorrupt
from logitstore.storage.stream import picker, window
from logitstore.storage.stream.batch import Batch, TransformRows
from logitstore.storage.stream.picker import rows_together
from logitstore.storage.stream.stream import Stream
from logitstore.storage.stream.window import Window

ROWS, BLOCK_ROWS = 96, 8


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a store of twelve runs, of two views."""
    path = tmp_path_factory.mktemp("picker") / "store.zarr"
    return stores.make(
        path, rows=ROWS, block_rows=BLOCK_ROWS, teachers={"wide": Teacher(views=2)}, names=False
    )


@pytest.fixture(scope="module")
def transformed(tmp_path_factory: pytest.TempPathFactory) -> Transformed:
    """Make a store in the transform encoding, with escaped rows."""
    return transform_stores.make(tmp_path_factory.mktemp("transform") / "store.zarr")


def arrays(batch: Batch) -> Iterator[np.ndarray[Any, Any]]:
    """Yield every array of a batch."""
    yield from (batch.rows, batch.views, batch.labels)
    if batch.inputs is not None:
        yield batch.inputs
    for logits in batch.logits.values():
        if isinstance(logits, TransformRows):
            yield from (logits.codes, logits.refine, logits.escape)
        else:
            assert isinstance(logits, np.ndarray)
            yield logits


def bits(stream: Stream) -> list[list[bytes]]:
    """Return the bits of an epoch of a stream."""
    stream.set_epoch(0)
    return [[array.tobytes() for array in arrays(batch)] for batch in stream]


CASES: dict[str, dict[str, Any]] = {
    "whole epochs": {},
    "several windows": {"window": 24},
    "a rank": {"window": 24, "rank": 1, "world_size": 3},
    "the last batch left out": {"drop_last": True},
    "one row a batch": {"batch_size": 1},
    "two strata": {"strata": [range(30), range(30, ROWS)], "shares": [0.5, 0.5]},
    "as stored": {"shuffle": False, "decode": False},
}


@pytest.mark.parametrize("case", CASES)
def test_batches_are_the_same_however_many_are_picked_together(
    made: Made, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    settings: dict[str, Any] = {"batch_size": 7, "views": "all"} | CASES[case]
    together = bits(made.store.stream(**settings))
    for most, runs in ((0, 8), (10 * 400, 1), (1 << 20, 3)):
        monkeypatch.setattr(picker, "_TOGETHER_BYTES", most)
        monkeypatch.setattr(window, "_RUNS_TOGETHER", runs)
        assert bits(made.store.stream(**settings)) == together


def test_shares_of_several_processes_are_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = made.store.stream(7, views="all", window=24)
    together = [bits(stream.every(3, first=number)) for number in range(3)]
    whole = bits(stream)
    assert [batch for index in range(len(whole)) for batch in [together[index % 3][index // 3]]] == whole
    monkeypatch.setattr(picker, "_TOGETHER_BYTES", 0)
    assert [bits(stream.every(3, first=number)) for number in range(3)] == together


def test_an_epoch_resumes_between_batches_that_are_picked_together(made: Made) -> None:
    settings: dict[str, Any] = {"batch_size": 7, "window": 40, "seed": 1}
    whole = bits(made.store.stream(**settings))
    for taken in range(1, len(whole)):
        stream = made.store.stream(**settings)
        batches = iter(stream)
        for _ in range(taken):
            next(batches)
        rest = made.store.stream(**settings)
        rest.load_state_dict(stream.state_dict())
        assert [[array.tobytes() for array in arrays(batch)] for batch in rest] == whole[taken:]


def test_escaped_rows_come_with_their_batches(
    transformed: Transformed, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "batch_size": 16,
        "teachers": ["wide", "deep"],
        "inputs": False,
        "decode": False,
        "window": 64,
    }
    together = bits(transformed.store.stream(**settings))
    assert len({len(batch[-1]) for batch in together}) > 1  # batches differ in their escaped rows
    monkeypatch.setattr(picker, "_TOGETHER_BYTES", 0)
    assert bits(transformed.store.stream(**settings)) == together


def picks(made: Made, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[int]:
    """Return the rows of each copy out of a window, in an epoch."""
    copied: list[int] = []
    pick = Window.pick

    def counted(self: Window, start: int, stop: int, into: Any) -> None:
        copied.append(stop - start)
        pick(self, start, stop, into)

    with monkeypatch.context() as patched:
        patched.setattr(Window, "pick", counted)
        list(made.store.stream(**settings))
    return copied


def test_narrow_batches_are_picked_together_and_never_across_windows(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Windows of 40, 40 and 16 rows; batches 5 and 11 reach into the next.
    assert picks(made, monkeypatch, batch_size=7, window=40) == [35, 5, 2, 35, 3, 4, 12]
    monkeypatch.setattr(picker, "_TOGETHER_BYTES", 20 * made.store.stream(7).row_bytes)
    assert picks(made, monkeypatch, batch_size=7, window=40) == [14, 14, 7, 5, 2, 14, 14, 7, 3, 4, 12]
    monkeypatch.setattr(picker, "_TOGETHER_BYTES", 0)
    assert max(picks(made, monkeypatch, batch_size=7, window=40)) == 7


def test_no_batch_shares_memory_with_another(made: Made) -> None:
    batches = list(made.store.stream(7, window=40))
    for one, other in combinations(batches, 2):
        for mine, theirs in zip(arrays(one), arrays(other), strict=True):
            assert not np.shares_memory(mine, theirs)


def test_memory_counts_the_rows_that_are_picked_together(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    together = made.store.stream(7).memory_bytes
    monkeypatch.setattr(picker, "_TOGETHER_BYTES", 0)
    one_by_one = made.store.stream(7)
    assert together - one_by_one.memory_bytes == 2 * (ROWS - 7) * one_by_one.row_bytes
    assert rows_together(7, one_by_one.row_bytes) == 7


def test_the_first_error_of_a_window_stops_the_epoch(tmp_path: Path) -> None:
    hurt = stores.make(tmp_path / "s", rows=32, block_rows=8, teachers={"wide": Teacher()}, names=False)
    shard = hurt.path / "teachers/wide/logits/c.0.3.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    batches = iter(hurt.store.stream(4, shuffle=False, window=8))
    assert [batch.rows[0] for _, batch in zip(range(6), batches, strict=False)] == [0, 4, 8, 12, 16, 20]
    with pytest.raises(ShardCorrupt, match=r"c\.0\.3\.0"):
        next(batches)
