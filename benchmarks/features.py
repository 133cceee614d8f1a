"""Codes from features: memory and speed of a wide head, and bytes a row by the span of the basis.

1. 21,843 classes of 768 features, drawn: peak memory of this process, which also holds the head, and CPU seconds, of all its
   threads: other work on the machine counts little.
2. With --hidden and --head, the inputs of a real head and its weight: bytes of a row whose basis spans the head, and of one whose
   basis spans the calibration rows. Rows are like the calibration; or each feature is drawn by itself, with its mean and deviation
   there; or features are permuted. The rows of the last two keep little of the calibration but its scale.

Bytes are those of the files of a row, all arrays but `seen`. Alone:
    python benchmarks/features.py [--classes N] [--hidden FILE.npy --head FILE.npy]
FILE.npy: float32 (rows, features) and (classes, features). N: the first classes of that head alone, as the span of calibration rows
is made of dense ones.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from timing import peak_mib
from transform import row_bytes, whole_row

import logitstore
from logitstore import FeatureLogits, LinearHead
from logitstore.storage.encodings.refine import ESCAPED
from logitstore.storage.encodings.transform import Transform

CLASSES, FEATURES, DIRECTIONS = 21_843, 768, 64
CALIBRATION_ROWS, ROWS, MAX_KL, MIB = 2048, 1024, 1e-2, 1 << 20
TRIED_ROWS = (256, 512, 2048)
"""Calibration rows of which a basis is made: fewer and more than there are features."""


def drawn_head(random: np.random.Generator) -> LinearHead:
    """Return a head of small weights."""
    weight = random.standard_normal((CLASSES, FEATURES), dtype=np.float32)
    weight *= 0.05
    return LinearHead(weight, random.standard_normal(CLASSES, dtype=np.float32))


def show_memory() -> None:
    """Print peak memory and rows/s of a calibration and of an encoding."""
    random = np.random.default_rng(0)
    head, mixing = drawn_head(random), random.standard_normal((DIRECTIONS, FEATURES), dtype=np.float32) * 0.3

    def logits(rows: int) -> FeatureLogits:
        noise = random.standard_normal((rows, FEATURES), dtype=np.float32) * 0.3
        hidden = random.standard_normal((rows, DIRECTIONS), dtype=np.float32) @ mixing + noise
        return FeatureLogits(np.maximum(hidden, 0), head)

    dense = CLASSES * 4
    print(f"\n  {CLASSES:,} classes of {FEATURES} features, {MAX_KL:g}: a dense row takes {dense:,} bytes")
    print(f"  before: {peak_mib()} MiB, of which the head {head.weight.nbytes // MIB}")
    rows = logits(CALIBRATION_ROWS)
    started = time.process_time()
    encoding = Transform(MAX_KL).calibrated(rows, "benchmark")
    print(
        f"  calibrated with {CALIBRATION_ROWS:,} rows ({CALIBRATION_ROWS * dense // MIB} MiB if they were dense): peak "
        f"{peak_mib()} MiB, {time.process_time() - started:.0f} CPU s"
    )
    rows = logits(ROWS)
    started = time.process_time()
    encoding.encode(rows, 0, "benchmark")
    rate = ROWS / (time.process_time() - started)
    print(f"  encoded {ROWS:,} rows: peak {peak_mib()} MiB, {rate:.0f} rows a CPU second")


def kinds(hidden: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the kinds of rows that are encoded."""
    random = np.random.default_rng(1)
    yield "like", hidden
    yield (
        "drawn",
        (hidden.mean(0) + random.standard_normal(hidden.shape) * hidden.std(0)).astype(np.float32),
    )
    yield "permuted", np.ascontiguousarray(hidden[:, random.permutation(hidden.shape[1])])


def show_span(hidden: NDArray[np.float32], head: LinearHead, whole: bool) -> None:
    """Print bytes a row by calibration rows and span. whole: whether only the head's span is tried."""
    order = np.random.default_rng(0).permutation(len(hidden))
    others = hidden[order[-ROWS // 2 :]]
    print(f"\n  {head.num_classes:,} classes of {head.num_features} real features, {MAX_KL:g}")
    for number in TRIED_ROWS[-1:] if whole else TRIED_ROWS:
        calibration = FeatureLogits(hidden[order[:number]], head)
        spans = {"head": calibration} | ({} if whole else {"rows": calibration.dense()})
        for span, given in spans.items():
            encoding = Transform(MAX_KL).calibrated(given, "benchmark")
            assert encoding.basis is not None
            line = (
                f"  {number:5d} calibration rows, span of {span}: {encoding.basis.num_components:4d} axes; "
            )
            for kind, features in kinds(others):
                size, escaped = stored(FeatureLogits(features, head), encoding)
                line += f"{kind} {size:,.0f} B/row" + (f" ({escaped:.0%} escaped)" if escaped else "") + ", "
            print(f"{line}peak {peak_mib()} MiB", flush=True)


def stored(logits: FeatureLogits, encoding: Transform) -> tuple[float, float]:
    """Write a store; return the bytes of a row and the share of escaped ones."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        store = logitstore.create_store(
            Path(folder) / "s.zarr",
            num_classes=logits.shape[1],
            digests=np.zeros(len(logits), np.uint64),
            block_rows=512,
        )
        with store.capture("w", provenance={}, encoding=encoding) as capture:
            for block in capture.missing_blocks():
                capture.write(block, logits[block.start : block.stop])
        escaped = (
            logitstore.open_store(store.path).teachers["w"].reader.read("refine", slice(None)) == ESCAPED
        )
        return whole_row(row_bytes(store, "w")), float(escaped.mean())


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=Path)
    parser.add_argument("--head", type=Path)
    parser.add_argument("--classes", type=int)
    arguments = parser.parse_args()
    print("\nCodes from features")
    if arguments.hidden is None:
        show_memory()
        return
    weight = np.load(arguments.head)[: arguments.classes]
    show_span(np.load(arguments.hidden).astype(np.float32), LinearHead(weight), arguments.classes is None)


if __name__ == "__main__":
    main()
