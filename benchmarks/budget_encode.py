"""Speed of encoding by error budget, against its definition: the error of a row at one temperature after another.

Rows of generated logits, in memory, in blocks as a capture passes them. Seconds are CPU seconds of one thread, both ways in
turn. Codes must be the same, and errors within one step of float16.

Alone: OMP_NUM_THREADS=1 python benchmarks/budget_encode.py
"""

import time
from collections.abc import Callable

import numpy as np
from encoding import bar
from numpy.typing import NDArray
from real_logits import synthetic_logits
from timing import compare

from logitstore.storage.encodings import error_budget
from logitstore.storage.encodings.divergence import Pair, divergence, error_of_kl
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.products import one_thread
from logitstore.storage.format.constants import TEMPERATURES

ROWS, BLOCK, PIECE = 8192, 1024, 32
LEAST = 80_000
"""Rows a second, 1000 classes, one core."""
TWICE = 2.0


def one_by_one(num_rows: int, num_classes: int, pair: Pair) -> NDArray[np.float16]:
    """Measure the error of rows by definition, some that fit into a core's cache at a time."""
    errors = [np.empty((0, len(TEMPERATURES)), np.float16)]
    for start in range(0, num_rows, PIECE):
        exact, decoded = pair(slice(start, min(start + PIECE, num_rows)))
        errors.append(error_of_kl([divergence(exact, decoded, t) for t in TEMPERATURES]))
    return np.concatenate(errors)


def encoded(encoding: ErrorBudget, logits: NDArray[np.float32]) -> list[dict[str, NDArray[np.generic]]]:
    """Encode rows block by block."""
    return [
        encoding.encode(logits[row : row + BLOCK], row, "benchmark") for row in range(0, len(logits), BLOCK)
    ]


def by_definition(function: Callable[[], object]) -> object:
    """Call a function with errors measured by definition."""
    fast = error_budget.logit_error
    error_budget.logit_error = one_by_one
    try:
        return function()
    finally:
        error_budget.logit_error = fast


def main() -> None:
    """Print the table."""
    logits = synthetic_logits()[:ROWS]
    print(
        f"encoding by error budget: {len(logits):,} rows of {logits.shape[1]:,} classes, CPU seconds of one thread"
    )
    for max_kl, min_temperature in ((1e-2, 1.0), (1e-3, 1.0), (1e-2, 4.0)):
        encoding = ErrorBudget(max_kl, min_temperature)

        def fast(encoding: ErrorBudget = encoding) -> object:
            return encoded(encoding, logits)

        with one_thread:
            for new, old in zip(fast(), by_definition(fast), strict=True):
                assert np.array_equal(new["logits"], old["logits"])
                steps = new["error"].view(np.int16) - old["error"].view(np.int16)
                assert np.abs(steps).max() <= 1
            found = compare(lambda: by_definition(fast), fast, clock=time.process_time)
        about = f"max_kl {max_kl:g}" + (f" at T = {min_temperature:g}" if min_temperature > 1 else "")
        spread = f"{found.low:.2f} … {found.high:.2f}"
        bar(
            f"rows/s, {about} / by definition ({spread})",
            f"{found.ratio:.2f}",
            f">= {TWICE:g}",
            found.ratio >= TWICE,
        )
        rate = len(logits) / found.theirs
        bar(f"rows a CPU second, {about}", f"{rate:,.0f}", f">= {LEAST:,}", rate >= LEAST)


if __name__ == "__main__":
    main()
