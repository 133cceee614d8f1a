"""Captures whose teachers saw different inputs: no reader pairs their logits, in either order of the names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import stores
from support.stores import Made, Teacher

from logitstore.pipeline.cluster.softened import softened_outputs
from logitstore.pipeline.evaluate.captures import Comparison, evaluate_captures
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import RowMismatch
from logitstore.storage.parts.journal import SealTable
from logitstore.storage.parts.reader import CaptureReader
from logitstore.storage.parts.writer import CaptureWriter

ROWS, VIEWS, ODD = 37, 3, 19
BOTH = [["wide", "odd"], ["odd", "wide"]]


def add_odd(made: Made, odd_view: int) -> None:
    """Write a capture with the augmentation of `wide`, which saw another input in one row of one view."""
    with made.store.capture(
        "odd", provenance={"augmentation": dict(stores.AUGMENTATION)}, views=VIEWS
    ) as capture:
        for view in range(VIEWS):
            shown = made.inputs if view == 0 else stores.augment(made.inputs, view, np.arange(ROWS))
            if view == odd_view:
                shown = shown.copy()
                shown[ODD] += 1
            for rows in capture.missing_blocks(view):
                part = slice(rows.start, rows.stop)
                capture.write(rows, made.logits["wide"][view, part], view=view, seen=digest_rows(shown[part]))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Make a store of `wide` and `deep`, which saw the same views."""
    teachers = {name: Teacher(views=VIEWS, augmented=True) for name in ("wide", "deep")}
    return stores.make(tmp_path / "s.zarr", rows=ROWS, block_rows=8, teachers=teachers, names=False)


def refused(call: Callable[[], Any], names: list[str], view: int) -> None:
    with pytest.raises(RowMismatch) as caught:
        call()
    first, other = names
    assert caught.value.where.endswith(f"s.zarr: teachers/{other}, view {view}, row {ODD}")
    assert caught.value.expected.startswith(f"the input that {first} saw, with digest ")
    assert caught.value.found.endswith("(1 of 8 rows that were compared differ)")


@pytest.mark.parametrize("names", BOTH, ids=" ".join)
@pytest.mark.parametrize(
    "arguments",
    [
        {"views": "all", "inputs": False},
        {"views": "all", "augment": stores.augment},
        {"views": "cycle", "inputs": False},
        {"views": 2, "inputs": False},
    ],
    ids=["all", "augmented", "cycle", "one view"],
)
def test_a_stream_refuses_teachers_of_other_inputs(
    made: Made, names: list[str], arguments: dict[str, Any]
) -> None:
    add_odd(made, odd_view=2)
    refused(lambda: made.store.stream(teachers=names, **arguments), names, 2)
    three = [names[0], "deep", names[1]]
    with pytest.raises(RowMismatch, match=f"view 2, row {ODD}"):
        made.store.stream(teachers=three, **arguments)


def test_what_is_not_streamed_is_not_compared(made: Made) -> None:
    add_odd(made, odd_view=2)
    for arguments in ({"views": 0}, {"views": 1, "augment": stores.augment}):
        assert len(list(made.store.stream(teachers=["wide", "odd"], **arguments)))  # type: ignore[arg-type]
    assert len(list(made.store.stream(teachers=["odd"], views=2, inputs=False)))


def test_the_same_inputs_are_compared_without_reading(made: Made) -> None:
    with mock.patch.object(CaptureReader, "seen", side_effect=AssertionError("read")):
        stream = made.store.stream(views="all", inputs=False)
    assert len(list(stream))


def test_other_bytes_of_the_same_digests_pass(made: Made) -> None:
    every_block = [0, 1, 2, 3, 4]
    with mock.patch.object(SealTable, "differing_blocks", return_value=every_block):
        assert len(list(made.store.stream(views="all", inputs=False)))
        add_odd(made, odd_view=1)
        refused(
            lambda: made.store.stream(teachers=["wide", "odd"], views=1, inputs=False), ["wide", "odd"], 1
        )


def test_a_view_of_the_rows_as_they_are_is_compared_too(made: Made) -> None:
    """Refuse a store of an earlier version, too. Today its writer compares what a teacher saw."""
    with mock.patch.object(CaptureWriter, "_compares", lambda self, view: False):
        add_odd(made, odd_view=0)
    refused(lambda: made.store.stream(teachers=["wide", "odd"], views=0, inputs=False), ["wide", "odd"], 0)


@pytest.mark.parametrize("names", BOTH, ids=" ".join)
def test_an_ensemble_refuses_teachers_of_other_inputs(made: Made, names: list[str]) -> None:
    add_odd(made, odd_view=2)
    refused(lambda: softened_outputs(made.store, dict.fromkeys(names, 1.0), 2.0), names, 2)
    assert softened_outputs(made.store, {"wide": 1.0, "deep": 1.0}, 2.0).shape[0] == VIEWS


@pytest.mark.parametrize("names", BOTH, ids=" ".join)
def test_a_comparison_refuses_teachers_of_other_inputs(made: Made, names: list[str]) -> None:
    add_odd(made, odd_view=2)
    compare = [Comparison(*names, [np.array([0, 1])])]
    refused(lambda: evaluate_captures(made.store, compare, view=2), names, 2)
    assert evaluate_captures(made.store, compare, view=1).compared
    assert set(evaluate_captures(made.store, view=2).metrics) == {"wide", "deep", "odd"}  # one by one


def test_shards_of_other_chunks_differ() -> None:
    one, two = (SealTable([("seen", chunks)], 1, 2) for chunks in (1, 2))
    assert one.differing_blocks("seen", 0, one) == []
    assert one.differing_blocks("seen", 0, two) == [0, 1]
