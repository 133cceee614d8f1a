"""Imports into stores that are there, where rows agree; and faults while they are written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from support import stores
from support.plain_files import CLASSES, EVERY, ROWS, centred, saved
from support.stores import Teacher

from logitstore.pipeline.exchange import import_files
from logitstore.pipeline.exchange.given import GivenLogits
from logitstore.pipeline.exchange.import_files import import_logits
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import (
    BadDataError,
    BadLogitsError,
    ConfigError,
    NameTaken,
    RowMismatch,
    SpecMismatch,
    StorageFull,
    StoreIncomplete,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of other logits of the same rows, with ids, labels and inputs."""
    return stores.make(tmp_path / "store.zarr", rows=ROWS, teachers={"deep": Teacher()}).store


def known(store: Store) -> dict[str, Any]:
    """Return what identifies the rows of a store."""
    samples = store.samples
    assert samples.inputs is not None
    return {"labels": samples.labels, "ids": samples.ids, "inputs": samples.inputs[:]}


@pytest.mark.parametrize("key", ["labels", "ids", "inputs"])
def test_a_capture_is_added_where_rows_agree(
    tmp_path: Path, store: Store, logits: NDArray[np.float32], key: str
) -> None:
    np.save(tmp_path / "a.npy", logits)
    before = stores.tree(store.path)
    given = {key: known(store)[key]}
    done = import_logits(tmp_path / "a.npy", store.path, "new", **given)
    now = open_store(store.path)
    assert list(now.teachers) == ["deep", "new"] and not done.new_store
    assert np.array_equal(now.teachers["new"].read(EVERY), centred(logits))
    assert done.digest == now.digest
    assert {name: data for name, data in stores.tree(store.path).items() if name in before} == before
    assert not import_logits(tmp_path / "a.npy", store.path, "new", **given).made


@pytest.mark.parametrize("key", ["labels", "ids", "inputs"])
def test_rows_of_another_set_are_refused(
    tmp_path: Path, store: Store, logits: NDArray[np.float32], key: str
) -> None:
    """Negative control of each comparison; what stands beside the other rows agrees."""
    np.save(tmp_path / "a.npy", logits)
    given = known(store)
    other = list(given[key])
    other[17], other[18] = other[18], other[17]
    before = stores.tree(store.path)
    with pytest.raises(RowMismatch) as caught:
        import_logits(tmp_path / "a.npy", store.path, "new", **given | {key: np.array(other)})
    assert "row 17" in str(caught.value)
    if key != "inputs":
        assert "row r is example store.samples.source[r] of its transfer set" in caught.value.remedy
    assert stores.tree(store.path) == before


def test_rows_that_cannot_be_compared_are_refused(
    tmp_path: Path, store: Store, logits: NDArray[np.float32], sentence: Callable[[object], None]
) -> None:
    np.save(tmp_path / "a.npy", logits)
    np.save(tmp_path / "few.npy", logits[:9])
    same = np.zeros(ROWS, np.int64)
    nameless = stores.make(tmp_path / "n.zarr", rows=ROWS, teachers={}, names=False).store
    import_logits(tmp_path / "few.npy", tmp_path / "few.zarr", "few")
    for place, keywords, kind in (
        (store.path, {}, ConfigError),
        (nameless.path, {"ids": range(ROWS)}, ConfigError),
        (tmp_path / "few.zarr", {"ids": range(ROWS)}, SpecMismatch),
        (store.path, {"labels": same}, RowMismatch),
        (store.path, {"ids": store.samples.ids, "class_names": list("abcde")}, SpecMismatch),
    ):
        before = stores.tree(place)
        with pytest.raises(kind) as caught:
            import_logits(tmp_path / "a.npy", place, "new", **keywords)
        sentence(caught.value)
        assert stores.tree(place) == before


