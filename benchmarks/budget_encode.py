"""Speed of encoding by error budget, against its definition: the error of a row at one temperature after another.

Rows of generated logits, in memory, in blocks as a capture passes them. Seconds are CPU seconds of one thread, both ways in
turn. Codes must be the same, and errors within one step of float16.

Alone: OMP_NUM_THREADS=1 python benchmarks/budget_encode.py
"""

import time
from functools import partial
from typing import Any
from unittest import mock

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

Blocks = list[dict[str, NDArray[Any]]]
"""The arrays of each block."""


def one_by_one(shape: tuple[int, ...], pair: Pair) -> NDArray[np.float16]:
    """Measure the error of rows by definition, some that fit into a core's cache at a time."""
    errors = [np.empty((0, len(TEMPERATURES)), np.float16)]
    for start in range(0, shape[0], PIECE):
        exact, decoded = pair(slice(start, min(start + PIECE, shape[0])))
        errors.append(error_of_kl([divergence(exact, decoded, t) for t in TEMPERATURES]))
    return np.concatenate(errors)


def encoded(encoding: ErrorBudget, logits: NDArray[np.float32]) -> Blocks:
    """Encode rows block by block."""
    return [
        encoding.encode(logits[row : row + BLOCK], row, "benchmark") for row in range(0, len(logits), BLOCK)
    ]


def by_definition(encoding: ErrorBudget, logits: NDArray[np.float32]) -> Blocks:
    """Encode rows, their errors measured by definition."""
    with mock.patch.object(error_budget, "logit_error", one_by_one):
        return encoded(encoding, logits)


def check_same(encoding: ErrorBudget, logits: NDArray[np.float32]) -> None:
    """Assert that both ways give the same codes, and errors at most a step of float16 apart."""
    for new, old in zip(encoded(encoding, logits), by_definition(encoding, logits), strict=True):
        assert np.array_equal(new["logits"], old["logits"])
        assert np.abs(new["error"].view(np.int16) - old["error"].view(np.int16)).max() <= 1


def main() -> None:
    """Print the table."""
    logits = synthetic_logits(ROWS)
    print(
        f"encoding by error budget: {len(logits):,} rows of {logits.shape[1]:,} classes, CPU seconds of one thread"
    )
    for max_kl, min_temperature in ((1e-2, 1.0), (1e-3, 1.0), (1e-2, 4.0)):
        encoding = ErrorBudget(max_kl, min_temperature)
        slow, fast = partial(by_definition, encoding, logits), partial(encoded, encoding, logits)
        with one_thread:
            check_same(encoding, logits)
            found = compare(slow, fast, clock=time.process_time)
        about = f"max_kl {max_kl:g}" + (f" at T = {min_temperature:g}" if min_temperature > 1 else "")
        what = f"rows/s, {about} / by definition ({found.low:.2f} … {found.high:.2f})"
        bar(what, f"{found.ratio:.2f}", f">= {TWICE:g}", found.ratio >= TWICE)
        rate = len(logits) / found.theirs
        bar(f"rows a CPU second, {about}", f"{rate:,.0f}", f">= {LEAST:,}", rate >= LEAST)


if __name__ == "__main__":
    main()
