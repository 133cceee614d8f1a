"""The digits that scikit-learn ships: a data set without a download.

1,797 images of 8 x 8 pixels, ten classes (Alpaydin & Kaynak 1998, "Optical recognition of handwritten
digits", the test part). 500 of them, a fixed random choice, are the test split.
"""

import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from ...storage.extras import naming_extras
from .arrays import ArrayDataset
from .selection import random_order

_TEST_ROWS = 500
_FILE = Path("datasets", "data", "digits.csv.gz")
"""File in the package of scikit-learn: 64 counts of inked pixels and a label a line."""


def digits(
    split: Literal["all", "train", "test"] = "all",
    *,
    subset: str | None = None,
    omit_classes: Sequence[int | str] = (),
    fraction: float = 1.0,
    seed: int = 0,
) -> ArrayDataset:
    """Load the digits: inputs (rows, 8, 8) uint8 with ink 255, classes "0" … "9".

    split: "train" (1,297 rows), "test" (500 rows, disjoint from it) or "all" (1,797, in scikit-learn's order).
    Further arguments: `datasets.selection`.
    """
    table = _read_table()
    # Scale counts of inked pixels, 0 … 16, to the 0 … 255 of uint8 images.
    inputs = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    dataset = ArrayDataset(
        inputs, table[:, -1].astype(np.int64), [str(digit) for digit in range(10)], where="digits"
    )
    if split != "all":
        order = random_order(len(dataset), seed=0)
        rows = order[:_TEST_ROWS] if split == "test" else order[_TEST_ROWS:]
        dataset = dataset.take(np.sort(rows))
    return dataset.selected(omit_classes=omit_classes, fraction=fraction, seed=seed, subset=subset)


def _read_table() -> UInt8[np.ndarray, "rows 65"]:
    """Return the pixels and the label of every digit."""
    # Read the file directly: importing scikit-learn takes a second.
    package = importlib.util.find_spec("sklearn")
    for folder in () if package is None else package.submodule_search_locations or ():
        if (Path(folder) / _FILE).is_file():
            with gzip.open(Path(folder) / _FILE, "rt", encoding="ascii") as lines:
                return np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    # Another version of scikit-learn may store the file elsewhere.
    with naming_extras():
        from sklearn.datasets import load_digits
    loaded = load_digits()
    return np.column_stack([loaded.data, loaded.target]).astype(np.uint8)
