"""Pieces of an epoch: taken batches and the rest are always the epoch, whichever ranks resume it.

Pieces, batches, courses and strata as integers alone: no store, no disk. `Simulation` takes batches as a training run
would, and stops, and goes on with other batch sizes and ranks.
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
from logitstore.storage.stream import pieces as pieces_module
from logitstore.storage.stream.batches import Batches, Course, Stratum, Way, mixed_courses, whole_course
from logitstore.storage.stream.order import Laps, Order, Windows
from logitstore.storage.stream.pieces import Left, Piece


def turns_of(way: Way, order: Windows, number: int) -> list[tuple[int, int]]:
    """(turn, place) of every row of a batch, in its order."""
    found = []
    for part in way.batch(number):
        portion = way.portions[part.portion]
        first, _ = order.window_interval(portion.window)
        turns = way.left.turns(portion)[part.start : part.stop]
        places = order.permutation(portion.window)[turns]
        found += [(first + int(turn), first + int(place)) for turn, place in zip(turns, places, strict=True)]
    return found


def members(left: Left, order: Windows) -> list[int]:
    """The places of all rows that are left."""
    batches = Batches(left.total, 10**9, 1)
    way = Way(left, batches, 0)
    return sorted(place for number in range(batches.count) for _, place in turns_of(way, order, number))


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    """What `order_of` makes an order of few rows in many windows from."""
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
"""Batch size, ranks, drop_last, and which part of the batches they take before they stop."""
MANY = settings(max_examples=5 * settings.default.max_examples)
"""Of what is quick to try: 250 here, 5,000 in the deep run."""
stops = st.tuples(st.integers(1, 40), st.integers(1, 9), st.just(False), st.floats(0, 1))


def course_of(order: Order, pieces: Sequence[Piece], stop: Stop) -> tuple[Course, int]:
    """The course from there, and how many batches are taken of it."""
    batch_size, world_size, drop_last, part = stop
    course = whole_course(order, pieces, batch_size, world_size, drop_last)
    return course, round(course.batches.count * part)


@MANY
@given(orders(), st.lists(stops, min_size=1, max_size=5))
def test_every_row_comes_once_whoever_goes_on(epoch: dict[str, Any], several: list[Stop]) -> None:
    order = order_of(epoch)
    pieces: Sequence[Piece] = [Piece(0, len(order))]
    seen: Counter[int] = Counter()
    for stop in [*several, (*several[-1][:3], 1.0)]:
        course, count = course_of(order, pieces, stop)
        for rank in range(stop[1]):
            rows = [row for n in range(count) for row in turns_of(course.way(rank), order, n)]
            assert [turn for turn, _ in rows] == sorted(turn for turn, _ in rows)
            seen.update(place for _, place in rows)
        pieces = course.after(count)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(pieces))
        assert set(members(Left(order, pieces), order)) == set(range(len(order))) - set(seen)
    assert pieces == []
    assert set(seen.values()) == {1}
    assert sorted(seen) == list(range(len(order)))


@MANY
@given(orders(), stops, st.data())
def test_what_is_left_gives_the_same_tail(epoch: dict[str, Any], stop: Stop, data: st.DataObject) -> None:
    order = order_of(epoch)
    course, _ = course_of(order, [Piece(0, len(order))], stop)
    batch_size, world_size, *_ = stop
    count = course.batches.count
    done = data.draw(st.integers(0, count))
    rest = whole_course(order, course.after(done), batch_size, world_size, False)
    assert rest.batches.count == count - done
    for rank in range(world_size):
        tail = [turns_of(course.way(rank), order, n) for n in range(done, count)]
        assert [turns_of(rest.way(rank), order, n) for n in range(count - done)] == tail


@given(orders(), stops, st.integers(0, 200), st.integers(0, 200))
def test_cutting_is_slicing(epoch: dict[str, Any], stop: Stop, first: int, length: int) -> None:
    order = order_of(epoch)
    course, count = course_of(order, [Piece(0, len(order))], stop)
    left = Left(order, course.after(count))
    everything = members(left, order)
    assert left.total == len(everything)
    # By places: also where a part of a window was taken by turns.
    assert members(left.cut(first, first + length), order) == everything[first : first + length]


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 9), st.booleans())
def test_ranks_get_equally_many_batches_of_the_same_size(
    total: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    cut = Batches(total, batch_size, world_size, drop_last)
    stretches = [cut.stretch(rank) for rank in range(world_size)]
    assert [place for start, stop in stretches for place in range(start, stop)] == list(range(total))
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
    """What two ranks both read: not a window, but the run in which the one ends and the other begins."""
    order = Order(Grid(100_003, 16_384), views=(0,), seed=1)
    for world_size in (2, 3, 4, 8, 13):
        course = whole_course(order, [Piece(0, len(order))], 256, world_size, False)
        read = 0
        for rank in range(world_size):
            for portion in course.way(rank).portions:
                place, _ = order.window_interval(portion.window)
                for run in order.runs(portion.window):
                    end = place + len(run.rows)
                    if any(piece.start < end and piece.stop > place for piece in portion.pieces):
                        read += len(run.rows)
                    place = end
        assert 100_003 <= read <= 100_003 + (world_size - 1) * 1024


# Strata


def strata_of(sizes: Sequence[int], window: int, seed: int) -> list[Laps]:
    """Rows 0 … a - 1, then a … b - 1, and so on, as laps."""
    grid = Grid(sum(sizes), 4)
    ends = list(itertools.accumulate(sizes))

    def laps(rows: NDArray[np.int64]) -> Laps:
        return Laps(lambda lap: Order(grid, views=(0,), rows=rows, window=window, seed=seed, lap=lap))

    return [laps(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Any]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=4))
    return {
        "sizes": sizes,
        "shares": [draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])) for _ in sizes],
        "window": draw(st.integers(1, 50)),
        "seed": draw(st.integers(0, 2)),
    }


def begun(laps: Sequence[Laps], shares: Sequence[float]) -> list[Stratum]:
    """Strata at the beginning of an epoch."""
    return [
        Stratum(lap, share, (Piece(0, lap.lap_rows),), lap.lap_rows)
        for lap, share in zip(laps, shares, strict=True)
    ]


@given(mixtures(), st.integers(24, 60), st.integers(1, 4), st.data())
def test_strata_hold_in_every_batch_and_the_longest_is_gone_through(
    mixture: dict[str, Any], batch_size: int, world_size: int, data: st.DataObject
) -> None:
    laps = strata_of(mixture["sizes"], mixture["window"], mixture["seed"])
    shares = mixture["shares"]
    strata = begun(laps, shares)
    seen = [Counter[int]() for _ in laps]
    parts = data.draw(st.lists(st.floats(0, 1), max_size=2))
    worlds = {world_size}
    for part in [*parts, 1.0]:
        worlds.add(world_size)
        courses, reached = mixed_courses(strata, batch_size, world_size, False)
        (count,) = {course.batches.count for course in courses}
        taken = round(count * part)
        for number in range(taken):
            for rank in range(world_size):
                rows = [len(turns_of(c.way(rank), c.order, number)) for c in courses]
                assert rows == rows_by_share(batch_size, shares)
        for course, counted in zip(courses, seen, strict=True):
            for rank, number in itertools.product(range(world_size), range(taken)):
                counted.update(place for _, place in turns_of(course.way(rank), course.order, number))
        strata = [
            Stratum(lap, share, tuple(course.after(taken)), end)
            for lap, share, course, end in zip(laps, shares, courses, reached, strict=True)
        ]
        if part < 1 and data.draw(st.booleans()):
            world_size = data.draw(st.integers(1, 4))  # others go on; the same batches of a rank
    lasts = [size / share for size, share in zip(mixture["sizes"], shares, strict=True)]
    longest = lasts.index(max(lasts))
    for stratum, (counted, size) in enumerate(zip(seen, mixture["sizes"], strict=True)):
        assert set(counted.values()) <= {1}  # a place is a row of a lap
        visits = Counter(place % size for place in counted)
        # Of an unbroken run of places no row comes twice more than another. Ranks that others go on for leave several.
        runs = sum(place - 1 not in counted for place in counted)
        assert runs == 1 or len(worlds) > 1
        assert max(visits.values()) - min(visits[row] for row in range(size)) <= runs
        if stratum == longest:
            assert min(visits[row] for row in range(size)) >= 1


@given(mixtures(), st.data())
def test_a_state_of_strata_gives_the_same_tail(mixture: dict[str, Any], data: st.DataObject) -> None:
    laps = strata_of(mixture["sizes"], mixture["window"], mixture["seed"])
    courses, reached = mixed_courses(begun(laps, mixture["shares"]), 24, 2, False)
    count = courses[0].batches.count
    done = data.draw(st.integers(0, count))
    strata = [
        Stratum(lap, share, tuple(course.after(done)), end)
        for lap, share, course, end in zip(laps, mixture["shares"], courses, reached, strict=True)
    ]
    rest, _ = mixed_courses(strata, 24, 2, False)
    for course, other in zip(courses, rest, strict=True):
        assert other.batches.count == count - done
        for rank in (0, 1):
            tail = [turns_of(course.way(rank), course.order, n) for n in range(done, count)]
            assert [turns_of(other.way(rank), other.order, n) for n in range(count - done)] == tail


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


def test_turns_that_are_forgotten_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that says which windows are left, but not which rows of one."""
    order = Order(Grid(64, 8), views=(0,), window=16, seed=1)

    def taken_twice() -> bool:
        course = whole_course(order, [Piece(0, 64)], 5, 2, False)
        first = {
            place for rank in (0, 1) for n in (0, 1) for _, place in turns_of(course.way(rank), order, n)
        }
        return bool(first & set(members(Left(order, course.after(2)), order)))

    assert not taken_twice()
    real = pieces_module.replace
    monkeypatch.setattr(
        pieces_module,
        "replace",
        lambda piece, **new: real(piece, **{k: v for k, v in new.items() if k != "after"}),
    )
    assert taken_twice()
