"""The transform encoding on real logits: bytes a row, rows beyond the budget, speed, and rows unlike the calibration.

Beside it stand float16, error budgets and top-k of the same rows. Each store is written through the public writer. Bytes are
those of its files, all arrays of a row but `seen`; the basis, which a capture has once, is told apart. KL(teacher ‖ stored)
is computed in float64, apart from the product's own. Rates are of one core, the median of five, and of two.

Alone: python benchmarks/transform.py [--data Omniglot] [--logits NAME=FILE.npy] [--json docs/figures/transform.json]
FILE.npy: float32 (rows, classes), as recogniser_rows.py and language_rows.py beside this script make them.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
from encoding import TOP_K, bar, by_temperature
from figures import write_figures
from numpy.typing import NDArray
from real_logits import hundred_logits, mnist_logits, omniglot_logits, synthetic_logits
from timing import seconds
from ways import always, kl_of

import logitstore
from logitstore.storage.api import Capture
from logitstore.storage.encodings import transform
from logitstore.storage.encodings.products import one_thread
from logitstore.storage.encodings.refine import ESCAPED
from logitstore.storage.encodings.transform import TEMPERATURES as GUARANTEED
from logitstore.storage.encodings.transform import Transform, escaped_alone
from logitstore.storage.format.constants import TEMPERATURES
from logitstore.storage.random import philox_permutation

BUDGETS = (1e-1, 1e-2, 1e-3, 1e-4)
REAL = {"Omniglot": omniglot_logits, "100 of Omniglot": hundred_logits, "MNIST": mnist_logits}
BARS = {
    "Omniglot": {1e-2: 60, 1e-3: 95, 1e-4: 133},
    "language model": {1e-2: 200, 1e-3: 320, 1e-4: 445},
    "text recogniser": {1e-2: 32, 1e-3: 60},
}
"""Bytes a row that a budget may take at most."""
TIMED, ENCODE_BARS, DECODE_BAR = "Omniglot", {1: 15_000, 2: 28_000}, 150_000
"""The logits whose speed has bars: rows/s by threads, and of one core."""
CALIBRATION_ROWS = 2048
ROWS_READ = 1024
TIMED_ROWS, ROUNDS = 4096, 5
LEFT_OUT = ("seen", "classes", "basis", "centre", "step", "weight", "__logitstore__")
"""Folders of a capture that are no part of a row, and the digests that every capture has."""


@dataclass(frozen=True)
class Way:
    """An encoding, as `store.capture` takes it."""

    family: str
    """The encoding without its parameter."""
    encoding: Any
    """The encoding itself."""
    parameter: float | None = None
    """Its budget, or its k."""

    @property
    def budget(self) -> float | None:
        """Return the KL that no row may exceed; None for an encoding without one."""
        return self.parameter if self.family in ("transform", "budget") else None

    @property
    def name(self) -> str:
        """Return the name of a line."""
        return self.family if self.parameter is None else f"{self.family} {self.parameter:g}"


def ways_for(num_classes: int) -> list[Way]:
    """Return the compared encodings: those without a basis in what `logitstore cache` makes of them."""
    return [
        Way("float16", "float16"),
        *(Way("transform", {"transform": {"max_kl": max_kl}}, max_kl) for max_kl in BUDGETS),
        *(Way("budget", {"max_kl": max_kl}, max_kl) for max_kl in BUDGETS),
        *(Way("top-k", {"top_k": k}, k) for k in TOP_K if k < num_classes),
    ]


def data(names: Sequence[str], files: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
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


def store_of(folder: Path, logits: NDArray[np.float32], name: str, encoding: Any) -> logitstore.Store:
    """Write logits in an encoding, calibrated with a draw of them if it has no basis and needs one."""
    rows, classes = logits.shape
    store = logitstore.create_store(folder / "s.zarr", num_classes=classes, digests=np.zeros(rows, np.uint64))
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


def stored_kl(capture: Capture, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute KL(softmax(logits/T) ‖ softmax(stored/T)) of every row in float64: (rows, temperatures)."""
    parts = []
    for start in range(0, len(logits), ROWS_READ):
        part = slice(start, min(start + ROWS_READ, len(logits)))
        if capture.encoding.is_dense:
            decoded_at = always(capture.read(part))
        else:

            def decoded_at(temperature: float, part: slice = part) -> NDArray[np.float32]:
                return capture.read(part, temperature=temperature)

        parts.append(kl_of(logits[part], decoded_at))
    return np.concatenate(parts)


