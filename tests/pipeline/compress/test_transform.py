"""Captures compressed by a transform: within their budget of the source, from a draw of its rows."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import stores
from support.stores import Teacher

from logitstore.pipeline.calibration_rows import capture_rows, drawn_of_views
from logitstore.pipeline.compress.stage import compress
from logitstore.storage.api import Store, open_store
from logitstore.storage.encodings.transform import Transform
from logitstore.storage.errors import BadLogitsError, ConfigError
from logitstore.storage.integrity.verify import verify

ROWS, BLOCK_ROWS, CLASSES, VIEWS, RANK = 300, 64, 60, 2, 8
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
WISH = {"transform": {"max_kl": 1e-2, "rows": 100}}
SOURCES: dict[str, Any] = {"half": "float16", "full": "float32", "codes": {"max_kl": 1e-3}}


def some_logits(classes: int = CLASSES, views: int = VIEWS) -> NDArray[np.float32]:
    """Logits of a linear map of few features: (views, rows, classes)."""
    draw = np.random.default_rng(0)
    features = draw.normal(0, 2, (views, ROWS, RANK))
    return (features @ draw.normal(0, 1, (RANK, classes)) + draw.normal(0, 9, (views, ROWS, 1))).astype("f4")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a capture of each source; not to be changed."""
    path = tmp_path_factory.mktemp("template") / "store.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        made = stores.make(path, rows=ROWS, classes=CLASSES, block_rows=BLOCK_ROWS, teachers={})
        for name, encoding in SOURCES.items():
            teacher = Teacher(VIEWS, encoding, augmented=True)
            stores.write_capture(made.store, name, some_logits(), teacher, stores.some_inputs(ROWS))
        constant = Teacher(1, "float16")
        dead = np.zeros((1, ROWS, CLASSES), np.float32)
        stores.write_capture(made.store, "dead", dead, constant, stores.some_inputs(ROWS))
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy of it."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    return open_store(shutil.copytree(template, tmp_path / "store.zarr"))


def kl(exact: NDArray[Any], decoded: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """KL(exact ‖ decoded) of each row as it is defined, in float64."""
    p, q = stores.softmax(exact, temperature), stores.softmax(decoded, temperature)
    return np.asarray((p * np.log(p / q)).sum(axis=-1))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("max_kl", [1e-1, 1e-3])
def test_no_row_exceeds_the_budget_to_its_source(store: Store, source: str, max_kl: float) -> None:
    report = compress(store, source, "small", {"transform": {"max_kl": max_kl, "rows": 100}})
    small, large = store.teachers["small"], store.teachers[source]
    assert [one.temperature for one in report.fidelity] == list(TEMPERATURES)
    for one in report.fidelity:
        worst = max(
            kl(large.read(slice(None), view), small.read(slice(None), view), one.temperature).max()
            for view in range(VIEWS)
        )
        assert worst <= one.max * (1 + 1e-4) <= max_kl
        # The source has an error of its own: nothing is promised of the teacher.
        assert (one.bound, one.bound_to_source) == (None, max_kl)
    assert report.row_bytes < report.source_row_bytes
    assert report.basis_bytes == sum(a.nbytes for a in small.encoding.basis.arrays().values())  # type: ignore[attr-defined]
    np.testing.assert_array_equal(small.seen(slice(None), 1), large.seen(slice(None), 1))
    assert verify(store.path, deep=True).exit_code == 0


def test_the_basis_is_made_of_a_draw_of_all_views(store: Store) -> None:
    compress(store, "full", "small", WISH)
    encoding = store.teachers["small"].encoding
    assert isinstance(encoding, Transform) and encoding.basis is not None
    plain, full = Transform(1e-2, rows=100), store.teachers["full"]
    rows = capture_rows(full, plain)
    assert len(rows) == 100
    assert encoding.basis.digest == plain.calibrated(rows, "x").basis.digest  # type: ignore[union-attr]
    for view, chosen in drawn_of_views(VIEWS, ROWS, plain):
        assert (full.read(chosen, view)[:, None] == rows).all(axis=2).any(axis=1).all()
    # Control: other rows give another basis.
    other = plain.calibrated(full.read(slice(100)), "x").basis
    assert other is not None and other.digest != encoding.basis.digest


def test_a_peak_is_kept_on_request_alone(store: Store) -> None:
    compress(store, "full", "small", WISH)
    assert not store.teachers["small"].has_peak
    compress(store, "full", "whole", {"transform": {**WISH["transform"], "peak": True}})
    for view in range(VIEWS):
        np.testing.assert_array_equal(
            store.teachers["whole"].peak(slice(None), view), store.teachers["full"].peak(slice(None), view)
        )


def test_a_source_of_some_classes_keeps_its_columns(tmp_path: Path) -> None:
    made = stores.make(tmp_path / "store.zarr", rows=ROWS, classes=CLASSES, teachers={})
    special = some_logits(5, 1)
    teacher = Teacher(classes=(9, 4, 0, 3, -1))
    stores.write_capture(made.store, "special", special, teacher, stores.some_inputs(ROWS))
    compress(made.store, "special", "small", WISH)
    small = made.store.teachers["small"]
    assert (small.classes.tolist(), small.shape) == ([9, 4, 0, 3, -1], (1, ROWS, 5))
    assert kl(made.store.teachers["special"].read(slice(None)), small.read(slice(None)), 1.0).max() <= 1e-2


def test_a_transform_that_gains_nothing_is_warned_of(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    made = stores.make(store.path.parent / "few.zarr", rows=ROWS, classes=3, teachers={})
    stores.write_capture(
        made.store, "full", some_logits(3, 1), Teacher(1, "float16"), stores.some_inputs(ROWS)
    )
    compress(made.store, "full", "small", {"transform": {"max_kl": 1e-6}})
    (line,) = (record.getMessage() for record in caplog.records if "gains nothing" in record.getMessage())
    assert "bytes a row with its share of the basis" in line
    caplog.clear()
    compress(store, "full", "small", WISH)  # control
    assert not [record for record in caplog.records if "gains nothing" in record.getMessage()]


@pytest.mark.parametrize(
    ("source", "error"), [("dead", BadLogitsError), ("small", ConfigError)], ids=["dead", "transform"]
)
def test_what_has_no_basis_of_its_own_leaves_nothing(
    store: Store, source: str, error: type[Exception], sentence: Any
) -> None:
    compress(store, "full", "small", WISH)
    before = stores.tree(store.path)
    with pytest.raises(error) as caught:
        compress(store, source, "other", WISH)
    sentence(caught.value)
    assert stores.tree(store.path) == before
