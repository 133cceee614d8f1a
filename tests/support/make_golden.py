"""Golden stores of formats 1.0 and 1.1, always the same bytes.

    python tests/support/make_golden.py [FOLDER]

tests/data holds the output of the day on which the format was fixed. A change of the code that changes a byte of it
changes the format.
"""

import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np

from support import transformed
from support.stores import Made, Teacher, add_clustering, make

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "store-v1.0"
PLAIN = DATA / "plain-v1.0"
TRANSFORMED = DATA / "transform-v1.1"


def make_golden(path: Path) -> Made:
    """Make a store with all that format 1.0 has: two encodings, views, augmentation, dustbin, names, a clustering."""
    made = make(
        path,
        rows=11,
        block_rows=4,
        teachers={
            "wide": Teacher(views=2),
            "deep": Teacher(views=2, encoding="float32", augmented=True),
            "special": Teacher(classes=(1, 3, -1)),
        },
    )
    add_clustering(made.store)
    return made


def make_plain(path: Path) -> Made:
    """Make a store with as little as there may be: float32 inputs, neither names nor ids, whole blocks, one view."""
    return make(
        path,
        rows=8,
        block_rows=4,
        classes=2,
        teachers={"only": Teacher(encoding="float32")},
        input_dtype="float32",
        names=False,
        seed=1,
    )


def make_transformed(path: Path) -> Made:
    """Make a store with captures in the transform encoding: with `peak`, and with columns in another order.

    Its basis is given: one of calibration rows would hang on the last bits of a BLAS.
    """
    with mock.patch("os.fsync"):
        store = transformed.make(path, ("peaked", "turned"))
    labels = np.full(transformed.ROWS, -1, np.int64)
    logits = dict.fromkeys(("peaked", "turned"), transformed.known_logits())
    return Made(path, store, np.arange(transformed.ROWS, dtype=np.uint64), labels, logits)


MAKERS = {GOLDEN.name: make_golden, PLAIN.name: make_plain}
"""Every golden store of format 1.0 -> what makes it."""
NEWER = {TRANSFORMED.name: make_transformed}
"""Every golden store of format 1.1 -> what makes it. Its codes are behind codecs, whose bytes may change with a version."""


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    for name, maker in {**MAKERS, **NEWER}.items():
        shutil.rmtree(target / name, ignore_errors=True)
        print(name, maker(target / name).store.digest)
