"""Clusterings of a user's own: what no reader takes is refused before anything is written."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from faults.traces import unchecked
from support import stores
from support.stores import Made, Teacher

from logitstore.storage.errors import BadDataError, ManifestInvalid
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts import clustering_writer
from logitstore.storage.parts.clusterings import ClusteringReader
from logitstore.storage.parts.reader import sets_of

CLASSES = 6
SETS = np.array([[0, 1], [2, 3]])
EYE = np.eye(CLASSES, dtype=np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a store of one capture."""
    return stores.make(
        tmp_path_factory.mktemp("own") / "s.zarr", classes=CLASSES, teachers={"wide": Teacher()}, names=False
    )


def written(made: Made, name: str, arrays: Any, **more: Any) -> ClusteringReader:
    with unchecked():
        made.store.write_clustering(name, arrays, **{"identity": {"made": "by hand"}} | more)
    return ClusteringReader(made.store.root, name)


SETS_FALL = "ascending classes, each once"
REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "fractions": ({"sets": SETS + 0.5}, "/sets", "integers", "float64"),
    "whole floats": ({"sets": SETS.astype(float)}, "/sets", "integers", "float64"),
    "flags": ({"sets": SETS > 0}, "/sets", "integers", "bool"),
    "texts": ({"sets": SETS.astype(str)}, "/sets", "integers", "<U21"),
    "unsorted": ({"sets": SETS[:, ::-1]}, "/sets: set 0", SETS_FALL, "[1, 0]"),
    "a class twice": ({"sets": np.array([[0, 1], [3, 3]])}, "/sets: set 1", SETS_FALL, "[3, 3]"),
    "no such class": ({"sets": np.array([[0, 6]])}, "/sets", "classes from 0 to 5", "0 to 6"),
    "the dustbin": ({"sets": np.array([[-1, 0]])}, "/sets", "classes from 0 to 5", "-1 to 0"),
    "beyond int64": (
        {"sets": np.array([[0, 2**63]], np.uint64)},
        "/sets",
        f"numbers from 0 to {2**63 - 1}",
        f"0 to {2**63}",
    ),
    "one set": ({"sets": SETS[0]}, "/sets", "an array (cluster, member) with elements", "shape (2,)"),
    "no set": ({"sets": SETS[:0]}, "/sets", "an array (cluster, member) with elements", "shape (0, 2)"),
    "ragged sets": ({"sets": [[0], [1, 2]]}, "/sets", "an array (cluster, member)", "[[0], [1, 2]]"),
    "large sets": ({"sets": np.arange(7)[None]}, "/sets", "at most 6 classes a set", "7"),
    "a mask": (
        {"sets": np.ma.masked_equal(SETS, 2)},
        "/sets",
        "values without a mask",
        "a masked array that hides 1 of 4 values",
    ),
    "NaN": ({"covariance": EYE * np.nan}, "/covariance", "finite numbers", "NaN or infinity"),
    "beyond float32": (
        {"covariance": EYE.astype(float) * 1e39},
        "/covariance",
        "finite numbers",
        "NaN or infinity",
    ),
    "complex": ({"covariance": EYE * 1j}, "/covariance", "real numbers", "complex64"),
    "a small matrix": ({"covariance": EYE[:3, :3]}, "/covariance", "6 classes", "3"),
    "NaN centres": ({"centres": np.full((2, 6), np.nan)}, "/centres", "finite numbers", "NaN or infinity"),
    "short assignment": ({"assignment": np.zeros(3, int)}, "/assignment", "6 classes", "3"),
    "no such cluster": (
        {"sets": SETS, "assignment": np.arange(6)},
        "/assignment",
        "clusters from 0 to 1",
        "0 to 5",
    ),
    "more sets than centres": (
        {"sets": SETS, "centres": EYE[:1]},
        "",
        "as many sets as centres",
        "{'sets': 2, 'centres': 1}",
    ),
    "another name": (
        {"set": SETS},
        "/set",
        "one of the arrays covariance, assignment, centres, sets, projected, projected_centres",
        "'set'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_clustering_that_no_reader_takes_is_not_written(made: Made, case: str) -> None:
    arrays, where, expected, found = REFUSED[case]
    before = stores.tree_digest(made.path)
    with pytest.raises(BadDataError) as caught:
        written(made, "bad", arrays)
    error = caught.value
    assert error.where.endswith(f"s.zarr: clusters/bad{where}")
    assert (error.expected, error.found) == (expected, found)
    assert error.remedy == "correct the clustering; nothing was written"
    assert stores.tree_digest(made.path) == before


@pytest.mark.parametrize(
    "more",
    [
        {"identity": {"temperature": "2"}},
        {"identity": {"capture": {"name": 5}}},
        {"notes": {"errors_inside": {"errors": 4}}},
        {"notes": {"inertia": float("inf")}},
    ],
    ids=str,
)
def test_figures_that_no_reader_takes_are_not_written(made: Made, more: dict[str, Any]) -> None:
    before = stores.tree_digest(made.path)
    with pytest.raises(BadDataError, match=r"s\.zarr: clusters/bad: .*nothing was written"):
        written(made, "bad", {"sets": SETS}, **more)
    assert stores.tree_digest(made.path) == before


@pytest.mark.parametrize(
    "arrays",
    [
        {"sets": SETS.astype(np.int32)},
        {"sets": SETS.astype(">i8")},
        {"sets": SETS.astype(np.uint64)},
        {"covariance": np.eye(CLASSES), "sets": SETS, "centres": np.ones((2, CLASSES), np.float16)},
        {"covariance": np.asfortranarray(np.arange(36).reshape(6, 6))},
        {"projected": np.ones((CLASSES, 3)), "projected_centres": np.ones((2, 3)), "sets": SETS},
    ],
    ids=lambda arrays: " ".join(f"{name}-{values.dtype.str}" for name, values in arrays.items()),
)
def test_a_sound_clustering_is_written_as_it_is(tmp_path: Path, arrays: dict[str, Any]) -> None:
    made = stores.make(tmp_path / "s.zarr", classes=CLASSES, teachers={"wide": Teacher()}, names=False)
    reader = written(made, "own", arrays)
    for name, values in arrays.items():
        assert np.array_equal(reader.part.small(name), values)
    assert verify(made.path, deep=True).exit_code == 0


def sealed_unchecked(made: Made, arrays: dict[str, Any]) -> ClusteringReader:
    """Seal arrays as a writer without the checks does."""
    with mock.patch.object(clustering_writer, "check_clustering", lambda arrays, *_: arrays):
        return written(made, "torn", arrays)


def test_a_reader_refuses_what_a_writer_without_checks_seals(tmp_path: Path) -> None:
    """Seal without the checks, as a control: they are needed, and they are those of the reader."""
    made = stores.make(tmp_path / "s.zarr", classes=CLASSES, teachers={"wide": Teacher()}, names=False)
    reader = sealed_unchecked(made, {"sets": SETS[:, ::-1], "centres": np.full((2, CLASSES), np.nan)})
    for read in (lambda: reader.sets, lambda: sets_of(made.store.clustering("torn"), CLASSES)):
        with pytest.raises(ManifestInvalid, match=r"sets: set 0: expected ascending classes, each once"):
            read()
    assert verify(made.path).exit_code == 1
