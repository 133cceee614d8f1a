"""Stage two on a store: is what is sealed what the functions give, and is it made once?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import experiments
from experiments import CLASSES, ROWS, VIEWS, contents, document, parsed
from logitstore.pipeline.cluster import cluster_store, errors_in_sets
from logitstore.pipeline.confusable import confusable_sets
from logitstore.pipeline.covariance import covariance
from logitstore.pipeline.experiment import Cluster
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.errors import ConfigError, PartNotFound, SpecMismatch

SETTINGS: dict[str, Any] = {
    "teacher": "wide",
    "clusters": 2,
    "classes_per_cluster": 3,
    "temperature": 2.0,
    "seed": 7,
}


def cluster(**changes: Any) -> Cluster:
    """A `[cluster]` table."""
    return Cluster(**SETTINGS | changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A copy of the finished store."""
    return open_store(experiments.copy_finished(tmp_path) / "out" / "store.zarr")


def test_what_is_sealed_is_what_the_functions_give(store: Store) -> None:
    before = contents(store.path)
    recorder = experiments.Recorder()
    digest = cluster_store(store, cluster(), scheduler="synchronous", progress=recorder)
    part = open_store(store.path).clustering("wide-2x3")
    assert part.digest == digest

    logits = np.concatenate([store.teachers["wide"].read(slice(None), view) for view in range(VIEWS)])
    softened = np.exp(logits.astype(np.float64) / 2.0)
    softened /= softened.sum(axis=1, keepdims=True)
    matrix = covariance(store.teachers["wide"].dask(), 2.0, scheduler="synchronous")
    found = confusable_sets(matrix, clusters=2, classes_per_cluster=3, seed=7)
    np.testing.assert_array_equal(part.small("covariance"), matrix.astype(np.float32))
    np.testing.assert_array_equal(part.small("assignment"), found.assignment)
    np.testing.assert_array_equal(part.small("centres"), found.centres.astype(np.float32))
    np.testing.assert_array_equal(part.small("sets"), found.sets)
    np.testing.assert_allclose(matrix, np.cov(softened.T, ddof=0), rtol=1e-4, atol=1e-9)

    after = contents(store.path)
    assert {name: after[name] for name in before} == before
    assert {n for n in after if not n.startswith("clusters/wide-2x3/")} - set(before) == {
        "__logitstore__/log/5.json"
    }
    assert recorder.calls and recorder.calls[-1][1] == recorder.calls[-1][2]


def test_a_clustering_is_pinned_to_the_seal_of_its_capture(store: Store) -> None:
    cluster_store(store, cluster())
    identity = store.clustering("wide-2x3").spec.identity
    assert identity["capture"] == {"name": "wide", "seal": store.teachers["wide"].digest}
    assert {key: identity[key] for key in ("clusters", "classes_per_cluster", "temperature", "seed")} == {
        "clusters": 2, "classes_per_cluster": 3, "temperature": 2.0, "seed": 7,
    }  # fmt: skip


def test_the_second_call_does_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from logitstore.pipeline import cluster as stage

    digest = cluster_store(store, cluster())
    before = experiments.states(store.path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the covariance was computed again")

    monkeypatch.setattr(stage, "covariance", never)
    assert cluster_store(open_store(store.path), cluster()) == digest
    assert experiments.states(store.path) == before
    with pytest.raises(AssertionError):  # control: another one is computed
        cluster_store(store, cluster(seed=8, name="other"))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"temperature": 3.0}, r"temperature = 2\.0, with which it was made, found 3\.0"),
        ({"seed": 8}, "seed = 7, with which it was made, found 8"),
        (
            {"teacher": "deep", "name": "wide-2x3"},
            r"capture\.name = 'wide', with which it was made, found 'deep'",
        ),
        ({"clusters": 3, "name": "wide-2x3"}, "clusters = 2, with which it was made, found 3"),
    ],
)
def test_other_settings_under_the_same_name_are_refused(
    store: Store, change: dict[str, Any], found: str
) -> None:
    cluster_store(store, cluster())
    before = contents(store.path)
    message = f"clusters/wide-2x3: expected {found}; change it back, or give the new one another name"
    with pytest.raises(SpecMismatch, match=message):
        cluster_store(store, cluster(**change))
    assert contents(store.path) == before
    if "name" not in change:
        cluster_store(store, cluster(**change, name="another"))
        assert store.clusterings == ["wide-2x2", "wide-2x3", "another"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"clusters": 5}, ConfigError, "clusters: expected from 1 to the number of classes, 4, found 5"),
        (
            {"classes_per_cluster": 4},
            ConfigError,
            "classes_per_cluster: expected at least 2 and fewer than all 4",
        ),
        (
            {"teacher": "third"},
            PartNotFound,
            r"teachers/third: expected one of the sealed parts .* \(wide, deep\)",
        ),
    ],
)
def test_what_cannot_be_clustered_leaves_the_store_as_it_is(
    store: Store, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = contents(store.path)
    with pytest.raises(error, match=message):
        cluster_store(store, cluster(**change))
    assert contents(store.path) == before


def test_errors_in_sets_are_counted_by_row() -> None:
    store = open_store(experiments.finished() / "out" / "store.zarr")
    sets = store.clustering("wide-2x2").small("sets")
    predictions = store.teachers["wide"].read(range(ROWS)).argmax(axis=1)
    errors = inside = 0
    for label, prediction in zip(store.samples.labels.tolist(), predictions.tolist(), strict=True):
        if label != prediction:
            errors += 1
            inside += any({label, prediction} <= set(members) for members in sets.tolist())
    found = errors_in_sets(store, "wide-2x2")
    assert found is not None
    assert (found.errors, found.inside) == (errors, inside)
    assert 0 < inside < errors, "a store where none or all of the errors are inside would test nothing"
    # two random sets of two of the four classes hold one of the six pairs each
    assert found.random_share == pytest.approx(1 - (5 / 6) ** 2)


def test_without_labels_there_are_no_errors_to_count(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(20, CLASSES)).astype(np.float32)
    inputs = np.arange(20, dtype=np.uint8).reshape(20, 1)
    for name, labels in (("unlabelled", None), ("labelled", [0] * 20)):
        store = create_store(tmp_path / name, num_classes=CLASSES, inputs=inputs, labels=labels)
        with store.capture("wide", provenance={}) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, logits[rows.start : rows.stop])
        cluster_store(store, cluster())  # needs no labels
        found = errors_in_sets(store, "wide-2x3")
        assert (found is None) == (labels is None)


def test_a_run_made_the_one_of_its_table() -> None:
    folder = experiments.finished()
    table = parsed(document(), folder).cluster
    store = open_store(folder / "out" / "store.zarr")
    assert table is not None
    assert store.clusterings == [table.part_name]
    before = experiments.states(store.path)
    assert cluster_store(store, table) == store.clustering(table.part_name).digest
    assert experiments.states(store.path) == before
