"""The transform encoding on real logits: bytes a row, rows beyond the budget, speed, and rows unlike the calibration.

Each store is written through the public writer. Bytes are those of its files, all arrays of a row but `seen`; the basis,
which a store has once, is told apart. KL(teacher ‖ stored) is computed in float64, apart from the product's own. Rates are
of one core, the median of five, and of two.

Alone: python benchmarks/transform.py [--data Omniglot] [--logits NAME=FILE.npy] [--json docs/figures/transform.json]
FILE.npy: float32 (rows, classes), as recogniser_rows.py and language_rows.py beside this script make them.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
from figures import write_figures
from numpy.typing import NDArray
from real_logits import mnist_logits, omniglot_logits, synthetic_logits
from rival_encodings import log_softmax
from timing import seconds

import logitstore
from logitstore.storage.api import Capture
from logitstore.storage.encodings import transform
from logitstore.storage.encodings.products import one_thread
from logitstore.storage.encodings.transform import Transform, escaped_alone
from logitstore.storage.random import philox_permutation

BUDGETS = (1e-1, 1e-2, 1e-3, 1e-4)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
REAL = {"Omniglot": omniglot_logits, "MNIST": mnist_logits}
CALIBRATION_ROWS = 2048
ROWS_AT_ONCE = 64
TIMED_ROWS, ROUNDS = 4096, 5
LEFT_OUT = ("seen", "classes", "basis", "centre", "step", "weight", "__logitstore__")
"""Folders of a capture that are no part of a row, and the digests that every capture has."""


def data(names: list[str], files: list[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and logits of each set that is there."""
    for name in names:
        if name == "synthetic":
            yield name, synthetic_logits()
            continue
        found = REAL[name]()
        if isinstance(found, str):
            print(f"  {found}")
        else:
            yield name, found.logits
    for file in files:
        name, _, path = file.partition("=")
        yield name, np.load(path).astype(np.float32)


