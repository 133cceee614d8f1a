"""What is there to try the pipeline on without any file? The digits that scikit-learn carries.

1,797 images of 8 x 8 pixels, ten classes (Alpaydin & Kaynak 1998, "Optical recognition of handwritten
digits", the test part). 500 of them, a fixed random choice, are the test split.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .arrays import ArrayDataset
from .selection import random_order

_TEST_ROWS = 500


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
    from sklearn.datasets import load_digits  # takes a second to import, and only this set needs it

    bunch = load_digits()
    # Counts of inked pixels, 0 … 16, to the 0 … 255 that uint8 images are read as.
    inputs = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    dataset = ArrayDataset(
        inputs, bunch.target.astype(np.int64), [str(digit) for digit in range(10)], where="digits"
    )
    if split != "all":
        order = random_order(len(dataset), seed=0)
        rows = order[:_TEST_ROWS] if split == "test" else order[_TEST_ROWS:]
        dataset = dataset.take(np.sort(rows))
    return dataset.selected(omit_classes=omit_classes, fraction=fraction, seed=seed, subset=subset)
