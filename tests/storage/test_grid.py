"""Blocks, runs and chunks: they tile the rows, within the limits of the page."""

from hypothesis import given
from hypothesis import strategies as st

from logitstore.storage.format.grid import (
    Grid,
    floor_power_of_two,
    plan_block_rows,
    plan_chunk_rows,
    run_rows,
)

POWERS = st.integers(0, 16).map(lambda n: 1 << n)


@given(st.integers(1, 10**9), st.integers(1, 1 << 30))
def test_the_blocks_are_as_large_as_the_design_allows(num_rows: int, row_bytes: int) -> None:
    rows = plan_block_rows(num_rows, row_bytes)

    def allowed(rows: int) -> bool:
        return rows * row_bytes <= 32 << 20 and rows <= 65_536 and rows <= max(1024, num_rows // 64)

    assert rows & (rows - 1) == 0
    assert rows == 1 or allowed(rows)
    assert not allowed(2 * rows)


@given(POWERS, st.integers(1, 1 << 24))
def test_runs_hold_whole_chunks_and_blocks_hold_whole_runs(block_rows: int, row_bytes: int) -> None:
    run, chunk = run_rows(block_rows), plan_chunk_rows(block_rows, row_bytes)
    assert run == max(block_rows // 16, min(block_rows, 1024))
    assert block_rows % run == 0 and run % chunk == 0
    assert chunk == 1 or chunk * row_bytes <= 2 << 20
    assert chunk == run or 2 * chunk * row_bytes > 2 << 20


@given(st.integers(1, 5000), POWERS)
def test_blocks_tile_the_rows(num_rows: int, block_rows: int) -> None:
    grid = Grid(num_rows, block_rows)
    ends = [0]
    for block in range(grid.num_blocks):
        rows = grid.rows(block)
        assert rows.start == ends[-1] and 0 < len(rows) <= block_rows
        ends.append(rows.stop)
    assert ends[-1] == num_rows
    assert (grid.num_runs - 1) * grid.run_rows < num_rows <= grid.num_runs * grid.run_rows


@given(st.integers(1, 5000), POWERS, st.data())
def test_splitting_is_at_the_borders_of_blocks(num_rows: int, block_rows: int, data: st.DataObject) -> None:
    grid = Grid(num_rows, block_rows)
    start = data.draw(st.integers(0, num_rows))
    stop = data.draw(st.integers(start, min(num_rows, start + 50 * block_rows)))
    pieces = list(grid.split(start, stop))
    assert [row for _, rows in pieces for row in rows] == list(range(start, stop))
    assert all(set(rows) <= set(grid.rows(block)) for block, rows in pieces)
    assert len({block for block, _ in pieces}) == len(pieces)


@given(st.integers(1, 1 << 70))
def test_floor_power_of_two(value: int) -> None:
    power = floor_power_of_two(value)
    assert power <= value < 2 * power
    assert power & (power - 1) == 0
