"""A store in a notebook: rows of a capture by index, whole captures as arrays, short texts, completion of names."""

import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import stores
from support.messages import Sentences
from support.stores import Teacher

from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.storage.api import Capture, Store, open_store
from logitstore.storage.errors import ConfigError
from logitstore.storage.parts import captures

VIEWS = 2


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two views of two teachers."""
    return stores.make(
        tmp_path / "s",
        teachers={"deep": Teacher(views=VIEWS, encoding="float32"), "wide": Teacher(views=VIEWS)},
    ).store


def whole(capture: Capture) -> np.ndarray:
    """Return all logits as `read` gives them."""
    return np.stack([capture.read(slice(None), view) for view in range(capture.num_views)])


def test_a_store_has_as_many_items_as_rows(store: Store) -> None:
    assert len(store) == store.num_rows == store.teachers["deep"].shape[1] and store


@pytest.mark.parametrize(
    "rows",
    [
        0,
        -1,
        slice(3, 9),
        slice(None, None, -2),
        [5, 2, 5],
        [[1, 2], [4, 3]],
        np.int64(7),
        slice(4, 4),
        slice(9, 3),
        slice(-3, 99),
        [],
    ],
)
def test_rows_of_a_capture_are_those_of_an_array(store: Store, rows: Any) -> None:
    """In any order, as of an array in memory."""
    capture = store.teachers["deep"]
    first, second = whole(capture)
    given = np.array(rows, np.int64) if isinstance(rows, list) else rows
    np.testing.assert_array_equal(capture[given], first[given])
    np.testing.assert_array_equal(capture[given, 1], second[given])
    assert not np.array_equal(first, second)


def test_a_mask_chooses_rows(store: Store) -> None:
    capture, mask = store.teachers["deep"], store.samples.labels == 1
    np.testing.assert_array_equal(capture[mask], whole(capture)[0][mask])


@pytest.mark.parametrize("rows", [10**6, "a", 1.5, (0, 0, 0), np.ones(3, bool)])
def test_rows_that_are_none_are_refused(store: Store, rows: Any) -> None:
    with pytest.raises(IndexError):
        _ = store.teachers["deep"][rows]


def test_a_view_that_is_not_there_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError):
        _ = store.teachers["deep"][0, VIEWS]


def test_a_capture_is_not_read_row_by_row(store: Store) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        iter(store.teachers["deep"])  # type: ignore[call-overload]


def test_a_capture_becomes_an_array(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = store.teachers["wide"]
    monkeypatch.setattr(captures, "_ROWS", 7)
    array: Any = np.asarray(capture)
    assert array.shape == capture.shape and array.dtype == np.float32
    np.testing.assert_array_equal(array, whole(capture))
    assert np.asarray(capture, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy=None"):
        np.array(capture, copy=False)


def test_a_large_capture_is_left_to_dask(
    store: Store, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    capture = store.teachers["wide"]
    with monkeypatch.context() as patch:
        patch.setattr(Capture, "shape", (4, 1_281_167, 1000))
        with pytest.raises(ConfigError) as caught:
            np.asarray(capture)
    sentence(caught.value)
    monkeypatch.setattr(captures, "MOST_BYTES", size := 4 * int(np.prod(capture.shape)))
    assert np.asarray(capture).shape == capture.shape  # negative control
    monkeypatch.setattr(captures, "MOST_BYTES", size - 1)
    with pytest.raises(ConfigError):
        np.asarray(capture)


def test_a_capture_still_travels_as_a_pickle(store: Store) -> None:
    again = pickle.loads(pickle.dumps(store.teachers["wide"]))
    np.testing.assert_array_equal(again[:4], store.teachers["wide"][:4])


# Texts


def test_a_batch_is_ten_lines_at_most(tmp_path: Path) -> None:
    many = stores.make(tmp_path / "many", teachers={f"t-{number}": Teacher() for number in range(9)}).store
    for store in (many, stores.make(tmp_path / "one", teachers={"deep": Teacher()}).store):
        stream = store.stream(4, augment=lambda inputs, view, rows: inputs)
        for batch in (next(iter(stream)), next(iter(TorchStream(stream)))):
            lines = repr(batch).splitlines()
            assert len(lines) <= 10 and max(map(len, lines)) <= 80
            assert lines[0].endswith("Batch of 4 rows") and "labels  int64 (4,)" in lines[4]
            assert f"{next(iter(store.teachers))}: float32 (4, {store.num_classes})" in lines[5]
        assert ("and 5 more" in repr(batch)) == (store is many)


def test_the_parts_of_a_store_have_a_line(store: Store) -> None:
    stream = store.stream(4, augment=lambda inputs, view, rows: inputs)
    for thing in (
        store.samples,
        store.samples.reader.part,
        store.teachers["deep"].part,
        stream,
        TorchStream(stream),
    ):
        text = repr(thing)
        assert "object at 0x" not in text and "\n" not in text and len(text) < 200, text


# Completion


def test_teachers_are_completed(store: Store) -> None:
    for one in (store, open_store(str(store.path))):
        assert one.teachers._ipython_key_completions_() == ["deep", "wide"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["logitstore", "logitstore.pipeline", "logitstore.pipeline.models"])
def test_a_package_lists_its_public_names_alone(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(dir(module)) == sorted(module.__all__)
    assert all(getattr(module, one) is not None for one in module.__all__)
