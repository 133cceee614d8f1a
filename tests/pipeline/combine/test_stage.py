"""The combination in a store: that of whole arrays, the same bytes after any kill, never of strangers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import combinations, stores
from support.combinations import BLOCK_ROWS, CLASSES, DISJOINT, ROWS, SETS, VIEWS, Made, head, write

from logitstore.pipeline.combine import reference as combination_reference
from logitstore.pipeline.combine import stage
from logitstore.pipeline.combine.stage import combine
from logitstore.pipeline.combine.todo import plan_combination
from logitstore.pipeline.compress.stage import compress
from logitstore.storage.api import open_store
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.errors import (
    ConfigError,
    LogitStoreError,
    NameTaken,
    PartNotFound,
    RowMismatch,
    SpecMismatch,
    StoreIncomplete,
)
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.part_reader import PartReader
from logitstore.storage.parts.writer import CaptureWriter

TRANSFORM = {"transform": {"max_kl": 1e-2, "rows": 60}}
"""Calibrated with fewer rows than the views have together."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store with captures to combine, not to be changed."""
    return combinations.make(tmp_path_factory.mktemp("combine") / "store.zarr")


@pytest.fixture
def made(prepared: Made, tmp_path: Path) -> Iterator[Made]:
    """A copy of it, to be changed; nothing waits for a disk."""
    shutil.copytree(prepared.path, tmp_path / "store.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda *_: None)
        yield Made(open_store(tmp_path / "store.zarr"), prepared.inputs, dict(prepared.logits))


def combined(made: Made, name: str = "combined", **wish: Any) -> Any:
    """Combine all of `SETS`, unless told."""
    wish = {"generalist": "wide", "specialists": list(SETS), **wish}
    return combine(made.store, name=name, **wish)


@pytest.mark.parametrize("top", [1, 3])
def test_every_view_is_what_whole_arrays_give(made: Made, top: int) -> None:
    report = combined(made, top=top, encoding="float32")
    capture = made.store.teachers["combined"]
    assert capture.shape == (VIEWS, ROWS, CLASSES)
    assert capture.classes.tolist() == list(range(CLASSES))
    wide = made.store.teachers["wide"]
    for view in range(VIEWS):
        everything = slice(None)
        found = capture.read(everything, view) + capture.peak(everything, view)[:, None]
        np.testing.assert_allclose(np.exp(found), made.expected(SETS, view, top), atol=1e-6)
        np.testing.assert_array_equal(capture.seen(everything, view), wide.seen(everything, view))
    assert report.made
    assert sum(report.active.values()) == VIEWS * ROWS
    assert len(report.active) >= 3  # none, one and several
    assert verify(made.path, deep=True).problems == []
    assert report.digest == made.opened().digest


def test_disjoint_sets_are_combined_the_other_way_as_well(made: Made) -> None:
    combined(made, specialists=list(DISJOINT), direction="qp", encoding="float32")
    capture = made.store.teachers["combined"]
    q = stores.softmax(capture.read(slice(None)), 1.0)
    np.testing.assert_allclose(q, made.expected(DISJOINT, direction="qp"), atol=1e-6)
    assert np.abs(q - made.expected(DISJOINT)).max() > 1e-3


def test_gradient_descent_writes_nearly_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combination_reference, "STEPS", 300)
    combined(made, method="gradient_descent", encoding="float32")
    q = stores.softmax(made.store.teachers["combined"].read(slice(None)), 1.0)
    np.testing.assert_allclose(q, made.expected(SETS), atol=1e-2)


def test_its_identity_names_what_it_was_made_from(made: Made) -> None:
    combined(made)
    spec = made.store.teachers["combined"].part.spec
    sealed = {name: {"capture": name, "seal": made.store.teachers[name].digest} for name in ("wide", *SETS)}
    assert spec.identity == {
        "combination": {
            "generalist": sealed["wide"],
            "specialists": [sealed[name] for name in SETS],
            "top": 1,
            "direction": "pq",
            "method": "fixed_point",
        },
        "augmentation": dict(stores.AUGMENTATION),
        "transfer_set": None,
        "encoding": {"kind": "float16"},
        "views": VIEWS,
    }
    assert set(spec.notes) == {"python", "numpy"}


@pytest.mark.parametrize("encoding", ["float16", "float32", {"max_kl": 1e-2}, TRANSFORM])
def test_any_encoding_can_be_asked_for(made: Made, encoding: Any) -> None:
    combined(made, encoding=encoding)
    capture = made.store.teachers["combined"]
    assert capture.encoding.kind == encoding_named(encoding).kind
    q = stores.softmax(capture.read(slice(None)), 1.0)
    p = made.expected(SETS)
    divergence = (p * (np.log(p) - np.log(q))).sum(axis=1)
    assert divergence.max() < (1e-2 if isinstance(encoding, dict) else 1e-5)


