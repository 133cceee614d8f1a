"""Rows that a capture takes as they are stored elsewhere: each stands in its place, whatever the pieces of a write."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from logitstore.storage.api import Store, create_store
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.errors import BadDataError, BadLogitsError
from logitstore.storage.parts.copied import CopiedRows
from logitstore.storage.parts.writer import CaptureWriter

pytestmark = pytest.mark.usefixtures("without_fsync")
ROWS, CLASSES = 40, 5
LOGITS = np.random.default_rng(0).normal(0, 3, (ROWS, CLASSES)).astype(np.float32)
ENCODINGS: list[Any] = ["float16", "float32", {"max_kl": 1e-3}, {"top_k": 2}]


def empty(place: Path) -> Store:
    return create_store(place, num_classes=CLASSES, digests=np.arange(ROWS, dtype=np.uint64), block_rows=64)


def copied(positions: Any, encoding: Any) -> CopiedRows:
    """Rows of `LOGITS`, encoded by themselves."""
    positions = np.asarray(positions, np.int64)
    return CopiedRows(positions, encoding_named(encoding).encode(LOGITS[positions], 0, "copied"))


def written(place: Path, encoding: Any, logits: Any, **options: Any) -> dict[str, bytes]:
    """The arrays of a capture of one block."""
    store = empty(place)
    with store.capture("net", provenance={}, encoding=encoding) as writer:
        writer.write(range(ROWS), logits, **options)
    part = store.teachers["net"]
    names = [name for name, layout in part.part.layouts.items() if layout.is_block_array]
    return {name: part.reader.read(name, slice(None), 0).tobytes() for name in names}


@pytest.mark.parametrize(
    ("encoding", "positions"),
    [("float16", range(ROWS)), ("float16", range(16, 32)), *((one, [0, 3, 4, 5, 39]) for one in ENCODINGS)],
)
def test_rows_stand_in_their_places(tmp_path: Path, encoding: Any, positions: Any) -> None:
    rest = LOGITS.copy()
    rest[list(positions)] = 0
    whole = written(tmp_path / "whole.zarr", encoding, LOGITS)
    for piece in (1 << 20, 64):  # a block at once, and few rows at a time
        with mock.patch.object(CaptureWriter, "piece_bytes", piece):
            mixed = written(tmp_path / f"{piece}.zarr", encoding, rest, copied=copied(positions, encoding))
        assert mixed == whole
    # Negative control: without them, other rows are stored.
    assert written(tmp_path / "rest.zarr", encoding, rest) != whole


def test_the_constants_of_centred_logits(tmp_path: Path) -> None:
    """As a GPU gives them: the rows to be run are centred and cast there."""
    positions = np.arange(0, ROWS, 3)
    peak = LOGITS.max(axis=1)
    rest, constants = (LOGITS - peak[:, None]).astype(np.float16), peak.copy()
    rest[positions], constants[positions] = 0, 0
    mixed = written(
        tmp_path / "mixed.zarr", "float16", rest, peak=constants, copied=copied(positions, "float16")
    )
    assert mixed == written(tmp_path / "whole.zarr", "float16", LOGITS)


def test_an_error_names_the_row_of_the_store(tmp_path: Path) -> None:
    rest = LOGITS.copy()
    rest[:9] = 0
    rest[20, 1] = np.nan
    with pytest.raises(BadLogitsError, match="row 20"):
        written(tmp_path / "store.zarr", "float16", rest, copied=copied(range(9), "float16"))


def test_rows_of_another_encoding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="expected float16 of shape"):
        written(tmp_path / "store.zarr", "float16", LOGITS, copied=copied([1, 2], "float32"))
