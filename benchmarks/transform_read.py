"""Speed of reading a capture in the transform encoding, of one core.

The logits are of a linear head with 132 features and 964 classes, as Omniglot's teacher has them: features fall off as a
power of their number, and rows of noise, one in a thousand, are stored whole. Rows/s, medians of five rounds in turn:

1. Codes to a tensor: `TorchStream` of `decode=False`, shuffled batches of 256.
2. Dense rows: the same stream, decoded to float32.
3. `read` of blocks, and the same blocks of a float16 capture of the same logits beside it.
4. Codes and dense rows of a store in which one row in ten is stored whole: the cost of rows unlike the calibration.

The process is bound to one core, and products have one thread. Each decoded batch of the first epoch is compared with the
formula in float64.

Alone: python benchmarks/transform_read.py [--rows 65536] [--json docs/figures/transform_read.json]
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from encoding import bar
from figures import write_figures
from numpy.typing import NDArray
from timing import seconds

import logitstore
from logitstore.pipeline import TorchStream
from logitstore.storage.encodings.products import one_thread
from logitstore.storage.encodings.refine import ESCAPED

FEATURES, CLASSES, BATCH, ROWS = 132, 964, 256, 65_536
MAX_KL, DECAY, ROUNDS = 1e-2, 0.7, 5
BLOCK_ROWS = 16_384
"""Rows of a block in a store of a million rows."""
CODES_BAR, DENSE_BAR = 1_000_000, 150_000
NOISE = {"rare": 1000, "often": 10}
"""One row in so many is noise, by teacher."""


class Head:
    """A linear head, whose features have a realistic spectrum."""

    def __init__(self) -> None:
        """Draw the weights."""
        random = np.random.default_rng(0)
        spectrum = np.arange(1, FEATURES + 1, dtype=np.float32) ** -DECAY
        self._weights = random.standard_normal((FEATURES, CLASSES), dtype=np.float32) * spectrum[:, None]
        self._bias = random.standard_normal(CLASSES, dtype=np.float32)

    def logits(self, rows: range, noise: int = 0) -> NDArray[np.float32]:
        """Return the logits of some rows; with `noise`, one in so many is noise."""
        random = np.random.default_rng(rows.start)
        features = np.maximum(random.standard_normal((len(rows), FEATURES), dtype=np.float32), 0)
        logits: NDArray[np.float32] = 4 * features @ self._weights + self._bias
        if noise:
            logits[::noise] = 8 * random.standard_normal((len(range(0, len(rows), noise)), CLASSES))
        return logits


def make_store(path: Path, rows: int) -> logitstore.Store:
    """Make a store with a capture for each share of noise, and one in float16."""
    head = Head()
    calibration = head.logits(range(1 << 40, (1 << 40) + 2048))
    store = logitstore.create_store(
        path, num_classes=CLASSES, digests=np.zeros(rows, np.uint64), block_rows=BLOCK_ROWS
    )
    encoding = {"transform": {"max_kl": MAX_KL}}
    for name, noise in NOISE.items():
        with store.capture(name, provenance={}, encoding=encoding, calibration=calibration) as capture:
            for block in capture.missing_blocks():
                capture.write(block, head.logits(block, noise))
    with store.capture("float16", provenance={}) as capture:
        for block in capture.missing_blocks():
            capture.write(block, head.logits(block, NOISE["rare"]))
    return logitstore.open_store(path)


@contextmanager
def one_core() -> Iterator[None]:
    """Bind this process to one core, with one thread of each BLAS."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if before:
            os.sched_setaffinity(0, {min(before)})
        with one_thread:
            yield
    finally:
        torch.set_num_threads(threads)
        if before:
            os.sched_setaffinity(0, before)