def test_students_stream_it_beside_other_captures(made: Made) -> None:
    combined(made)
    stream = made.store.stream(
        batch_size=5, teachers=["wide", "combined"], views=1, inputs=False, shuffle=False
    )
    rows = np.concatenate([batch.rows for batch in stream])
    stream.set_epoch(0)
    logits = np.concatenate([batch.logits["combined"] for batch in stream])
    assert sorted(rows.tolist()) == list(range(ROWS))
    np.testing.assert_allclose(stores.softmax(logits, 1.0), made.expected(SETS, view=1)[rows], atol=1e-2)


def test_a_stream_without_names_has_the_captures_of_teachers_alone(made: Made) -> None:
    combined(made)
    compress(made.store, "combined", "smaller", {"max_kl": 1e-2})

    def streamed(**names: Any) -> list[str]:
        return list(next(iter(made.store.stream(5, inputs=False, **names))).logits)

    assert streamed() == ["wide"]
    assert streamed(teachers=["combined", "s-0"]) == ["combined", "s-0"]
    # What somebody else says of a capture in the same words makes it neither.
    write(made, "own", None, {"teacher": {}, "head": "linear", "combination": "the mean of three"})
    write(made, "plain", None, {"teacher": {}, "head": {"kind": "softmax"}})
    assert streamed() == ["wide", "own", "plain"]


def test_specialists_with_fewer_views_leave_as_many(made: Made) -> None:
    write(made, "short", (0, 3, -1), {"head": head(made.store, 7)}, views=1)
    combined(made, specialists=["short"])
    assert made.store.teachers["combined"].num_views == 1


# What is done


