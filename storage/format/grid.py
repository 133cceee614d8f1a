"""The grid of a store: rows cut into blocks, and blocks into chunks. Integers in, integers out.

    rows      0                    R                   2R            N
              ├──────── block 0 ───┼──────── block 1 ──┼── block 2 ──┤     a shard of each array
              ├─ run ─┼─ run ─┼ …                                          what a stream reads at once
              ├┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼                                           inner chunks

`R` is one length for the whole store. A stream permutes *runs* of chunks. A run holds whole inner chunks of every
array, so that nothing is read twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass

MIB = 1 << 20
SHARD_BYTES = 32 * MIB
"""Most bytes of the widest row's shard, before the codec."""
CHUNK_BYTES = 2 * MIB
"""Most bytes of an inner chunk, before the codec (unless a single row is wider)."""
MAX_BLOCK_ROWS = 65_536
MIN_BLOCK_ROWS = 1024
"""Rows a block of a small store, however few blocks that makes."""


def floor_power_of_two(value: int) -> int:
    """Return the largest power of two that is at most `value`, and at least 1.

    >>> [floor_power_of_two(n) for n in (0, 1, 7, 8, 1000)]
    [1, 1, 4, 8, 512]
    """
    return 1 << (max(1, value).bit_length() - 1)


def plan_block_rows(num_rows: int, row_bytes: int) -> int:
    """Return R, the rows a block, for `num_rows` rows of which the widest array takes `row_bytes` bytes each.

    >>> plan_block_rows(60_000, 784)            # MNIST: a sixty-fourth of the rows, but 1024 at least
    1024
    >>> plan_block_rows(1_281_167, 2000)        # ImageNet, float16 x 1000: 32 MiB shards
    16384
    >>> plan_block_rows(10_000_000, 20)         # ten classes: the most rows a block may have
    65536
    >>> plan_block_rows(1_000_000, 300_000)     # a vocabulary of 150,000 in float16
    64
    """
    by_bytes = floor_power_of_two(SHARD_BYTES // row_bytes)
    by_rows = floor_power_of_two(max(MIN_BLOCK_ROWS, num_rows // 64))
    return min(by_bytes, by_rows, MAX_BLOCK_ROWS)


def run_rows(block_rows: int) -> int:
    """Return the rows of a run of chunks: a sixteenth of a block, but at least 1024 or the whole block.

    >>> [run_rows(r) for r in (64, 1024, 2048, 16_384, 65_536)]
    [64, 1024, 1024, 1024, 4096]
    """
    return max(block_rows // 16, min(block_rows, 1024))


def plan_chunk_rows(block_rows: int, row_bytes: int) -> int:
    """Return the rows of an inner chunk, of an array whose rows take `row_bytes` bytes.

    >>> plan_chunk_rows(16_384, 2000), plan_chunk_rows(16_384, 3072), plan_chunk_rows(16_384, 4)
    (1024, 512, 1024)
    """
    return min(floor_power_of_two(CHUNK_BYTES // max(1, row_bytes)), run_rows(block_rows))


@dataclass(frozen=True)
class Grid:
    """The blocks of a store.

    >>> grid = Grid(num_rows=2500, block_rows=1024)
    >>> grid.num_blocks, grid.rows(2), grid.num_runs
    (3, range(2048, 2500), 3)
    """

    num_rows: int
    """Rows of the store, N."""
    block_rows: int
    """Rows a block, R; the last block may hold fewer."""

    @property
    def num_blocks(self) -> int:
        """Blocks of one view."""
        return -(-self.num_rows // self.block_rows)

    @property
    def run_rows(self) -> int:
        """Rows in a run of chunks; the last run of the store may hold fewer."""
        return run_rows(self.block_rows)

    @property
    def num_runs(self) -> int:
        """Runs of one view."""
        return -(-self.num_rows // self.run_rows)

    def rows(self, block: int) -> range:
        """Return the rows of `block`."""
        return range(block * self.block_rows, min((block + 1) * self.block_rows, self.num_rows))

    def split(self, start: int, stop: int) -> Iterator[tuple[int, range]]:
        """Split the rows start…stop at the borders of blocks; yield (block, rows) in order.

        >>> list(Grid(2500, 1024).split(1000, 2100))
        [(0, range(1000, 1024)), (1, range(1024, 2048)), (2, range(2048, 2100))]
        """
        while start < stop:
            block = start // self.block_rows
            end = min(stop, (block + 1) * self.block_rows)
            yield block, range(start, end)
            start = end