def test_labels_of_one_class_do_not_identify_rows(tmp_path: Path, logits: NDArray[np.float32]) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", logits + ord(name))
    same = np.full(ROWS, 3)
    import_logits(tmp_path / "a.npy", tmp_path / "s.zarr", "a", labels=same)
    with pytest.raises(ConfigError, match="expected labels of the rows"):
        import_logits(tmp_path / "b.npy", tmp_path / "s.zarr", "b", labels=same)
    # The file that the store was made of says which rows they are.
    assert import_logits(tmp_path / "a.npy", tmp_path / "s.zarr", "again", labels=same).made


def test_the_name_of_another_capture_is_refused(
    tmp_path: Path, store: Store, logits: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "a.npy", logits)
    np.save(tmp_path / "b.npy", logits + 1)
    given = {"ids": store.samples.ids}
    with pytest.raises(NameTaken, match="expected a name that is free, or a capture with imported_from"):
        import_logits(tmp_path / "a.npy", store.path, "deep", **given)
    import_logits(tmp_path / "a.npy", store.path, "new", **given)
    with pytest.raises(SpecMismatch, match=r"expected imported_from = .*, with which it was made"):
        import_logits(tmp_path / "b.npy", store.path, "new", **given)
    with pytest.raises(SpecMismatch, match=r"expected encoding.kind = 'float32'"):
        import_logits(tmp_path / "a.npy", store.path, "new", encoding="float16", **given)


def test_a_store_whose_samples_are_not_sealed_is_refused(tmp_path: Path, logits: NDArray[np.float32]) -> None:
    np.save(tmp_path / "a.npy", logits)
    from logitstore.storage.api import begin_store

    other = begin_store(tmp_path / "s.zarr", num_rows=ROWS, num_classes=CLASSES, block_rows=8)
    writer = other.samples_writer(identity={"digest_of": "array", "order": {"kind": "as_is"}})
    writer.write(
        range(8),
        source=np.arange(8),
        digest=np.arange(8, dtype=np.uint64),
        label=np.zeros(8, np.int64),
    )
    writer.close()
    with pytest.raises(StoreIncomplete):
        import_logits(tmp_path / "a.npy", tmp_path / "s.zarr", "new", ids=range(ROWS))


def test_a_file_that_changes_meanwhile_is_not_sealed(
    tmp_path: Path, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", logits)
    read = GivenLogits.read

    def changing(self: GivenLogits, start: int, stop: int) -> Any:
        np.save(tmp_path / "b.npy", logits + 1)
        (tmp_path / "b.npy").replace(tmp_path / "a.npy")
        return read(self, start, stop)

    monkeypatch.setattr(GivenLogits, "read", changing)
    with pytest.raises(BadDataError, match="found a file that was replaced or written to"):
        import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide")
    assert list(open_store(tmp_path / "new.zarr").teachers) == []


def test_a_disk_without_room_is_refused_beforehand(
    tmp_path: Path, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", logits)
    usage = mock.Mock(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageFull, match="expected room for 740 bytes, found 10 free bytes"):
        import_logits(tmp_path / "a.npy", tmp_path / "new.zarr", "wide")
    assert [one.name for one in tmp_path.iterdir()] == ["a.npy"]


def test_rows_in_pieces_are_those_of_one_piece(
    tmp_path: Path, logits: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = saved(tmp_path, logits, "two npy")
    import_logits(paths, tmp_path / "whole.zarr", "wide")
    monkeypatch.setattr(import_files, "_PIECE_BYTES", 3 * 4 * CLASSES)
    import_logits(paths, tmp_path / "pieces.zarr", "wide")
    assert stores.tree(tmp_path / "whole.zarr") == stores.tree(tmp_path / "pieces.zarr")
    logits[20, 0] = np.nan
    np.save(tmp_path / "b.npy", logits[18:])
    with pytest.raises(BadLogitsError, match=r"b.npy, row 2, class 0"):
        import_logits(paths, tmp_path / "bad.zarr", "wide")
