"""Laws of intervals, batches and strata: the rows that ranks take and the rows that remain are always the epoch.

They are integers alone: no store, no disk. A plan is interrupted and resumed with other batch sizes and ranks.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.orders import order_of

from logitstore.storage.checks import rows_by_share
from logitstore.storage.errors import ConfigError
from logitstore.storage.format.grid import Grid
from logitstore.storage.stream import intervals as intervals_module
from logitstore.storage.stream.batches import BatchCut, EpochPlan, RankPlan, Stratum, plan_epoch, plan_strata
from logitstore.storage.stream.intervals import Interval, Remainder
from logitstore.storage.stream.order import Order, RepeatedOrder, WindowedOrder


def draws_of(rank_plan: RankPlan, order: WindowedOrder, number: int) -> list[tuple[int, int]]:
    """Return the (draw, position) of every row of a batch, in its order."""
    found = []
    for part in rank_plan.batch(number):
        share = rank_plan.shares[part.share]
        first, _ = order.window_interval(share.window)
        draws = rank_plan.remainder.draws(share)[part.start : part.stop]
        positions = order.permutation(share.window)[draws]
        found += [
            (first + int(draw), first + int(position))
            for draw, position in zip(draws, positions, strict=True)
        ]
    return found


def members(remainder: Remainder, order: WindowedOrder) -> list[int]:
    """Return the positions of all rows that remain."""
    batches = BatchCut(remainder.total, 10**9, 1)
    rank_plan = RankPlan(remainder, batches, 0)
    return sorted(
        position for number in range(batches.count) for _, position in draws_of(rank_plan, order, number)
    )


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    """Draw arguments of `order_of`: few rows in many windows."""
    num_rows = draw(st.integers(1, 120))
    subset = draw(st.none() | st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=60).map(sorted))
    return {
        "num_rows": num_rows,
        "block_rows": 1 << draw(st.integers(0, 5)),
        "views": tuple(range(draw(st.integers(1, 2)))),
        "rows": subset,
        "window": draw(st.integers(1, 60)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 3)),
    }


Stop = tuple[int, int, bool, float]
"""Batch size, ranks, drop_last, and the part of the batches that they take before they stop."""
MANY = settings(max_examples=5 * settings.default.max_examples)
"""Of what is quick to try: 250 here, 5,000 in the deep run."""
stops = st.tuples(st.integers(1, 40), st.integers(1, 9), st.just(False), st.floats(0, 1))


def plan_of(order: Order, intervals: Sequence[Interval], stop: Stop) -> tuple[EpochPlan, int]:
    """Return the plan from there, and the number of batches taken of it."""
    batch_size, world_size, drop_last, part = stop
    plan = plan_epoch(order, intervals, batch_size, world_size, drop_last)
    return plan, round(plan.cut.count * part)


@MANY
@given(orders(), st.lists(stops, min_size=1, max_size=5))
def test_every_row_comes_once_whoever_resumes(epoch: dict[str, Any], several: list[Stop]) -> None:
    order = order_of(epoch)
    intervals: Sequence[Interval] = [Interval(0, len(order))]
    seen: Counter[int] = Counter()
    for stop in [*several, (*several[-1][:3], 1.0)]:
        plan, count = plan_of(order, intervals, stop)
        for rank in range(stop[1]):
            rows = [row for n in range(count) for row in draws_of(plan.rank(rank), order, n)]
            assert [draw for draw, _ in rows] == sorted(draw for draw, _ in rows)
            seen.update(position for _, position in rows)
        intervals = plan.after(count)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(intervals))
        assert set(members(Remainder(order, intervals), order)) == set(range(len(order))) - set(seen)
    assert intervals == []
    assert set(seen.values()) == {1}
    assert sorted(seen) == list(range(len(order)))


@MANY
@given(orders(), stops, st.data())
def test_the_remainder_gives_the_same_tail(epoch: dict[str, Any], stop: Stop, data: st.DataObject) -> None:
    order = order_of(epoch)
    plan, _ = plan_of(order, [Interval(0, len(order))], stop)
    batch_size, world_size, *_ = stop
    count = plan.cut.count
    done = data.draw(st.integers(0, count))
    rest = plan_epoch(order, plan.after(done), batch_size, world_size, False)
    assert rest.cut.count == count - done
    for rank in range(world_size):
        tail = [draws_of(plan.rank(rank), order, n) for n in range(done, count)]
        assert [draws_of(rest.rank(rank), order, n) for n in range(count - done)] == tail


@given(orders(), stops, st.integers(0, 200), st.integers(0, 200))
def test_cutting_is_slicing(epoch: dict[str, Any], stop: Stop, first: int, length: int) -> None:
    order = order_of(epoch)
    plan, count = plan_of(order, [Interval(0, len(order))], stop)
    remainder = Remainder(order, plan.after(count))
    everything = members(remainder, order)
    assert remainder.total == len(everything)
    # By positions: also where a part of a window was taken by draws.
    assert members(remainder.cut(first, first + length), order) == everything[first : first + length]


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 9), st.booleans())
def test_ranks_get_equally_many_batches_of_the_same_size(
    total: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    cut = BatchCut(total, batch_size, world_size, drop_last)
    stretches = [cut.rank_rows(rank) for rank in range(world_size)]
    assert [position for start, stop in stretches for position in range(start, stop)] == list(range(total))
    sizes = [stop - start for start, stop in stretches]
    assert max(sizes) - min(sizes) <= 1
    for rank, rows in enumerate(sizes):
        done = [cut.consumed(rank, n) for n in range(cut.count + 1)]
        batches = [b - a for a, b in itertools.pairwise(done)]
        assert all(0 <= batch <= batch_size for batch in batches)
        if drop_last:
            assert set(batches) <= {batch_size}
            assert min(sizes) - done[-1] < batch_size
        else:
            assert done[-1] == rows
            assert set(batches[:-2]) <= {batch_size}
            if total >= world_size and batch_size > 1:
                assert all(batches)


def test_ranks_share_a_run_at_most() -> None:
    """Two ranks both read the run in which the one ends and the other begins, not a window."""
    order = Order(Grid(100_003, 16_384), views=(0,), seed=1)
    for world_size in (2, 3, 4, 8, 13):
        plan = plan_epoch(order, [Interval(0, len(order))], 256, world_size, False)
        read = 0
        for rank in range(world_size):
            for share in plan.rank(rank).shares:
                position, _ = order.window_interval(share.window)
                for run in order.runs(share.window):
                    end = position + len(run.rows)
                    if any(part.start < end and part.stop > position for part in share.intervals):
                        read += len(run.rows)
                    position = end
        assert 100_003 <= read <= 100_003 + (world_size - 1) * 1024


# Strata


def orders_of(sizes: Sequence[int], window: int, seed: int) -> list[RepeatedOrder]:
    """Return orders of rows 0 … a - 1, of a … b - 1, and so on."""
    grid = Grid(sum(sizes), 4)
    ends = list(itertools.accumulate(sizes))

    def order(rows: NDArray[np.int64]) -> RepeatedOrder:
        return RepeatedOrder(
            lambda n: Order(grid, views=(0,), rows=rows, window=window, seed=seed, repetition=n)
        )

    return [order(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Any]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=4))
    return {
        "sizes": sizes,
        "shares": [draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])) for _ in sizes],
        "window": draw(st.integers(1, 50)),
        "seed": draw(st.integers(0, 2)),
    }


def begun(orders: Sequence[RepeatedOrder], shares: Sequence[float]) -> list[Stratum]:
    """Return strata at the beginning of an epoch."""
    return [
        Stratum(order, share, (Interval(0, order.period),), order.period)
        for order, share in zip(orders, shares, strict=True)
    ]


@given(mixtures(), st.integers(24, 60), st.integers(1, 4), st.data())
def test_strata_hold_in_every_batch_and_the_longest_is_gone_through(
    mixture: dict[str, Any], batch_size: int, world_size: int, data: st.DataObject
) -> None:
    orders = orders_of(mixture["sizes"], mixture["window"], mixture["seed"])
    shares = mixture["shares"]
    strata = begun(orders, shares)
    seen = [Counter[int]() for _ in orders]
    parts = data.draw(st.lists(st.floats(0, 1), max_size=2))
    worlds = {world_size}
    for part in [*parts, 1.0]:
        worlds.add(world_size)
        plans, reached = plan_strata(strata, batch_size, world_size, False)
        (count,) = {plan.cut.count for plan in plans}
        taken = round(count * part)
        for number in range(taken):
            for rank in range(world_size):
                rows = [len(draws_of(c.rank(rank), c.order, number)) for c in plans]
                assert rows == rows_by_share(batch_size, shares)
        for plan, counted in zip(plans, seen, strict=True):
            for rank, number in itertools.product(range(world_size), range(taken)):
                counted.update(position for _, position in draws_of(plan.rank(rank), plan.order, number))
        strata = [
            Stratum(order, share, tuple(plan.after(taken)), end)
            for order, share, plan, end in zip(orders, shares, plans, reached, strict=True)
        ]
        if part < 1 and data.draw(st.booleans()):
            world_size = data.draw(st.integers(1, 4))  # others resume; the same batches of a rank
    lasts = [size / share for size, share in zip(mixture["sizes"], shares, strict=True)]
    longest = lasts.index(max(lasts))
    for stratum, (counted, size) in enumerate(zip(seen, mixture["sizes"], strict=True)):
        assert set(counted.values()) <= {1}  # a position is a row of one repetition
        visits = Counter(position % size for position in counted)
        # Of an unbroken run of positions no row comes twice more than another. Ranks that others resume leave several.
        runs = sum(position - 1 not in counted for position in counted)
        assert runs == 1 or len(worlds) > 1
        assert max(visits.values()) - min(visits[row] for row in range(size)) <= runs
        if stratum == longest:
            assert min(visits[row] for row in range(size)) >= 1


@given(mixtures(), st.data())
def test_a_state_of_strata_gives_the_same_tail(mixture: dict[str, Any], data: st.DataObject) -> None:
    orders = orders_of(mixture["sizes"], mixture["window"], mixture["seed"])
    plans, reached = plan_strata(begun(orders, mixture["shares"]), 24, 2, False)
    count = plans[0].cut.count
    done = data.draw(st.integers(0, count))
    strata = [
        Stratum(order, share, tuple(plan.after(done)), end)
        for order, share, plan, end in zip(orders, mixture["shares"], plans, reached, strict=True)
    ]
    rest, _ = plan_strata(strata, 24, 2, False)
    for plan, other in zip(plans, rest, strict=True):
        assert other.cut.count == count - done
        for rank in (0, 1):
            tail = [draws_of(plan.rank(rank), plan.order, n) for n in range(done, count)]
            assert [draws_of(other.rank(rank), other.order, n) for n in range(count - done)] == tail


@given(st.integers(1, 1000), st.lists(st.floats(0.01, 10), min_size=1, max_size=5))
def test_shares_are_rounded_to_the_batch(batch_size: int, shares: list[float]) -> None:
    try:
        rows = rows_by_share(batch_size, shares)
    except ConfigError:
        assert min(batch_size * share / sum(shares) for share in shares) < 1
        return
    assert sum(rows) == batch_size
    assert all(abs(n - batch_size * share / sum(shares)) < 1 for n, share in zip(rows, shares, strict=True))


def test_a_stratum_without_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a row of each of 2 strata in every batch, found 4, of"):
        rows_by_share(4, [0.99, 0.01])


# Negative controls


def test_draws_that_are_forgotten_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that knows the windows that remain, but not the rows of one."""
    order = Order(Grid(64, 8), views=(0,), window=16, seed=1)

    def taken_twice() -> bool:
        plan = plan_epoch(order, [Interval(0, 64)], 5, 2, False)
        first = {
            position for rank in (0, 1) for n in (0, 1) for _, position in draws_of(plan.rank(rank), order, n)
        }
        return bool(first & set(members(Remainder(order, plan.after(2)), order)))

    assert not taken_twice()
    real = intervals_module.replace
    monkeypatch.setattr(
        intervals_module,
        "replace",
        lambda interval, **new: real(interval, **{k: v for k, v in new.items() if k != "first_draw"}),
    )
    assert taken_twice()


def test_rows_beyond_the_epoch_remain_for_the_next_one() -> None:
    """A stratum of which more rows remain than this epoch takes keeps the others."""

    def stratum(reached: int) -> Stratum:
        orders = RepeatedOrder(lambda repetition: Order(Grid(10, 4), views=(0,), repetition=repetition))
        return Stratum(orders, 1.0, (Interval(0, reached),), reached)

    plans, reached = plan_strata([stratum(10), stratum(30)], 4, 1, False)
    assert [plan.cut.total for plan in plans] == [10, 10] and reached == [10, 30]
    rest = Remainder(plans[1].order, plans[1].after(plans[1].cut.count))
    assert rest.total == 20
    assert plans[0].after(plans[0].cut.count) == []


def test_draws_that_were_taken_before_stay_taken() -> None:
    """Two ranks had come to different draws of one window; the rows of the faster one do not come again."""
    order = Order(Grid(16, 16), views=(0,), window=16, seed=1)
    remainder = Remainder(order, [Interval(0, 8, first_draw=12), Interval(8, 16, first_draw=2)])
    there = members(remainder, order)
    for taken in range(1, remainder.total):
        rest = members(remainder.after(taken), order)
        assert len(rest) == remainder.total - taken
        assert set(rest) <= set(there)