def by_formula(store: logitstore.Store, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Decode rows that are not stored whole by the formula of the format page, in float64."""
    capture = store.teachers[name]
    order = np.argsort(rows)
    codes, refine = (capture.reader.read(array, rows[order]) for array in ("codes", "refine"))
    basis, centre, step = (capture.part.small(array) for array in ("basis", "centre", "step"))
    signed = np.where(codes % 2 == 0, codes // 2, -(codes.astype(np.int64) + 1) // 2)
    steps = step.astype(np.float64) * 2.0 ** (-refine.astype(np.float64)[:, None] / 2)
    decoded = (signed * steps) @ basis.astype(np.float64) + centre
    decoded -= decoded.max(axis=1, keepdims=True)
    decoded[refine == ESCAPED] = np.nan
    result = np.empty_like(decoded)
    result[order] = decoded
    return result


def check(store: logitstore.Store, name: str) -> None:
    """Assert that the stream gives the formula's rows: a fast wrong answer is worthless."""
    for batch in TorchStream(store.stream(BATCH, teachers=[name], rows=slice(0, 8 * BATCH))):
        found, expected = batch.teacher_logits()[name].numpy(), by_formula(store, name, batch.rows.numpy())
        told = ~np.isnan(expected[:, 0])
        assert told.any()
        np.testing.assert_allclose(found[told], expected[told], atol=1e-4)


def ways(store: logitstore.Store) -> Mapping[str, Callable[[], None]]:
    """Return what is measured, each a function that reads every row once."""

    def epoch(name: str, decode: bool) -> Callable[[], None]:
        stream = TorchStream(store.stream(BATCH, teachers=[name], seed=0, decode=decode))

        def read() -> None:
            assert sum(len(batch) for batch in stream) == store.num_rows

        return read

    def blocks(name: str) -> Callable[[], None]:
        def read() -> None:
            for first in range(0, store.num_rows, 4096):
                store.teachers[name].read(slice(first, first + 4096))

        return read

    return {
        "codes": epoch("rare", False),
        "dense": epoch("rare", True),
        "read": blocks("rare"),
        "read float16": blocks("float16"),
        "codes, a tenth whole": epoch("often", False),
        "dense, a tenth whole": epoch("often", True),
    }


def rates(store: logitstore.Store) -> dict[str, float]:
    """Return rows/s of each way: medians of rounds, all ways in turn."""
    chosen = ways(store)
    for read in chosen.values():
        read()  # opens files, and is not counted
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(ROUNDS):
        for name, read in chosen.items():
            times[name].append(seconds(read))
    return {name: store.num_rows / median(of_way) for name, of_way in times.items()}


def main(rows: int = ROWS, json: Path | None = None) -> None:
    """Print the table. json: a file for its figures."""
    print(f"transform, reading: {rows:,} rows of {CLASSES} classes, {FEATURES} features, one core")
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store.zarr", rows)
        with one_core():
            for name in NOISE:
                check(store, name)
            found = rates(store)
        components = store.teachers["rare"].part.layouts["codes"].row_shape[0]
        whole = {
            name: float((store.teachers[name].reader.read("refine", slice(None)) == ESCAPED).mean())
            for name in NOISE
        }
    bars = {"codes": CODES_BAR, "dense": DENSE_BAR}
    shares = ", ".join(f"{share:.2%}" for share in whole.values())
    print(f"  {components} components; rows stored whole: {shares}")
    for name, rate in found.items():
        if name in bars:
            bar(f"{name}, rows/s", f"{rate:,.0f}", f">= {bars[name]:,}", rate >= bars[name])
        else:
            print(f"  {'':8s}{f'{name}, rows/s':122s} {rate:14,.0f}")
    if json is not None:
        about = (
            f"{rows:,} rows of {CLASSES} classes, {components} components, budget {MAX_KL:g}; rows stored whole: {shares}; "
            f"one core, medians of {ROUNDS}"
        )
        table = [{"way": name, "rate": rate} for name, rate in found.items()]
        write_figures(json, about, {"rate": "rows/s"}, table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the store")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    main(arguments.rows, arguments.json)