def show_sizes(name: str, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Print bytes and KL of every encoding, and return them."""
    rows, classes = logits.shape
    print(
        f"\n  {name}: {rows:,} rows of {classes:,} classes, {min(rows, CALIBRATION_ROWS):,} of them calibration"
    )
    print(
        f"  {'':16s} {'B/row':>8s} {'codes':>8s} {'escaped':>8s} {'axes':>6s}  {'worst KL':>9s}  mean KL at T = 1, 2, 4"
    )
    return [show_way(name, logits, way) for way in ways_for(classes)]


def show_way(name: str, logits: NDArray[np.float32], way: Way) -> dict[str, Any]:
    """Print bytes and KL of one encoding, and return them."""
    rows, classes = logits.shape
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder), logits, "way", way.encoding)
        capture, sizes = store.teachers["way"], row_bytes(store, "way")
        kl = stored_kl(capture, logits)
        escaped = axes = 0
        if way.family == "transform":
            escaped = int((capture.reader.read("refine", slice(None)) == ESCAPED).sum())
            axes = len(capture.part.small("basis"))
    promised = [t in GUARANTEED or way.family != "transform" for t in TEMPERATURES]
    beyond = None if way.budget is None else int((kl[:, promised].max(axis=1) > way.budget).sum())
    size, mean = whole_row(sizes), kl.mean(axis=0)
    print(
        f"  {way.name:16s} {size:8.1f} {sizes.get('codes', sizes.get('logits', 0)):8.1f} {escaped:8d} {axes:6d}  "
        f"{kl.max():9.2e}  "
        + " ".join(f"{figure:.1e}" for figure in mean[:3])
        + (f"   {beyond} ROWS BEYOND THE BUDGET" if beyond else ""),
        flush=True,
    )
    return {
        "data": name,
        "rows": rows,
        "classes": classes,
        "encoding": way.family,
        "parameter": way.parameter,
        "bytes": round(size, 1),
        "basis_bytes": 4 * (axes * (classes + 1) + 2 * classes) if axes else 0,
        **by_temperature("worst_kl", kl.max(axis=0)),
        **by_temperature("mean_kl", mean),
        "beyond": beyond,
    }


def show_bars(name: str, figures: Sequence[Mapping[str, Any]]) -> None:
    """Print the bars of bytes and of rows beyond their budget."""
    most = BARS.get(name, {})
    for row in figures:
        if row["encoding"] == "transform" and row["parameter"] in most:
            limit = most[row["parameter"]]
            what = f"{name}, transform {row['parameter']:g}: bytes a row"
            bar(what, f"{row['bytes']:.1f}", f"<= {limit}", row["bytes"] <= limit)
    beyond = sum(row["beyond"] or 0 for row in figures)
    bar(f"{name}: rows beyond their budget, over all budgets", str(beyond), "0", beyond == 0)


def show_speed(name: str, logits: NDArray[np.float32]) -> None:
    """Print rows/s of encoding on one core and two, and of decoding on one, at 1e-2."""
    encoding = Transform(1e-2).calibrated(drawn(logits), "benchmark")
    rows = logits[:TIMED_ROWS]
    stored = encoding.encode(rows, 0, "benchmark")
    given = escaped_alone(stored)
    rates: list[tuple[str, float, int]] = []
    for threads, least in ENCODE_BARS.items():
        with mock.patch.object(transform, "_threads", lambda threads=threads: threads):
            taken = median(seconds(lambda: encoding.encode(rows, 0, "benchmark")) for _ in range(ROUNDS))
        rates.append((f"encode, {threads} core{'s' * (threads > 1)}", len(rows) / taken, least))
    with one_thread:
        taken = median(seconds(lambda: encoding.decode(given)) for _ in range(ROUNDS))
    rates.append(("decode to dense rows, 1 core", len(rows) / taken, DECODE_BAR))
    for what, rate, least in rates:
        if name == TIMED:
            bar(f"{name}, {what}: rows/s", f"{rate:,.0f}", f">= {least:,}", rate >= least)
        else:
            print(f"  {what}: {rate:,.0f} rows/s")


def show_strangers(logits: NDArray[np.float32]) -> None:
    """Print bytes and KL at 1e-2 of rows unlike the calibration: noise, and rows of permuted classes."""
    max_kl = 1e-2
    encoding = Transform(max_kl).calibrated(drawn(logits), "benchmark")
    random = np.random.default_rng(0)
    spread = float(logits.std())
    promised = [t in GUARANTEED for t in TEMPERATURES]
    strangers = {
        "noise": (spread * random.standard_normal((512, logits.shape[1]))).astype(np.float32),
        "other classes": logits[:512, random.permutation(logits.shape[1])],
        "ten times wider": 10 * logits[:512],
    }
    for name, rows in strangers.items():
        with tempfile.TemporaryDirectory() as folder:
            store = store_of(Path(folder), rows, "way", encoding)
            size = whole_row(row_bytes(store, "way"))
            beyond = int((stored_kl(store.teachers["way"], rows)[:, promised].max(axis=1) > max_kl).sum())
        print(f"  {name}: {size:,.0f} B/row at {max_kl:g}, {beyond} rows beyond it")


def main(names: Sequence[str] = tuple(REAL), files: Sequence[str] = (), json: Path | None = None) -> None:
    """Print every table with its bars.

    names: logits of this project. files: others, each as NAME=FILE.npy. json: the file from which the plot is drawn.
    """
    print("transform encoding: bytes and KL beside the other encodings, speed, rows unlike the calibration")
    figures: list[dict[str, Any]] = []
    for name, logits in data(names, files):
        found = show_sizes(name, logits)
        figures += found
        if json is not None:
            write_json(json, figures)  # after each set: the last may take long
        show_bars(name, found)
        show_speed(name, logits)
        show_strangers(logits)


def write_json(path: Path, figures: Sequence[Mapping[str, Any]]) -> None:
    """Write bytes and KL of every encoding."""
    promised = ", ".join(f"{t:g}" for t in GUARANTEED)
    units = {
        "parameter": "budget in nats, or k",
        "bytes": "bytes a row behind the codec, all arrays of a row but `seen`",
        "basis_bytes": "bytes of basis, centre, step and weight, once a capture",
        "worst_kl_T, mean_kl_T": "KL(teacher ‖ stored) at temperature T, nats: worst row, mean of the rows",
        "beyond": f"rows whose KL is above the budget at some T, of a transform at T = {promised}",
    }
    about = "Logits of trained networks, as benchmarks/transform.py names them."
    write_figures(path, about, units, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="append", choices=[*REAL, "synthetic"])
    parser.add_argument("--logits", action="append", default=[], metavar="NAME=FILE.npy")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    everything = () if arguments.logits else tuple(REAL)
    main(arguments.data or everything, arguments.logits, arguments.json)
