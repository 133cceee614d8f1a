"""Warnings about a transfer set: each looks at what may be a mistake, and is silent about a set as it should be."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import experiments
from support.experiments import document, parsed
from support.messages import Sentences

from logitstore.pipeline.cache import set_warnings
from logitstore.pipeline.cache.set_warnings import (
    odd_inputs,
    warn_of_absent_classes,
    warn_of_set,
    warn_of_views,
)
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.datasets import ArrayDataset
from logitstore.pipeline.plan.stage import plan
from logitstore.pipeline.transfer import TransferRows
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadDataError, ConfigError

FROM_ONE = "no row of class 0: the labels run from 1 to 3, and labels count from 0; if yours count from 1, subtract 1 from them"

LETTERS = FROM_ONE.replace("subtract", "set first_label = 1 in args, or subtract")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def rows_of(
    base: Path,
    labels: Any,
    *,
    names: list[str] | None = None,
    table: dict[str, Any] | None = None,
    **args: Any,
) -> TransferRows:
    """The rows of an `.npz` with these labels."""
    arrays = {"inputs": np.zeros((len(labels), 4, 4), np.uint8), "labels": np.asarray(labels)}
    np.savez(base / "set.npz", **arrays, **({} if names is None else {"class_names": names}))
    content = document()
    content["transfer_set"] = {
        "factory": "logitstore.pipeline.datasets:arrays",
        "args": {"file": "set.npz"} | args,
    } | (table or {})
    return TransferRows(parsed(content, base))


class Corrected:
    """A set whose list of labels counts from 1, and whose items count from 0, as by a `target_transform`."""

    class_names = ("ant", "bee", "cow")
    targets = (1, 2, 3)

    def __init__(self, first: int) -> None:
        self._first = first

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return np.zeros((4, 4), np.uint8), self.targets[index] - self._first


def corrected() -> Corrected:
    """Factory of an experiment."""
    return Corrected(1)


def test_labels_that_the_items_correct_are_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = document()
    content["transfer_set"] = {"factory": f"{__name__}:corrected"}
    warn_of_set(TransferRows(parsed(content, tmp_path)))
    assert warnings_of(caplog) == []
    warn_of_absent_classes(np.array(Corrected.targets), 3, Corrected.class_names)  # control
    assert warnings_of(caplog)


@pytest.mark.parametrize(
    ("labels", "names", "args", "said"),
    [
        (
            [1, 2, 3],
            None,
            {},
            [LETTERS],
        ),
        (
            [1, 3],
            None,
            {},
            [
                LETTERS,
                "no row of 1 of 4 classes: 2",
            ],
        ),
        (
            [1, 2],
            ["ant", "bee", "cow"],
            {},
            [FROM_ONE.replace("to 3", "to 2")],
        ),
        ([0, 2, 2], ["ant", "bee", "cow"], {}, ["no row of 1 of 3 classes: 'bee'"]),
        ([0, 1, 2], ["ant", "bee", "cow"], {"subset": "0:2"}, ["no row of 1 of 3 classes: 'cow'"]),
        ([0, 1, 2], ["ant", "bee", "cow"], {"omit_classes": ["bee"]}, []),
        (
            [0, 1, 2],
            ["ant", "bee", "cow"],
            {"omit_classes": [0], "subset": "0:1"},
            ["no row of 1 of 3 classes: 'cow'"],
        ),
        ([0, 1, 2], None, {}, []),
        ([0, 1, -1], None, {}, []),
        ([1, 2, 3, -1], None, {"first_label": 1}, []),
        ([-1, -1], ["ant", "bee"], {}, []),
    ],
    ids=[
        "from one",
        "from one with a gap",
        "named from one",
        "gap",
        "subset",
        "omitted",
        "omitted and subset",
        "whole",
        "unknown",
        "first label",
        "none",
    ],
)
def test_classes_without_a_row_are_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    labels: list[int],
    names: Any,
    args: Any,
    said: list[str],
) -> None:
    warn_of_set(rows_of(tmp_path, labels, names=names, **args))
    assert warnings_of(caplog) == [f"transfer_set: {text}" for text in said]


def test_labels_that_are_no_class_are_left_to_the_check_of_each_row(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_absent_classes(np.array([0, 1, 7]), 2, ["ant", "bee"])
    assert warnings_of(caplog) == []


def test_many_absent_classes_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_absent_classes(np.array([0]), 100, None)
    assert warnings_of(caplog) == ["transfer_set: no row of 99 of 100 classes: 1, 2, 3, 4, 5, 6, 7, 8, …"]


def test_a_stated_number_of_classes_is_compared_with_the_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        rows_of(tmp_path, [1, 2, 3], table={"num_classes": 3})
    assert str(caught.value) == (
        "transfer_set.num_classes: expected 4, the number of classes from 0 to 3, the largest label, found 3; remove "
        "num_classes, set first_label = 1 in args for labels that count from 1, or give the data set class_names"
    )


@pytest.mark.parametrize(
    ("shape", "is_odd"),
    [
        ((32, 32, 3), True),
        ((32, 48, 4), True),
        ((3, 32, 32), False),
        ((3, 32, 3), False),
        ((32, 32), False),
        ((8, 32, 32), False),
    ],
)
def test_channels_last_are_told_by_the_shape(shape: tuple[int, ...], is_odd: bool) -> None:
    assert bool(odd_inputs(np.zeros((2, *shape), np.uint8))) == is_odd


@pytest.mark.parametrize(
    ("inputs", "is_odd"),
    [
        (np.full((2, 4, 4), 255, np.float32), True),
        (np.full((2, 4, 4), 1, np.float32), False),
        (np.full((2, 4, 4), 2.5, np.float32), False),
        (np.full((2, 4, 4), -3, np.float32), False),
        (np.full((2, 4), 7, np.float32), False),
        (np.full((2, 4, 4), 255, np.uint8), False),
    ],
    ids=["pixels", "zero to one", "fractions", "standardised", "features", "uint8"],
)
def test_pixels_as_floats_are_told_by_their_values(inputs: Any, is_odd: bool) -> None:
    assert bool(odd_inputs(inputs)) == is_odd


def of_my_own(labels: list[int]) -> list[Any]:
    """Return a set that keeps no array of its labels."""
    return [(np.full((4, 4), row, np.uint8), label) for row, label in enumerate(labels)]


@pytest.mark.parametrize(("labels", "number"), [([1, 2, 3] * 8, 1), ([0, 1, 2, 3] * 6, 0)])
def test_labels_of_a_set_of_ones_own_are_looked_at_once_they_are_read(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    labels: list[int],
    number: int,
) -> None:
    monkeypatch.setattr(experiments, "of_my_own", lambda: of_my_own(labels), raising=False)
    content = document()
    content["transfer_set"] = {"factory": "support.experiments:of_my_own", "num_classes": 4}
    content |= {"teacher": content["teacher"][:1], "student": []}
    content.pop("cluster")
    content.pop("evaluation_set")
    work = Workspace.of_folder(parsed(content, tmp_path), tmp_path / "out", device="cpu")
    cache(work)
    assert [text for text in warnings_of(caplog) if "class 0" in text] == [
        f"transfer_set: {FROM_ONE}"
    ] * number


def test_stage_one_and_the_plan_warn_before_a_teacher_is_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows_of(tmp_path, [1, 2, 3] * 8)
    content = document()
    content["transfer_set"] = {"factory": "logitstore.pipeline.datasets:arrays", "args": {"file": "set.npz"}}
    # A file of weights that is none: both end with an error after the warning.
    weights = {"weights": "absent.safetensors", "train": None}
    (tmp_path / "absent.safetensors").write_bytes(b"")
    content |= {
        "teacher": [{k: v for k, v in (content["teacher"][0] | weights).items() if v is not None}],
        "student": [],
    }
    content.pop("cluster")
    content.pop("evaluation_set")
    experiment = parsed(content, tmp_path)
    work = Workspace.of_folder(experiment, tmp_path / "out", device="cpu")
    for start in (lambda: cache(work), lambda: plan(experiment, work.path, work.models, device="cpu")):
        with pytest.raises(BadDataError, match=r"absent\.safetensors"):
            start()
        assert f"transfer_set: {LETTERS}" in warnings_of(caplog)
        caplog.clear()


def test_a_part_of_a_set_keeps_what_is_known_of_the_whole() -> None:
    whole = ArrayDataset(np.zeros((4, 2), np.uint8), np.array([0, 1, 2, 2]))
    part = whole.selected(omit_classes=[1]).selected(omit_classes=[0])
    assert (part.is_numbered, part.omitted) == (True, (1, 0))
    named = ArrayDataset(np.zeros((4, 2), np.uint8), np.array([0, 1, 2, 2]), ["a", "b", "c"])
    assert (named.selected().is_numbered, named.selected().omitted) == (False, ())


@pytest.mark.parametrize(("stored", "most"), [(True, 0), (False, 0), (True, 1)])
def test_many_bytes_of_stored_inputs_are_warned_of_once_beforehand(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    sentence: Sentences,
    stored: bool,
    most: int,
) -> None:
    rows = rows_of(tmp_path, [0, 1, 2, 3] * 8)
    content = document()
    content["transfer_set"] = {
        "factory": "logitstore.pipeline.datasets:arrays",
        "args": {"file": "set.npz"},
        "store_inputs": stored,
    }
    content |= {"teacher": content["teacher"][:1], "student": []}
    content.pop("cluster")
    content.pop("evaluation_set")
    experiment = parsed(content, tmp_path)
    monkeypatch.setattr(set_warnings, "LARGE_INPUTS", len(rows) * rows.first.nbytes + most)
    work = Workspace.of_folder(experiment, tmp_path / "out", device="cpu")
    for start in (lambda: plan(experiment, work.path, work.models, device="cpu"), lambda: cache(work)):
        caplog.clear()
        start()
        said = [text for text in warnings_of(caplog) if "store_inputs" in text]
        assert len(said) == (stored and not most)
        for text in said:
            sentence(text)
    caplog.clear()
    cache(Workspace.of_folder(experiment, tmp_path / "out", device="cpu"))
    assert not warnings_of(caplog), "the store is there"


@pytest.mark.parametrize(("scale", "is_odd"), [(1, True), (1 / 255, False)], ids=["to 255", "to 1"])
def test_views_that_are_pixels_as_floats_are_warned_of(
    scale: float, is_odd: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    warn_of_views(pixels.astype(np.float32) * np.float32(scale), pixels)
    assert ("cache.augment: views: inputs of float32 hold whole numbers" in caplog.text) is is_odd


def test_what_the_set_was_warned_of_is_not_said_again(caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.full((2, 3, 8, 8), 200, np.float32)
    warn_of_views(pixels, pixels)
    assert not caplog.records