@pytest.mark.parametrize("blocks", [0, 1, 5, 11])
def test_killed_anywhere_it_ends_with_the_same_bytes(
    made: Made, blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made.path, tmp_path / "other.zarr")
    other = Made(open_store(tmp_path / "other.zarr"), made.inputs, made.logits)
    combined(other)
    whole, calls = stage.combine_rows, []

    def dying(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > blocks:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(stage, "combine_rows", dying)
    with pytest.raises(KeyboardInterrupt):
        combined(made)
    monkeypatch.setattr(stage, "combine_rows", whole)
    again = Made(made.opened(), made.inputs, made.logits)
    assert ("combined" in again.store.unsealed() or "teachers/combined" in again.store.unsealed()) == (
        blocks > 0
    )
    report = combined(again)
    assert report.made
    assert stores.tree(made.path) == stores.tree(tmp_path / "other.zarr")


def test_what_is_done_is_not_done_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_combination(made.store, generalist="wide", specialists=list(SETS), name="combined")
    assert plan.lines == ["make capture combined from wide and 3 specialists"]
    assert stores.tree(made.path) == stores.tree(made.path)
    combined(made)
    before = stores.tree(made.path)
    monkeypatch.setattr(stage, "combine_rows", None)
    for order in (list(SETS), list(reversed(SETS)), ["s-*"]):
        report = combined(made, specialists=order)
        assert not report.made
        assert report.active == {}
    assert stores.tree(made.path) == before


def test_a_plan_writes_nothing(made: Made) -> None:
    before = stores.tree(made.path)
    plan_combination(made.store, generalist="wide", specialists=list(SETS), name="combined")
    assert stores.tree(made.path) == before


def test_a_pattern_stands_for_the_captures_that_it_matches(made: Made) -> None:
    assert combined(made, specialists=["s-?", "d-1"]).specialists == ("s-0", "s-1", "s-2", "d-1")


def test_a_pattern_leaves_out_the_new_capture_and_other_combinations(made: Made) -> None:
    names = ("s-0", "s-1", "s-2")
    assert combined(made, "s-all", specialists=["s-*"]).specialists == names
    again = combined(made, "s-all", specialists=["s-*"])
    assert not again.made and again.specialists == names
    assert combined(made, "s-others", specialists=["s-*"], top=2).specialists == names
    with pytest.raises(ConfigError, match="s-all: expected columns for some of the classes"):
        combined(made, "new", specialists=["s-0", "s-all"])  # a plain name stays what it is
    with pytest.raises(ConfigError, match=r"no combinations, found one of s-all alone; the captures are "):
        combined(made, "new", specialists=["s-al*"])
    with pytest.raises(
        ConfigError, match=r"specialist 's-\[01\]\*': expected a pattern .* found one of none"
    ):
        combined(made, "new", specialists=["s-[01]*"])


def test_no_more_than_a_block_is_read_at_a_time(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    read, most = PartReader.read, []

    def watched(reader: PartReader, array: str, rows: Any, view: int = 0) -> Any:
        values = read(reader, array, rows, view)
        most.append(len(values))
        return values

    monkeypatch.setattr(PartReader, "read", watched)
    combined(made)
    assert max(most) == BLOCK_ROWS


def test_a_specialist_is_asked_for_its_active_rows_alone(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    read, asked = PartReader.read, []

    def watched(reader: PartReader, array: str, rows: Any, view: int = 0) -> Any:
        if array == "logits" and reader.part.name == "teachers/s-1" and view == 0:
            asked.extend(np.asarray(rows).tolist())
        return read(reader, array, rows, view)

    monkeypatch.setattr(PartReader, "read", watched)
    combined(made)
    likeliest = made.logits["wide"][0].argmax(axis=1)
    assert sorted(asked) == np.flatnonzero(np.isin(likeliest, SETS["s-1"])).tolist()


def test_progress_counts_the_rows_of_all_views(made: Made) -> None:
    said: list[tuple[str, int, int]] = []
    combined(made, progress=lambda task, done, total, *more: said.append((task, done, total)))
    assert said[0] == ("combine combined", 0, VIEWS * ROWS)
    assert said[-1] == ("combine combined", VIEWS * ROWS, VIEWS * ROWS)


# Bad input


def refused(made: Made, kind: type[LogitStoreError], said: str, **wish: Any) -> None:
    """The call is refused, in a line, and nothing is written."""
    before = stores.tree(made.path)
    with pytest.raises(kind) as caught:
        combined(made, **wish)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert stores.tree(made.path) == before


@pytest.mark.parametrize(
    ("wish", "kind", "said"),
    [
        ({"generalist": "no"}, PartNotFound, "teachers/no: expected one of the sealed parts"),
        (
            {"generalist": "s-0"},
            ConfigError,
            "s-0: expected a generalist: all 9 classes, found a dustbin",
        ),
        ({"specialists": ["no"]}, PartNotFound, "teachers/no: expected one of the sealed parts"),
        (
            {"specialists": ["no-*"]},
            ConfigError,
            "specialist 'no-*': expected a pattern of some of the captures",
        ),
        (
            {"specialists": []},
            ConfigError,
            "specialists: expected one or more captures, each once, found none",
        ),
        ({"specialists": ["s-0", "s-*"]}, ConfigError, "found s-0 twice; name each specialist once"),
        ({"specialists": ["wide"]}, ConfigError, "wide: expected columns for some of the classes 0 to 8"),
        ({"name": "s-0"}, NameTaken, "expected a name that is free, or the capture that this would make"),
        ({"name": "wide"}, NameTaken, "expected a name that is free"),
        ({"name": "No such"}, LogitStoreError, "the name of the new capture"),
        ({"top": 0}, ConfigError, "top: expected a number of classes from 1 to 9, found 0"),
        ({"top": 10}, ConfigError, "top: expected a number of classes from 1 to 9, found 10"),
        ({"direction": "gq"}, ConfigError, "direction: expected 'pq' or 'qp', found 'gq'"),
        ({"method": "newton"}, ConfigError, "method: expected 'fixed_point' or 'gradient_descent'"),
        (
            {"direction": "qp", "specialists": list(DISJOINT), "method": "gradient_descent"},
            ConfigError,
            "method: expected 'fixed_point' with direction 'qp', which has a closed form, found 'gradient_descent'",
        ),
        ({"direction": "qp"}, ConfigError, "direction 'qp': expected disjoint sets and top = 1"),
        (
            {"direction": "qp", "specialists": list(DISJOINT), "top": 2},
            ConfigError,
            "one active specialist alone, found top = 2; take direction 'pq'",
        ),
        ({"encoding": "float8"}, ConfigError, "encoding: expected 'float16', 'float32'"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_a_line(
    made: Made, wish: dict[str, Any], kind: type[LogitStoreError], said: str
) -> None:
    refused(made, kind, said, **wish)


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"kind": "softmax"}, ConfigError, "expected a specialist, whose provenance has a head"),
        (
            {"dustbin_corrected": False},
            ConfigError,
            "found dustbin_corrected = False; add log(s(1-π)/((1-s)π))",
        ),
        ({"dustbin_corrected": None}, ConfigError, "found dustbin_corrected = None"),
        ({"generalist": None}, SpecMismatch, "expected a specialist of teachers/wide (sha256:"),
        (
            {"generalist": {"capture": "wide", "seal": f"sha256:{'1' * 64}"}},
            SpecMismatch,
            "of this store, found one of wide (sha256:111111111111…); name the generalist that it was made from",
        ),
    ],
)
def test_a_stranger_is_refused(
    made: Made, changed: dict[str, Any], kind: type[LogitStoreError], said: str
) -> None:
    write(made, "odd", (0, 3, -1), {"head": head(made.store, 9, **changed)})
    refused(made, kind, said, specialists=["s-0", "odd"])


def test_a_capture_that_says_nothing_of_its_head_is_refused(made: Made) -> None:
    write(made, "odd", (0, 3, -1), {})
    refused(made, ConfigError, "odd: expected a specialist, whose provenance has a head", specialists=["odd"])
    remedy = "{'capture': 'wide', 'seal': store.teachers['wide'].digest}, …}}"
    refused(made, ConfigError, remedy, specialists=["odd"])


@pytest.mark.parametrize("classes", [(0, 3), tuple(range(9)), (*range(9), -1)])
def test_columns_that_are_no_specialists_are_refused(made: Made, classes: tuple[int, ...]) -> None:
    write(made, "odd", classes, {"head": head(made.store, 9)})
    refused(made, ConfigError, "odd: expected columns for some of the classes", specialists=["odd"])


def test_a_specialist_of_another_generalist_is_refused(made: Made) -> None:
    write(made, "other", None, {"teacher": {"name": "other"}})
    refused(made, SpecMismatch, "s-0: expected a specialist of teachers/other (sha256:", generalist="other")


def test_a_specialist_of_another_store_is_refused(made: Made, tmp_path: Path) -> None:
    """The same names, numbers and sets; the generalist of the other store has other bytes."""
    inputs = made.inputs[::-1].copy()
    other = combinations.Made(
        stores.create_store(tmp_path / "o", num_classes=CLASSES, inputs=inputs, block_rows=8), inputs
    )
    write(other, "wide", None, {"teacher": {"name": "wide"}})
    write(other, "s-0", (0, 1, 2, -1), {"head": head(made.store, 0)})
    with pytest.raises(
        SpecMismatch, match=r"s-0: expected a specialist of teachers/wide \(sha256:.* of this store"
    ):
        combined(other, specialists=["s-0"])


def test_a_specialist_that_saw_other_views_is_refused(made: Made) -> None:
    augmentation = {**stores.AUGMENTATION, "seed": 5}
    write(made, "odd", (0, 3, -1), {"head": head(made.store, 9), "augmentation": augmentation})
    refused(made, SpecMismatch, "expected captures of the same augmented inputs", specialists=["odd"])


def test_a_specialist_that_saw_other_inputs_is_refused(made: Made) -> None:
    shown = made.inputs.copy()
    shown[19] += 1
    # As a store of an earlier version may hold it: today its writer compares what a teacher saw.
    with mock.patch.object(CaptureWriter, "_compares", lambda self, view: False):
        write(made, "odd", (0, 3, -1), {"head": head(made.store, 9)}, shown=shown)
    with pytest.raises(
        RowMismatch, match=r"teachers/odd, view [01], row 19: expected the input that wide saw"
    ):
        combined(made, specialists=["odd"])


def test_a_specialist_that_is_not_sealed_is_refused(made: Made) -> None:
    provenance = {"augmentation": dict(stores.AUGMENTATION), "head": head(made.store, 9)}
    writer = made.store.capture("odd", provenance=provenance, views=VIEWS, classes=(0, 3, -1))
    writer.write(range(8), np.zeros((8, 3), np.float32), seen=made.store.samples.digests[:8])
    writer.close()
    refused(made, StoreIncomplete, "odd: expected a sealed part", specialists=["odd"])


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (
            {"top": 2},
            "expected combination.top = 1, with which it was combined, found 2; choose another name",
        ),
        ({"method": "gradient_descent"}, "combination.method = 'fixed_point'"),
        (
            {"specialists": ["s-0", "s-1"]},
            "expected 3 specialists (s-0, s-1, s-2), with which it was combined, found 2 (s-0, s-1); choose another",
        ),
        (
            {"specialists": ["s-0", "s-1", "d-1"]},
            "with which it was combined, found d-1 in the place of s-2;",
        ),
        ({"encoding": "float32"}, "encoding.kind = 'float16'"),
    ],
)
def test_a_name_of_another_combination_is_refused(made: Made, wish: dict[str, Any], said: str) -> None:
    combined(made)
    refused(made, SpecMismatch, said, **wish)
