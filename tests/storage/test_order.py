"""Laws of the order of an epoch: every row of every view exactly once.

They are integers alone: no store, no disk. `flaws` is the checker, which must catch mutants of the order.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.orders import Item, flaws, order_of

from logitstore.storage.format.grid import Grid
from logitstore.storage.random import philox_permutation
from logitstore.storage.stream.order import Order, RepeatedOrder


def positions(order: Order) -> list[Item]:
    """Return (view, row) of every draw of an epoch."""
    found: list[Item] = []
    for window in range(order.num_windows):
        laid_out = [(run.view, int(row)) for run in order.runs(window) for row in run.rows]
        found += [laid_out[place] for place in order.permutation(window)]
    return found


@st.composite
def epochs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw arguments of an `Order`, with small and with large blocks."""
    block_rows = 1 << draw(st.sampled_from([0, 1, 3, 5, 10, 11, 16]))
    most = 40 * block_rows if block_rows < 1024 else 70_000
    num_rows = draw(st.integers(1, max(2, min(most, 3000 if block_rows < 2048 else 70_000))))
    subset = draw(st.none() | st.lists(st.integers(0, num_rows - 1), max_size=30).map(sorted))
    views = tuple(draw(st.sets(st.integers(0, 5), min_size=1, max_size=3)))
    return {
        "num_rows": num_rows,
        "block_rows": block_rows,
        "views": views if num_rows < 5000 else views[:1],
        "rows": subset,
        "window": draw(st.none() | st.integers(1, num_rows + 3)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.sampled_from([0, 1, 7, 2**64 - 1])),
        "epoch": draw(st.integers(0, 3)),
    }


def rows_of(epoch: dict[str, Any]) -> Iterable[int]:
    return range(epoch["num_rows"]) if epoch["rows"] is None else epoch["rows"]


@given(epochs())
def test_every_row_of_every_view_exactly_once(epoch: dict[str, Any]) -> None:
    order = order_of(epoch)
    found = positions(order)
    assert len(found) == len(order) == len(list(rows_of(epoch))) * len(epoch["views"])
    assert not flaws(found, epoch["views"], rows_of(epoch))
    assert positions(order_of(epoch)) == found


@given(epochs())
def test_windows_tile_the_epoch(epoch: dict[str, Any]) -> None:
    order = order_of(epoch)
    intervals = [order.window_interval(window) for window in range(order.num_windows)]
    ends = [0, *(stop for _, stop in intervals)]
    assert [start for start, _ in intervals] == ends[:-1]
    assert ends[-1] == len(order)
    assert max((stop - start for start, stop in intervals), default=0) <= order.window_rows <= len(order)
    for window, (start, stop) in enumerate(intervals):
        assert start < stop
        assert order.window_at(start) == order.window_at(stop - 1) == window


@given(epochs())
def test_a_window_is_never_larger_than_asked_for_and_a_run(epoch: dict[str, Any]) -> None:
    if epoch["rows"] is not None or epoch["window"] is None:
        return
    run_rows = Grid(epoch["num_rows"], epoch["block_rows"]).run_rows
    assert order_of(epoch).window_rows < epoch["window"] + run_rows


@given(epochs())
def test_not_shuffled_is_as_stored(epoch: dict[str, Any]) -> None:
    wanted = [(view, int(row)) for view in epoch["views"] for row in rows_of(epoch)]
    assert positions(order_of(epoch, shuffle=False)) == wanted


def test_seeds_and_epochs_differ() -> None:
    epoch = {"num_rows": 200, "block_rows": 16, "views": (0,), "rows": None, "window": 64}
    orders = [
        positions(order_of(epoch, seed=seed, epoch=number)) for seed in (0, 1, 2**63) for number in range(4)
    ]
    assert len({tuple(order) for order in orders}) == len(orders)
    neighbours = [sum(b[1] == a[1] + 1 for a, b in itertools.pairwise(o)) for o in orders]
    assert max(neighbours) < 20  # of 199, where nothing is shuffled


