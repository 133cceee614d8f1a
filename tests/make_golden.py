"""What did format 1.0 look like on the day it was fixed? Writes the golden store, always the same bytes.

    python tests/make_golden.py FOLDER

tests/data/store-v1.0 is what this script wrote when the format was fixed. A change of the code that
changes a byte of it is a change of the format.
"""

import shutil
import sys
from pathlib import Path

from stores import Made, Teacher, add_clustering, make

GOLDEN = Path(__file__).parent / "data" / "store-v1.0"


def make_golden(path: Path) -> Made:
    """A store with all that format 1.0 has: two encodings, views, augmentation, dustbin, names, a clustering."""
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


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    shutil.rmtree(target, ignore_errors=True)
    print(make_golden(target).store.digest)
