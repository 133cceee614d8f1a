"""Laws of IDX files: read as they are, and never in part."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.pipeline.datasets import idx
from logitstore.pipeline.datasets.idx import read_idx
from logitstore.storage.errors import BadDataError

IMAGES = np.random.default_rng(0).integers(0, 256, size=(7, 4, 3), dtype=np.uint8)
LABELS = np.array([5, 0, 1, 1, 2, 3, 0], dtype=np.uint8)


def encoded(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Images and labels, plain, under names that say nothing."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(encoded(IMAGES))
    labels.write_bytes(encoded(LABELS))
    return images, labels


def message(images: Path, labels: Path | None = None) -> str:
    with pytest.raises(BadDataError) as caught:
        idx(images, labels)
    return str(caught.value)


def test_gzip_is_told_by_its_content(files: tuple[Path, Path]) -> None:
    images, labels = files
    plain = idx(images, labels)
    assert np.array_equal(plain.inputs, IMAGES) and plain.labels is not None
    assert np.array_equal(plain.labels, LABELS) and plain.class_names == tuple("012345")
    images.write_bytes(gzip.compress(encoded(IMAGES)))
    assert idx(images, labels).fingerprint() == plain.fingerprint()
    assert idx(images).labels is None and isinstance(idx(images)[0], np.ndarray)


def test_letters_count_from_one(files: tuple[Path, Path]) -> None:
    images, labels = files
    labels.write_bytes(encoded(LABELS + 1))
    assert np.array_equal(idx(images, labels, first_label=1).labels, LABELS)
    assert idx(images, labels, first_label=1).fingerprint() != idx(images, labels).fingerprint()


def test_classes_are_those_of_the_whole_file(files: tuple[Path, Path]) -> None:
    chosen = idx(*files, omit_classes=[5], subset=":2")
    assert len(chosen) == 2 and chosen.class_names == tuple("012345")


@given(st.integers(0, len(encoded(IMAGES)) - 1), st.booleans())
def test_a_file_cut_anywhere_is_never_read(
    tmp_path_factory: pytest.TempPathFactory, size: int, zipped: bool
) -> None:
    path = tmp_path_factory.mktemp("cut") / "images"
    part = encoded(IMAGES)[:size]
    path.write_bytes(gzip.compress(part) if zipped else part)
    text = message(path)
    assert text.startswith(f"{path}: expected ") and "\n" not in text
    if size >= 16:
        after = " after decompression" if zipped else ""
        assert text == (
            f"{path}: expected 100 bytes{after} (header and 7 x 4 x 3), found {size}; "
            "fetch the file again, which is damaged"
        )


@given(st.data())
def test_a_gzip_cut_anywhere_is_never_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "images"
    whole = gzip.compress(encoded(IMAGES))
    path.write_bytes(whole[: data.draw(st.integers(2, len(whole) - 1))])
    text = message(path)
    assert text.startswith(f"{path}: expected ") and "\n" not in text


def test_a_gzip_cut_short_counts_what_was_in_it(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    array = np.random.default_rng(1).integers(0, 256, size=(3000, 28, 28), dtype=np.uint8)
    whole = gzip.compress(encoded(array), compresslevel=1)
    path.write_bytes(whole[: len(whole) // 2])
    text = message(path)
    found = int(text.partition("found ")[2].partition(";")[0])
    assert text.startswith(
        f"{path}: expected {16 + array.size} bytes after decompression (header and 3000 x 28 x 28)"
    )
    assert found == pytest.approx(array.size / 2, rel=0.05)


def test_what_is_wrong_with_a_file_is_said(files: tuple[Path, Path]) -> None:
    images, labels = files
    whole = encoded(IMAGES)
    head = (
        f"{images}: expected an IDX file that begins 00 00 08 03, uint8 images (rows, height, width), found"
    )
    fetch = "fetch the file again"
    for content, expected in (
        (b"", f"{head} an empty file; name the file of that content"),
        (b"\x89PNG\r\n\x1a\n" + whole, f"{head} 89 50 4e 47; "),
        (encoded(LABELS), f"{head} 00 00 08 01, uint8 labels (rows,); name the file of that content"),
        (whole[:10], f"{images}: expected 16 bytes (header), found 10; {fetch}"),
        (whole + b"x", f"{images}: expected 100 bytes (header and 7 x 4 x 3), found 101 or more; {fetch}"),
        (
            gzip.compress(whole + b"x"),
            f"{images}: expected 100 bytes after decompression (header and 7 x 4 x 3), found 101 or more; {fetch}",
        ),
        (
            gzip.compress(whole)[:-4],
            (
                f"{images}: expected 100 bytes after decompression (header and 7 x 4 x 3), "
                "found 100 with a wrong or missing gzip checksum; "
            ),
        ),
        (
            whole[:4] + b"\xff" * 12,
            (
                f"{images}: expected {16 + (2**32 - 1) ** 3} bytes (header and 4294967295 x 4294967295 x 4294967295), "
                "found 16; "
            ),
        ),
    ):
        images.write_bytes(content)
        assert message(images, labels).startswith(expected)
    images.write_bytes(encoded(IMAGES[:0]))
    assert message(images).startswith(
        f"{images}: expected inputs of shape (rows, …), with 1 or more rows, found "
    )
    with pytest.raises(BadDataError, match="expected an IDX file of labels"):
        read_idx(labels.with_name("absent"), 1)


def test_files_that_do_not_belong_together_are_named(files: tuple[Path, Path]) -> None:
    images, labels = files
    labels.write_bytes(encoded(LABELS[:5]))
    assert message(images, labels) == (
        f"{labels}: expected 7 labels, one an image of images, found 5; name the labels that belong to these images"
    )
    assert message(images.parent).endswith(
        "expected an IDX file of images (rows, height, width), found a folder; correct the file name "
        "(relative ones start at the experiment file's folder)"
    )


def test_mnist(shared_data: Path) -> None:
    folder = shared_data / "mnist"
    if not folder.is_dir():
        pytest.skip(f"needs MNIST: {folder} is no folder")
    train = idx(folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz")
    test = idx(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz")
    assert (len(train), len(test), train.input_shape) == (60_000, 10_000, (28, 28))
    assert train.labels is not None and test.labels is not None
    assert (train.labels == 3).sum() == 60_000 - 53_869  # the paper's omitted 3s
    assert ((train.labels == 7) | (train.labels == 8)).sum() == 12_116
    assert (test.labels == 3).sum() == 1010
    assert train.class_names == test.class_names == tuple("0123456789")