def test_the_order_is_the_same_for_ever() -> None:
    """A checkpoint of today resumes tomorrow: NumPy keeps the raw stream of Philox fixed."""
    assert philox_permutation(8, seed=2**64 - 1, stream=3, counter=5).tolist() == [6, 7, 2, 0, 5, 4, 3, 1]
    order = Order(Grid(10, 2), views=(0, 1), window=6, seed=1, epoch=2)
    assert positions(order)[:6] == [(0, 0), (0, 1), (0, 9), (0, 8), (0, 4), (0, 5)]


def test_runs_of_neighbours_are_scattered_over_windows() -> None:
    """A window holds rows from all of the store, not from one region."""
    order = Order(Grid(64 * 16, 16), views=(0,), window=16 * 8, seed=3)
    for window in range(order.num_windows):
        starts = sorted(run.rows[0] for run in order.runs(window))
        assert starts[-1] - starts[0] > 300


# Repeated orders


@given(epochs(), st.integers(2, 4))
def test_laps_are_orders_one_after_another(epoch: dict[str, Any], count: int) -> None:
    if not list(rows_of(epoch)):
        return
    laps = RepeatedOrder(lambda lap: order_of(epoch, repetition=lap))
    place = 0
    found: list[list[Item]] = []
    for lap in range(count):
        items = []
        while place < (lap + 1) * laps.period:
            window = laps.window_at(place)
            start, stop = laps.window_interval(window)
            assert start == place < stop <= place + laps.window_rows
            laid_out = [(run.view, int(row)) for run in laps.runs(window) for row in run.rows]
            items += [laid_out[at] for at in laps.permutation(window)]
            if laps.repeats:
                assert laid_out == [(run.view, int(row)) for run in laps.runs(0) for row in run.rows]
            place = stop
        found.append(items)
        assert not flaws(items, epoch["views"], rows_of(epoch))
    assert found[0] == positions(order_of(epoch))


def test_each_lap_is_another_permutation() -> None:
    for window in (16, 64):  # several windows, and one that holds all
        epoch = {"num_rows": 50, "block_rows": 8, "views": (0,), "rows": None, "window": window}
        laps = [tuple(positions(order_of(epoch, repetition=lap))) for lap in range(4)]
        assert len(set(laps)) == 4


# Negative controls


def test_each_repetition_reads_its_runs_in_another_order() -> None:
    """A stratum that is passed over again has other neighbours, unless a window holds all of it."""

    def runs(repetition: int, window: int) -> list[int]:
        order = Order(Grid(240, 8), views=(0,), window=window, seed=3, repetition=repetition)
        return [int(run.rows[0]) for number in range(order.num_windows) for run in order.runs(number)]

    assert sorted(runs(0, 24)) == sorted(runs(1, 24))
    assert len({tuple(runs(repetition, 24)) for repetition in range(4)}) == 4
    assert len({tuple(runs(repetition, 240)) for repetition in range(4)}) == 1


def drop_a_row(items: list[Item]) -> list[Item]:
    return items[:-1]


def repeat_a_row(items: list[Item]) -> list[Item]:
    return [*items, items[0]]


def swap_a_row(items: list[Item]) -> list[Item]:
    return [*items[:-1], items[0]]


def swap_a_view(items: list[Item]) -> list[Item]:
    return [(1 - items[0][0], items[0][1]), *items[1:]]


@pytest.mark.parametrize("mutate", [drop_a_row, repeat_a_row, swap_a_row, swap_a_view])
def test_a_wrong_order_is_noticed(mutate: Callable[[list[Item]], list[Item]]) -> None:
    order = Order(Grid(37, 8), views=(0, 1), window=16, seed=1)
    assert not flaws(positions(order), (0, 1), range(37))
    assert flaws(mutate(positions(order)), (0, 1), range(37))


def test_a_wrong_permutation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random draws in place of a permutation: the bug that a shuffle usually has."""

    def draws(self: Order, window: int) -> NDArray[np.int64]:
        start, stop = self.window_interval(window)
        return np.random.default_rng(0).integers(0, stop - start, stop - start)

    monkeypatch.setattr(Order, "permutation", draws)
    assert flaws(positions(Order(Grid(37, 8), views=(0,), window=16)), (0,), range(37))