def drawn(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw calibration rows."""
    rows = np.sort(philox_permutation(len(logits), 0, stream=0, counter=0)[:CALIBRATION_ROWS])
    sample: NDArray[np.float32] = logits[rows]
    return sample


def store_of(folder: Path, logits: NDArray[np.float32], encodings: Mapping[str, Any]) -> logitstore.Store:
    """Write the same logits in several encodings, those without a basis calibrated with a draw of them."""
    rows, classes = logits.shape
    store = logitstore.create_store(folder / "s.zarr", num_classes=classes, digests=np.zeros(rows, np.uint64))
    for name, encoding in encodings.items():
        with store.capture(name, provenance={}, encoding=encoding, calibration=drawn(logits)) as capture:
            for block in capture.missing_blocks():
                capture.write(block, logits[block.start : block.stop])
    return logitstore.open_store(store.path)


def row_bytes(store: logitstore.Store, name: str) -> dict[str, float]:
    """Return the bytes a row of each array, by name."""
    folders = [folder for folder in (Path(store.path) / "teachers" / name).iterdir() if folder.is_dir()]
    sizes = {
        folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in folders
    }
    return {array: size / store.num_rows for array, size in sizes.items()}


def whole_row(sizes: Mapping[str, float]) -> float:
    """Return the bytes of a row in all arrays that are its own."""
    return sum(size for array, size in sizes.items() if array not in LEFT_OUT)


def kl_of(capture: Capture, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute KL(softmax(logits/T) ‖ softmax(stored/T)) of every row in float64: (rows, temperatures)."""
    kl = np.empty((len(logits), len(TEMPERATURES)))
    for start in range(0, len(logits), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        decoded = capture.read(slice(start, min(start + ROWS_AT_ONCE, len(logits))), temperature=1.0)
        for column, temperature in enumerate(TEMPERATURES):
            log_p, log_q = log_softmax(logits[part], temperature), log_softmax(decoded, temperature)
            kl[part, column] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return kl


def show_sizes(name: str, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Print bytes and KL of both encodings at each budget."""
    print(
        f"\n  {name}: {len(logits):,} rows of {logits.shape[1]:,} classes, {CALIBRATION_ROWS:,} of them calibration"
    )
    print(
        f"  {'':16s} {'B/row':>8s} {'codes':>8s} {'escaped':>8s} {'axes':>6s}  {'worst KL':>9s}  mean KL at T = 1, 2, 4"
    )
    figures: list[dict[str, Any]] = []
    for max_kl in BUDGETS:
        ways: dict[str, Any] = {"transform": {"transform": {"max_kl": max_kl}}, "budget": {"max_kl": max_kl}}
        for way, encoding in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                store = store_of(Path(folder), logits, {way: encoding})
                capture, sizes = store.teachers[way], row_bytes(store, way)
                size = whole_row(sizes)
                kl = kl_of(capture, logits)
                escaped = 0
                if way == "transform":
                    escaped = int((capture.reader.read("refine", slice(None)) == 255).sum())
            beyond = int((kl.max(axis=1) > max_kl).sum())
            warning = "" if beyond == 0 else f"   {beyond} ROWS BEYOND THE BUDGET"
            print(
                f"  {way:10s}{max_kl:6g} {size:8.1f} {sizes.get('codes', sizes.get('logits', 0)):8.1f} {escaped:8d} "
                f"{sizes.get('basis', 0) * len(logits) / 4 / logits.shape[1]:6.0f}  {kl.max():9.2e}  "
                + " ".join(f"{mean:.1e}" for mean in kl.mean(axis=0)[:3])
                + warning,
                flush=True,
            )
            figures.append(
                {
                    "data": name,
                    "way": way,
                    "budget": max_kl,
                    "bytes": round(size, 1),
                    "worst": float(kl.max()),
                    **{
                        f"mean at T = {t:g}": float(mean)
                        for t, mean in zip(TEMPERATURES, kl.mean(axis=0), strict=True)
                    },
                    "beyond": beyond,
                }
            )
    return figures


def show_speed(logits: NDArray[np.float32]) -> None:
    """Print rows/s of encoding on one core and two, and of decoding on one, at 1e-2."""
    encoding = Transform(1e-2).calibrated(drawn(logits), "benchmark")
    rows = logits[:TIMED_ROWS]
    rates = {}
    stored = encoding.encode(rows, 0, "benchmark")
    given = escaped_alone(stored)
    for threads in (1, 2):
        with mock.patch.object(transform, "_threads", lambda threads=threads: threads):
            taken = median(seconds(lambda: encoding.encode(rows, 0, "benchmark")) for _ in range(ROUNDS))
        rates[f"encode, {threads} core{'s' * (threads > 1)}"] = len(rows) / taken
    with one_thread:
        rates["decode to dense rows, 1 core"] = len(rows) / median(
            seconds(lambda: encoding.decode(given)) for _ in range(ROUNDS)
        )
    for what, rate in rates.items():
        print(f"  {what}: {rate:,.0f} rows/s")


def show_strangers(logits: NDArray[np.float32]) -> None:
    """Print bytes and KL at 1e-2 of rows unlike the calibration: noise, and rows of permuted classes."""
    max_kl = 1e-2
    encoding = Transform(max_kl).calibrated(drawn(logits), "benchmark")
    random = np.random.default_rng(0)
    spread = float(logits.std())
    strangers = {
        "noise": (spread * random.standard_normal((512, logits.shape[1]))).astype(np.float32),
        "other classes": logits[:512, random.permutation(logits.shape[1])],
        "ten times wider": 10 * logits[:512],
    }
    for name, rows in strangers.items():
        with tempfile.TemporaryDirectory() as folder:
            store = store_of(Path(folder), rows, {"w": encoding})
            size = whole_row(row_bytes(store, "w"))
            beyond = int((kl_of(store.teachers["w"], rows).max(axis=1) > max_kl).sum())
        print(f"  {name}: {size:,.0f} B/row at {max_kl:g}, {beyond} rows beyond it")


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="append", choices=[*REAL, "synthetic"])
    parser.add_argument("--logits", action="append", default=[], metavar="NAME=FILE.npy")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = arguments.data if arguments.data or arguments.logits else list(REAL)
    figures: list[dict[str, Any]] = []
    for name, logits in data(names or [], arguments.logits):
        figures += show_sizes(name, logits)
        show_speed(logits)
        show_strangers(logits)
    if arguments.json:
        units = {"bytes": "bytes a row of all its arrays but seen", "worst": "nats", "budget": "nats"}
        write_figures(
            arguments.json, "Logits of trained nets, as benchmarks/transform.py names them.", units, figures
        )


if __name__ == "__main__":
    main()
