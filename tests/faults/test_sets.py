"""A transfer set that has changed since its store was made is refused, whatever changed, however the set states itself."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import experiments
from support.experiments import document, parsed, teacher

from faults.tally import Tally, scale
from logitstore.pipeline import same_set, transfer
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.cache.todo import find_todo
from logitstore.pipeline.transfer import TransferRows
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import RowMismatch, SpecMismatch

Arrays = dict[str, Any]
Change = Callable[[Arrays, np.random.Generator, np.ndarray], None]


def label(arrays: Arrays, random: np.random.Generator, read: np.ndarray) -> None:
    """Change the label of any row."""
    row = random.integers(len(arrays["labels"]))
    arrays["labels"][row] = (arrays["labels"][row] + random.integers(1, 4)) % 4


def turned(arrays: Arrays, random: np.random.Generator, read: np.ndarray) -> None:
    """Number the classes otherwise."""
    arrays["labels"] = (arrays["labels"] + random.integers(1, 4)) % 4


def pixel(arrays: Arrays, random: np.random.Generator, read: np.ndarray) -> None:
    """Change one bit of an input that is read."""
    arrays["inputs"][random.choice(read), random.integers(4), random.integers(4)] ^= 1 << int(
        random.integers(8)
    )


def exchange(arrays: Arrays, random: np.random.Generator, read: np.ndarray) -> None:
    """Exchange two rows of different classes."""
    one = random.integers(len(arrays["labels"]))
    other = random.choice(np.flatnonzero(arrays["labels"] != arrays["labels"][one]))
    for name in ("inputs", "labels"):
        arrays[name][[one, other]] = arrays[name][[other, one]]


def names(arrays: Arrays, random: np.random.Generator, read: np.ndarray) -> None:
    """Exchange the names of two classes."""
    one, other = random.choice(4, 2, replace=False)
    arrays["class_names"][[one, other]] = arrays["class_names"][[other, one]]


def length(arrays: Arrays, random: np.random.Generator, read: np.ndarray) -> None:
    """Remove some rows at the end."""
    kept = len(arrays["labels"]) - int(random.integers(1, 9))
    for name in ("inputs", "labels"):
        arrays[name] = arrays[name][:kept]


CHANGES: dict[str, Change] = {
    change.__name__: change for change in (label, turned, pixel, exchange, names, length)
}
SETS = {
    "fingerprint": ("logitstore.pipeline.datasets:arrays", None),
    "read in full": ("support.own_sets:own", None),
    "listed labels": ("support.own_sets:listed", 0),
}
"""By kind of set: its factory, and the bytes up to which a set is read in full."""


def made(folder: Path, kind: str) -> Workspace:
    """Make the data and a store of a set."""
    experiments.write_data(folder)
    whole = document()
    content = {
        "transfer_set": {"factory": SETS[kind][0], "args": {"file": "train.npz"}},
        "teacher": [teacher("wide", train=experiments.train(epochs=1))],
        "cache": {"batch_size": 50, "block_rows": whole["cache"]["block_rows"]},
    }
    work = Workspace.of_folder(parsed(content, folder), folder / "out", device="cpu")
    with mock.patch("os.fsync"):
        cache(work)
    return work


def trials(work: Workspace, folder: Path, count: int) -> list[str]:
    """Change the set `count` times; return the changes that nobody noticed."""
    shutil.copy(folder / "train.npz", folder / "kept.npz")
    rows = TransferRows(work.experiment)
    read = np.arange(len(rows)) if rows.fingerprint is not None else rows.looked.indices
    unnoticed = []
    for number in range(count):
        random, (name, change) = np.random.default_rng(number), list(CHANGES.items())[number % len(CHANGES)]
        with np.load(folder / "kept.npz") as archive:
            arrays = dict(archive)
        change(arrays, random, read)
        np.savez(folder / "train.npz", **arrays)
        try:
            find_todo(Workspace.of_folder(work.experiment, folder / "out", device="cpu"))
            unnoticed.append(f"{name}, trial {number}")
        except (RowMismatch, SpecMismatch):
            pass
    shutil.copy(folder / "kept.npz", folder / "train.npz")
    assert not find_todo(Workspace.of_folder(work.experiment, folder / "out", device="cpu")), "a false alarm"
    return unnoticed


@pytest.mark.parametrize("kind", SETS)
def test_a_changed_set_is_refused(
    tmp_path: Path, tally: Tally, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if SETS[kind][1] is not None:
        monkeypatch.setattr(transfer, "WHOLE_BYTES", SETS[kind][1])
    count = scale(60, 600)
    tally.reached("sets", count, "changes", trials(made(tmp_path, kind), tmp_path, count))


@pytest.mark.parametrize("guard", ["check_labels", "_check_column", "check_names"])
def test_a_guard_that_is_taken_out_is_missed(
    tmp_path: Path, tally: Tally, guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's record would notice as well: it is taken out too."""
    work = made(tmp_path, "read in full")
    monkeypatch.setattr("logitstore.pipeline.cache.todo.as_recorded", lambda ours, theirs: dict(theirs))
    assert trials(work, tmp_path, 12) == []
    monkeypatch.setattr(same_set, guard, lambda *args, **settings: None)
    tally.control("sets", guard, bool(trials(work, tmp_path, 12)))
