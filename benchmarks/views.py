"""Cost of a view of a row.

Stage one and streams make shifted views (the paper's two pixels) of a whole block of rows. The yardstick is a
generator and a call for each row, which is still the way to make any single row. Both must give the same
bytes. Beside it stands a copy of the block, the least possible cost of a view.

Alone, with fewer rows: python benchmarks/views.py [rows]
"""

import sys

import numpy as np
from numpy.typing import NDArray
from timing import Comparison, compare

from logitstore.pipeline.augment import Augmentation, augment_rows, row_generator, shift

ROWS, ROUNDS, SEED, VIEW = 8192, 5, 7, 1
SHAPES = ((28, 28), (3, 32, 32))


def one_by_one(
    inputs: NDArray[np.uint8], augmentation: Augmentation, rows: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Augment each row with a generator of its own."""
    views = np.empty_like(inputs)
    for place, row in enumerate(rows.tolist()):
        views[place] = augmentation(inputs[place].copy(), row_generator(SEED, VIEW, row))
    return views


def show(what: str, found: Comparison, rows: int) -> None:
    """Print a ratio with the microseconds of both sides."""
    spread = f"{found.low:.2f} … {found.high:.2f}"
    micros = f"{1e6 * found.ours / rows:.2f} and {1e6 * found.theirs / rows:.2f} µs a row"
    print(f"  {what + f' ({spread}; {micros})':132s} {found.ratio:14.2f}", flush=True)


def measure(inputs: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
    """Time the ways to make a view."""
    augmentation = shift(pixels=2)
    made = augment_rows(inputs, augmentation, SEED, VIEW, rows)
    assert np.array_equal(made, one_by_one(inputs, augmentation, rows))
    shape = " x ".join(map(str, inputs.shape[1:]))

    def block() -> None:
        augment_rows(inputs, augmentation, SEED, VIEW, rows)

    found = compare(lambda: one_by_one(inputs, augmentation, rows), block, ROUNDS)
    show(f"rows/s of shifted views, {shape}, a block at once / row by row", found, len(rows))
    found = compare(block, lambda: inputs.copy(), ROUNDS)
    show(f"seconds of shifted views, {shape}, a block at once / of a copy", found, len(rows))


def main(rows: int = ROWS) -> None:
    """Print the table."""
    print(f"views: blocks of {rows:,} rows, one thread; reported, without a bar")
    for shape in SHAPES:
        inputs = np.random.default_rng(0).integers(0, 256, (rows, *shape), dtype=np.uint8)
        measure(inputs, np.arange(1000, 1000 + rows, dtype=np.int64))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
