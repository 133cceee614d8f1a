"""Clusterings as they are read: shapes that fit each other, and figures of their own type."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from support import stores

from logitstore.storage.api import create_store
from logitstore.storage.errors import ManifestInvalid
from logitstore.storage.parts import clustering_writer
from logitstore.storage.parts.clusterings import ClusteringReader
from logitstore.storage.parts.root import Root

CLASSES = 5
SETS = np.array([[0, 2], [1, 3]])
INSIDE = {"errors": 9, "inside": 4, "random_share": 0.5}


def clustered(path: Path, arrays: dict[str, NDArray[Any]], identity: Any = (), notes: Any = ()) -> Root:
    """Make a store with a clustering that its writer does not check."""
    store = create_store(path, num_classes=CLASSES, inputs=stores.some_inputs(9), block_rows=8)
    with mock.patch.object(clustering_writer, "check_clustering", lambda arrays, *_: arrays):
        store.write_clustering("c", arrays, identity=dict(identity), notes=dict(notes))
    return store.root


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sets": SETS, "centres": np.zeros((3, CLASSES), np.float32)}, "expected as many sets as centres"),
        ({"sets": np.zeros((2, CLASSES + 1), np.int64)}, "sets: expected at most 5 classes a set, found 6"),
        ({"assignment": np.zeros(CLASSES + 1, np.int64)}, "assignment: expected 5 classes, found 6"),
    ],
    ids=["centres", "members", "classes"],
)
def test_arrays_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str
) -> None:
    root = clustered(tmp_path / "store", arrays)
    with pytest.raises(ManifestInvalid, match=message):
        ClusteringReader(root, "c")


@pytest.mark.parametrize(
    ("array", "values"),
    [
        ("sets", SETS + 2),
        ("sets", SETS - 1),
        ("assignment", np.arange(5) % 3),
        ("assignment", np.arange(5) - 1),
    ],
    ids=["a class too many", "class -1", "a cluster too many", "cluster -1"],
)
def test_a_class_or_cluster_that_does_not_exist_is_refused(
    tmp_path: Path, array: str, values: NDArray[Any]
) -> None:
    good = {"sets": SETS, "assignment": np.arange(CLASSES) % 2}
    reader = ClusteringReader(clustered(tmp_path / "store", good | {array: values}), "c")
    with pytest.raises(ManifestInvalid, match=f"{array}: expected (classes|clusters) from 0 to "):
        reader.check()


@pytest.mark.parametrize(
    ("identity", "notes"),
    [
        ({}, {"errors_inside": {**INSIDE, "errors": True}}),
        ({}, {"errors_inside": {**INSIDE, "inside": 4.0}}),
        ({}, {"errors_inside": {**INSIDE, "draws": True}}),
        ({}, {"errors_inside": {**INSIDE, "random_share": True}}),
        ({"dimensions": True}, {}),
        ({"dimensions": -1}, {}),
        ({"temperature": True}, {}),
    ],
    ids=["errors", "inside", "draws", "share", "dimensions", "negative", "temperature"],
)
def test_a_figure_of_another_type_is_refused(tmp_path: Path, identity: Any, notes: Any) -> None:
    """True would be shown and counted as 1."""
    with pytest.raises(
        ManifestInvalid, match=r"expected a number (of at least 0|that a float64 holds), found"
    ):
        ClusteringReader(clustered(tmp_path / "store", {"sets": SETS}, identity, notes), "c").check()


def test_figures_come_back_as_they_were_noted(tmp_path: Path) -> None:
    noted = {**INSIDE, "draws": 100, "random_deviation": 0.1}
    root = clustered(
        tmp_path / "store", {"sets": SETS}, {"dimensions": 0, "temperature": 4.0}, {"errors_inside": noted}
    )
    reader = ClusteringReader(root, "c")
    reader.check()
    assert reader.errors_inside == noted
    assert (reader.about["dimensions"], reader.about["temperature"]) == (0, 4)
