"""Peak memory of the transform encoding of dense rows: its calibration, and the encoding of a block.

Nothing of classes by classes is held. The peak is that of this process, rows included.

Alone: python benchmarks/transform_memory.py FILE.npy [--max-kl 0.01]
FILE.npy: float32 (rows, classes), as recogniser_rows.py beside this script makes them.
"""

import argparse
from pathlib import Path

import numpy as np
from timing import peak_mib

from logitstore.storage.encodings.transform import Transform

CALIBRATION_ROWS, ROWS, MOST_MIB = 2048, 1024, 1024


def main(path: Path, max_kl: float) -> None:
    """Print the peak after each step."""
    stored = np.load(path, mmap_mode="r")
    print(
        f"{stored.shape[1]:,} classes, {CALIBRATION_ROWS:,} calibration rows, {ROWS:,} rows encoded, max_kl {max_kl:g}"
    )
    rows = np.array(stored[: CALIBRATION_ROWS + ROWS])
    print(f"  before: {peak_mib():,} MiB, of which the rows {rows.nbytes >> 20:,}")
    encoding = Transform(max_kl).calibrated(rows[:CALIBRATION_ROWS], "benchmark")
    print(f"  calibrated: {peak_mib():,} MiB")
    encoding.encode(rows[CALIBRATION_ROWS:], 0, "benchmark")
    peak = peak_mib()
    print(f"  {'met   ' if peak < MOST_MIB else 'MISSED'}  encoded: {peak:,} MiB   (bar: < {MOST_MIB:,})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--max-kl", type=float, default=1e-2)
    given = parser.parse_args()
    main(given.path, given.max_kl)
