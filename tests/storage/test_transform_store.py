"""Captures in the transform encoding, in a store: read, described, and listed by a reader that lacks the feature."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import stores
from support import transformed as known

from logitstore.storage.api import Store, open_store
from logitstore.storage.describe import describe
from logitstore.storage.encodings.transform import Transform
from logitstore.storage.errors import (
    BadLogitsError,
    ConfigError,
    LogitStoreError,
    UnsupportedFeature,
)
from logitstore.storage.format.constants import CAPTURE, ERROR_BUDGET, TOP_K
from logitstore.storage.format.layouts import BASIS
from logitstore.storage.parts import sealed_part

pytestmark = pytest.mark.usefixtures("without_fsync")

RAW = Transform(1e-2, (1.0, 2.0, 4.0))
"""The encoding without a basis, as users name it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the store of `transformed`."""
    with mock.patch("os.fsync"):
        path = tmp_path_factory.mktemp("transformed") / "store"
        known.make(path)
        return path


@pytest.fixture
def store(whole: Path) -> Store:
    return open_store(whole)


def escaped(view: int) -> list[int]:
    return [row for where, row in known.FAR if where == view]


# Reading


def test_rows_come_back_and_those_outside_the_basis_too(store: Store) -> None:
    for name in ("plain", "peaked", "turned"):
        capture = store.teachers[name]
        assert capture.shape == (known.VIEWS, known.ROWS, known.CLASSES)
        for view in range(known.VIEWS):
            found, wanted = capture.read(slice(None), view), known.centred()[view]
            far = np.isin(np.arange(known.ROWS), escaped(view))
            assert np.array_equal(found[~far], wanted[~far])
            assert 0 < np.abs(found - wanted)[far].max() <= np.sqrt(2 * 1e-2)
            assert np.array_equal(found.argmax(axis=1), wanted.argmax(axis=1))
            assert (found.max(axis=1) == 0).all()


@pytest.mark.parametrize(
    "rows", [[3], [3, 3, 17], [0, 17, 20], slice(2, 19), range(3, 4), [], np.array([1, 4])], ids=str
)
def test_any_rows_are_those_of_the_whole(store: Store, rows: Any) -> None:
    """Also where escaped ones are repeated, alone, or absent."""
    numbers = np.arange(known.ROWS)[rows if isinstance(rows, slice) else np.asarray(rows, np.int64)]
    for name in ("plain", "turned"):
        capture = store.teachers[name]
        for view in range(known.VIEWS):
            assert np.allclose(capture.read(rows, view), capture.read(slice(None), view)[numbers], atol=1e-6)
            stored = capture.read_stored(rows, view)
            far = np.isin(numbers, escaped(view))
            assert ("escape" in stored) == far.any()
            if far.any():
                assert len(stored["escape"]) == far.sum()


def test_columns_in_another_order_are_read_in_that_of_the_store(store: Store) -> None:
    plain, turned = store.teachers["plain"], store.teachers["turned"]
    assert turned.classes.tolist() == list(range(known.CLASSES))
    stored = turned.read_stored(slice(None))
    assert np.array_equal(stored["codes"], plain.read_stored(slice(None))["codes"])
    assert np.array_equal(stored["escape"], plain.read_stored(slice(None))["escape"])
    assert np.array_equal(turned.read(slice(None)), plain.read(slice(None)))
    # Negative control: the bytes themselves are in the order in which they were written.
    assert not np.array_equal(turned.part.small("basis"), plain.part.small("basis"))
    assert turned.encoding.describe() == plain.encoding.describe()


def test_dask_gives_the_same(store: Store) -> None:
    for name in ("plain", "turned"):
        capture = store.teachers[name]
        found = np.asarray(capture.dask().compute(scheduler="synchronous"))
        assert np.allclose(found, [capture.read(slice(None), view) for view in range(known.VIEWS)], atol=1e-6)


def test_the_basis_is_read_with_the_first_row_and_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    small = sealed_part.SealedPart.small
    monkeypatch.setattr(
        sealed_part.SealedPart, "small", lambda self, name: [read.append(name), small(self, name)][1]
    )
    capture = open_store(whole).teachers["plain"]
    _ = capture.shape, capture.temperatures, capture.divergence(), capture.encoding.bound(1.0), repr(capture)
    _ = capture.provenance, capture.encoding.arrays(known.CLASSES), repr(capture.encoding)
    assert read == []
    for _ in range(2):
        capture.read([1])
    assert sorted(read) == sorted([*BASIS, "classes"])


def test_the_error_is_recorded_at_the_temperatures_of_the_encoding(store: Store) -> None:
    capture = store.teachers["plain"]
    assert capture.temperatures == (1.0, 2.0, 4.0)
    for view in range(known.VIEWS):
        found = capture.divergence(slice(None), view)
        decoded, given = capture.read(slice(None), view), known.known_logits()[view]
        for column, temperature in enumerate(capture.temperatures):
            p, q = stores.softmax(given, temperature), stores.softmax(decoded, temperature)
            kl = (p * (np.log(p) - np.log(q))).sum(axis=1)
            assert (kl <= found[:, column] + 1e-12).all()
            assert (found[:, column] <= 1e-2).all()
    record = describe(store)[0]
    assert record["format_version"] == "1.1"
    about = {one["name"]: one for one in record["captures"]}["plain"]
    assert [one["temperature"] for one in about["divergence"]] == [1.0, 2.0, 4.0]
    assert [one["bound"] for one in about["divergence"]] == [1e-2] * 3
    far, every = len(known.FAR), known.ROWS * known.VIEWS
    wanted = {"components": known.COMPONENTS, "rows": every, "escaped": far, "refine": {0: every - far}}
    assert wanted.items() <= about["transform"].items()


def test_a_constant_is_kept_on_request_alone(store: Store, sentence: Callable[..., None]) -> None:
    peak = known.known_logits().max(axis=2)
    for view in range(known.VIEWS):
        assert np.array_equal(store.teachers["peaked"].peak(slice(None), view), peak[view])
    assert store.teachers["peaked"].has_peak and not store.teachers["plain"].has_peak
    with pytest.raises(ConfigError) as caught:
        store.teachers["plain"].peak([0])
    sentence(caught.value)


def test_a_peak_that_is_passed_is_looked_at_though_it_is_not_kept(tmp_path: Path) -> None:
    with known.begin(tmp_path / "s").capture("t", provenance={}, encoding=known.encoding()) as capture:
        logits = known.centred()[0, :8]
        with pytest.raises(LogitStoreError, match="float32 of shape"):
            capture.write(range(8), logits, peak=np.zeros(3, np.float32))
        with pytest.raises(BadLogitsError, match="a finite peak"):
            capture.write(range(8), logits, peak=np.full(8, np.inf, np.float32))
        capture.write(range(8), logits, peak=np.zeros(8, np.float32))


# Versions


def test_only_such_a_part_states_the_new_version(whole: Path, tmp_path: Path) -> None:
    plain = stores.make(tmp_path / "plain").path
    for path, wanted in ((whole, b'"format_version":"1.1"'), (plain, b'"format_version":"1.0"')):
        assert b'"format_version":"1.0"' in (path / "zarr.json").read_bytes()
        assert b'"format_version":"1.0"' in (path / "samples/zarr.json").read_bytes()
        for part in (path / "teachers").iterdir():
            assert part.name == "zarr.json" or wanted in (part / "zarr.json").read_bytes()


def test_a_reader_of_format_1_0_lists_it_and_reads_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Callable[..., None]
) -> None:
    store = known.make(tmp_path / "s")
    with store.capture("half", provenance={}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, known.known_logits()[0, rows.start : rows.stop])
    monkeypatch.setattr(sealed_part, "FEATURES", frozenset({ERROR_BUDGET, TOP_K}))
    old = open_store(tmp_path / "s")
    assert list(old.teachers) == ["plain", "peaked", "turned", "half"]
    assert old.teachers["half"].read(slice(None)).shape == (known.ROWS, known.CLASSES)
    with pytest.raises(UnsupportedFeature) as caught:
        _ = old.teachers["plain"]
    sentence(caught.value)
    assert str(caught.value).count("\n") == 0
    record, errors = describe(old)
    assert [one["part"] for one in record["unreadable"]] == [
        f"teachers/{n}" for n in old.teachers if n != "half"
    ]
    assert errors == []


def test_the_form_is_that_of_its_arrays() -> None:
    from logitstore.storage.format.layouts import form_of

    assert form_of(CAPTURE, ["codes", "error", "escape"]) == "transform"
    assert form_of(CAPTURE, ["index", "error"]) == TOP_K
    assert form_of("clustering", ["codes"]) == "clustering"
