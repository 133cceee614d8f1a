"""Captures whose columns were written in another order: every way to read them gives the store's order.

The law compares each capture with one of the same logits whose columns were written in order: bit for bit, but for the
figures of a tail, which are sums in the order of the columns.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import stores
from support.encoded import ENCODINGS
from support.stores import Teacher

from logitstore.pipeline.losses import soft_targets
from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.errors import ConfigError, SpecMismatch
from logitstore.storage.parts.reader import CaptureReader
from logitstore.storage.parts.writer import CaptureWriter

ROWS, VIEWS, TEMPERATURE = 21, 2, 2.0
KINDS = {**ENCODINGS, "bits": "float32"}
"""Encodings, by the beginning of a capture's name."""
number = itertools.count()


def written(folder: Path, logits: NDArray[np.float32], order: list[int], kinds: list[str]) -> Store:
    """Make a store of the same logits twice for each kind: in order, and with the columns of `order`.

    Top-k captures are written as other writers of the format may, their columns as they are given.
    """
    store = stores.make(
        folder / f"{next(number)}.zarr", rows=ROWS, classes=logits.shape[2], teachers={}, names=False
    ).store
    inputs = stores.some_inputs(ROWS)
    with mock.patch("os.fsync"), mock.patch.object(CaptureWriter, "_order_kept", lambda *_: None):
        for kind in kinds:
            for name, classes in ((f"{kind}-plain", None), (f"{kind}-moved", tuple(order))):
                teacher = Teacher(VIEWS, KINDS[kind], classes=classes)
                given_logits = logits if classes is None else logits[:, :, order]
                stores.write_capture(store, name, given_logits, teacher, inputs)
    return open_store(store.path)


