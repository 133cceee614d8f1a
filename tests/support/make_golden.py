"""Golden stores of formats 1.0 and 1.1, always the same bytes.

    python tests/support/make_golden.py [FOLDER]

tests/data holds the output of the day on which the format was fixed. A change of the code that changes a byte of it
changes the format.
"""

import io
import shutil
import sys
from contextlib import closing
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image, PngImagePlugin

from logitstore.storage.api import Store, begin_store
from logitstore.storage.digest import digest_rows
from support import transformed
from support.stores import Made, Teacher, add_clustering, make

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "store-v1.0"
PLAIN = DATA / "plain-v1.0"
TRANSFORMED = DATA / "transform-v1.1"
FILES = DATA / "files-v1.1"
FILE_PIXELS = np.random.default_rng(5).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
"""(rows, height, width, 3): pixels of the golden store of files, which PNG files keep exactly."""


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


def png_files() -> list[bytes]:
    """Return the pixels as PNG files of different lengths."""
    files = []
    for number, pixels in enumerate(FILE_PIXELS):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG", pnginfo=_comment("x" * number))
        files.append(content.getvalue())
    return files


def _comment(text: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", text)
    return info


def make_files(path: Path) -> Store:
    """Make a store that keeps the files of its inputs, in reverse order."""
    files, rows = png_files(), len(FILE_PIXELS)
    identity = {
        "transfer_set": None,
        "order": {"kind": "as_is"},
        "digest_of": "array",
        "label_kind": "class",
        "decoding": {"mode": "RGB", "height": 4, "width": 4},
    }
    source = np.arange(rows)[::-1].copy()
    digests = digest_rows(np.ascontiguousarray(FILE_PIXELS.transpose(0, 3, 1, 2)))[source]
    with mock.patch("os.fsync"):
        store = begin_store(path, num_rows=rows, num_classes=2, block_rows=4)
        with closing(store.samples_writer(identity=identity, file_width=max(map(len, files)))) as writer:
            for block in range(2):
                here = store.grid.rows(block)
                of_block = source[here.start : here.stop]
                writer.write(
                    here,
                    source=of_block,
                    digest=digests[here.start : here.stop],
                    label=of_block % 2,
                    file=lambda part, of_block=of_block: [files[index] for index in of_block[part]],
                )
            writer.seal()
        store.refresh()
    return store


MAKERS = {GOLDEN.name: make_golden, PLAIN.name: make_plain}
"""Every golden store of format 1.0 -> what makes it."""
NEWER = {TRANSFORMED.name: make_transformed}
"""Every golden store of format 1.1 -> what makes it. Its codes are behind codecs, whose bytes may change with a version."""


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    for name, maker in {**MAKERS, **NEWER}.items():
        shutil.rmtree(target / name, ignore_errors=True)
        print(name, maker(target / name).store.digest)
    shutil.rmtree(target / FILES.name, ignore_errors=True)
    print(FILES.name, make_files(target / FILES.name).digest)