def ways(store: Store, name: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the logits of a capture by every way to read them: (view, row, class)."""
    capture = store.teachers[name]
    views = range(VIEWS)
    yield "read", np.stack([capture.read(slice(None), view, TEMPERATURE) for view in views])
    some = np.array([0, 3, 3, 9, 20])
    yield "rows", np.stack([capture.read(some, view, TEMPERATURE) for view in views])
    yield (
        "stored",
        np.stack(
            [
                capture.encoding.decode(capture.read_stored(slice(None), view), capture.shape[2], TEMPERATURE)
                for view in views
            ]
        ),
    )
    yield "dask", capture.dask(TEMPERATURE).compute(scheduler="synchronous")
    for decode in (True, False):
        arguments = {"teachers": [name], "views": "all", "inputs": False, "seed": 3, "decode": decode}
        stream = store.stream(5, temperature=TEMPERATURE, **arguments)
        if decode:
            yield "stream", np.concatenate([batch.logits[name] for batch in stream])
        batches = [batch.teacher_logits(TEMPERATURE)[name].numpy() for batch in TorchStream(stream)]
        yield f"tensors, decode={decode}", np.concatenate(batches)


def distinct_logits(classes: int, seed: int) -> NDArray[np.float32]:
    """Return logits (view, row, class) in eighths, no two of a row alike: which of equal ones is kept is no matter here."""
    random = np.random.default_rng(seed)
    numbers = np.argsort(random.random((VIEWS, ROWS, 8 * classes)), axis=2)[:, :, :classes]
    return (numbers / 8).astype(np.float32)


@settings(max_examples=6, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # an example takes a second
@given(st.data())
def test_every_way_to_read_gives_the_store_s_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    classes = data.draw(st.integers(4, 12), label="classes")
    order = data.draw(st.permutations(range(classes)), label="order")
    kind = data.draw(st.sampled_from(sorted(KINDS)), label="kind")
    store = written(tmp_path_factory.mktemp("order"), distinct_logits(classes, classes), order, [kind])
    moved = store.teachers[f"{kind}-moved"]
    assert moved.classes.tolist() == list(range(classes))
    assert moved.has_all_classes
    compare = same_tail if kind == "largest" else np.array_equal
    for one, other in zip(ways(store, f"{kind}-plain"), ways(store, f"{kind}-moved"), strict=True):
        assert compare(one[1], other[1]), one[0]


def same_tail(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return np.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_law_sees_columns_that_are_not_moved(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: without the guard, every way gives other numbers."""
    monkeypatch.setattr(CaptureReader, "_put_in_order", lambda *_: None)
    logits = distinct_logits(6, 5)
    store = written(tmp_path, logits, [3, 1, 4, 5, 0, 2], [kind])
    for plain, moved in zip(ways(store, f"{kind}-plain"), ways(store, f"{kind}-moved"), strict=True):
        assert not np.array_equal(plain[1], moved[1]), plain[0]


def test_many_columns_are_moved_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitstore.storage.parts.reader._MOVED", 12)  # two rows of six classes
    logits = distinct_logits(6, 1)
    store = written(tmp_path, logits, [5, 4, 3, 2, 1, 0], ["plain"])
    plain, moved = (store.teachers[f"plain-{which}"].read(slice(None)) for which in ("plain", "moved"))
    assert np.array_equal(plain, moved)


# Labels and ensembles


def good_teachers(folder: Path, **captures: list[int] | None) -> Store:
    """Make a store of captures of one good teacher, each with the columns of some classes; None for all in order."""
    labels = np.arange(60) % 5
    logits = (6 * np.eye(5)[labels] + np.random.default_rng(0).normal(0, 0.1, (60, 5))).astype(np.float32)
    with mock.patch("os.fsync"):
        store = create_store(
            folder / "s.zarr", num_classes=5, labels=labels, digests=np.arange(60, dtype=np.uint64)
        )
        for name, classes in captures.items():
            columns = np.arange(5) if classes is None else np.maximum(classes, 0)
            with store.capture(name, provenance={}, classes=classes) as capture:
                for rows in capture.missing_blocks():
                    capture.write(rows, logits[rows.start : rows.stop, columns])
    return open_store(store.path)


def test_of_equal_logits_a_top_k_capture_keeps_the_class_of_the_lower_number(tmp_path: Path) -> None:
    """Whatever the order of the columns: teachers of half precision have many equal logits."""
    rng = np.random.default_rng(3)
    logits = rng.integers(0, 3, (40, 6)).astype(np.float32)
    store = create_store(tmp_path / "s.zarr", num_classes=6, digests=np.arange(40, dtype=np.uint64))
    for name, classes in (("plain", range(6)), ("moved", [3, 1, 4, 5, 0, 2])):
        with store.capture(name, provenance={}, encoding={"top_k": 2}, classes=list(classes)) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, logits[rows.start : rows.stop, list(classes)])
    plain, moved = store.teachers["plain"], store.teachers["moved"]
    assert moved.classes.tolist() == [0, 1, 2, 3, 4, 5]
    ranked = [one.read_ranked(slice(None), temperature=1.0) for one in (plain, moved)]
    assert np.array_equal(*ranked)
    assert (ranked[1].argmax(axis=1) == logits.argmax(axis=1)).all()
    # Control: there are rows with several largest logits.
    assert ((logits == logits.max(axis=1, keepdims=True)).sum(axis=1) > 1).any()


def test_targets_of_one_teacher_and_of_the_mean_meet_their_labels(tmp_path: Path) -> None:
    store = good_teachers(tmp_path, plain=None, moved=[3, 1, 4, 0, 2])
    for batch in TorchStream(store.stream(16, inputs=False)):
        assert set(batch.logits) == {"plain", "moved"}
        for targets in (
            soft_targets(batch.logits, 1.0),
            *(soft_targets(z, 1.0) for z in batch.logits.values()),
        ):
            assert (targets.argmax(1) == batch.labels).all()


def test_a_capture_of_some_classes_is_not_mistaken_for_one_of_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = good_teachers(tmp_path, plain=None, few=[4, 1, 2], five=[4, 1, 2, 0, -1])
    begun = store.capture("begun", provenance={}, views=2)
    begun.write(range(60), np.zeros((60, 5), np.float32))
    assert list(next(iter(store.stream(16))).logits) == ["plain"]
    assert "teachers/begun is not streamed: it is unfinished" in caplog.text
    assert "teachers/few is not streamed: of the store it has 3 classes alone" in caplog.text
    for name, found in (
        ("few", "3 classes"),
        ("five", "4 classes and a dustbin class"),
    ):
        with pytest.raises(
            ConfigError, match=f"teachers/{name}: expected a capture of all 5 classes .* found {found};"
        ):
            store.stream(16, teachers=["plain", name])
    batch = next(iter(store.stream(16, teachers=["plain", "few"], columns="own")))
    few = store.teachers["few"]
    assert few.classes.tolist() == [4, 1, 2]
    assert np.allclose(
        np.diff(batch.logits["few"], axis=1),
        np.diff(batch.logits["plain"][:, few.classes], axis=1),
        atol=0.02,
    )
    with pytest.raises(ConfigError, match="columns: expected 'all' or 'own', found 'any'"):
        store.stream(16, columns="any")


def test_specialists_of_equally_many_classes_are_streamed_apart(tmp_path: Path) -> None:
    """Both have three columns; nothing would tell their classes apart."""
    store = good_teachers(tmp_path, plain=None)
    head = {"head": {"kind": "specialist"}}
    with mock.patch("os.fsync"):
        for name, classes in (("one", [0, 3, -1]), ("two", [1, 2, -1]), ("same", [0, 3, -1])):
            with store.capture(name, provenance=head, classes=classes) as capture:
                for rows in capture.missing_blocks():
                    capture.write(rows, np.zeros((len(rows), 3), np.float32))
    for named in (["one"], ["plain", "one"], ["one", "same"]):
        assert list(next(iter(store.stream(16, teachers=named))).logits) == named
    with pytest.raises(
        ConfigError,
        match=r"teachers/two: expected the classes of teachers/one, which has as many .* found others",
    ):
        store.stream(16, teachers=["one", "two"])
    assert len(next(iter(store.stream(16, teachers=["one", "two"], columns="own"))).logits) == 2


def test_a_capture_is_left_out_only_where_its_origin_is_in_the_store(tmp_path: Path) -> None:
    """One whose origin was left behind, in another store, is the teacher itself here."""
    store = good_teachers(tmp_path, plain=None)
    made = {
        "smaller": {"derived_from": {"capture": "plain", "seal": "a"}},
        "alone": {"derived_from": {"capture": "elsewhere", "seal": "a"}},
        "combined": {"combination": {"generalist": "plain"}},
        "special": {"head": {"kind": "specialist"}},
        "other": {"head": {"kind": "linear"}, "combination": "no table"},
    }
    with mock.patch("os.fsync"):
        for name, provenance in made.items():
            with store.capture(name, provenance=provenance) as capture:
                for rows in capture.missing_blocks():
                    capture.write(rows, np.zeros((len(rows), 5), np.float32))
    assert list(next(iter(store.stream(16))).logits) == ["plain", "alone", "other"]


# Writing


@pytest.mark.parametrize(
    "classes", [[0.5, 1.0], [True, False, True, True, False], ["a", "b"], [[0, 1]], [], [0, 5], [-2, 0]]
)
def test_columns_that_are_no_class_numbers_are_refused(classes: list[object], tmp_path: Path) -> None:
    """A fraction was cut off, and a mask of booleans became the classes 1 and 0."""
    store = good_teachers(tmp_path)
    with pytest.raises(
        ConfigError, match="capture 'wide': classes: expected for each column a class from 0 to 4"
    ):
        store.capture("wide", provenance={}, classes=np.array(classes))


def test_a_capture_is_not_resumed_with_its_columns_in_another_order(tmp_path: Path) -> None:
    store = good_teachers(tmp_path)
    with contextlib.closing(store.capture("wide", provenance={}, classes=[3, 1, 4, 0, 2])) as capture:
        capture.write(range(60), np.zeros((60, 5), np.float32))
    for classes in (None, [0, 1, 2, 3, 4], [1, 3, 4, 0, 2]):
        with pytest.raises(SpecMismatch, match="teachers/wide: expected the classes with which it was begun"):
            store.capture("wide", provenance={}, classes=classes)
