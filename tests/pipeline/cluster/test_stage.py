"""Stage two on a store: it seals the result of the functions, and computes it once."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import experiments
from support.experiments import CLASSES, ROWS, VIEWS, contents, document, parsed

from logitstore.pipeline.cluster.covariance import covariance
from logitstore.pipeline.cluster.figure import draw_clustering
from logitstore.pipeline.cluster.sets import confusable_sets
from logitstore.pipeline.cluster.softened import softened_outputs
from logitstore.pipeline.cluster.stage import cluster_store, errors_in_sets
from logitstore.pipeline.cluster.todo import cluster_identity
from logitstore.pipeline.experiment.tables import Cluster
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.describe import clustering_record
from logitstore.storage.errors import BadDataError, ConfigError, ManifestInvalid, PartNotFound, SpecMismatch
from logitstore.storage.parts import clustering_writer

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
    matrix = covariance(softened_outputs(store, {"wide": 1.0}, 2.0), scheduler="synchronous")
    found = confusable_sets(matrix, clusters=2, classes_per_cluster=3, seed=7)
    np.testing.assert_array_equal(part.small("covariance"), matrix.astype(np.float32))
    np.testing.assert_array_equal(part.small("assignment"), found.assignment)
    np.testing.assert_array_equal(part.small("centres"), found.centres.astype(np.float32))
    np.testing.assert_array_equal(part.small("sets"), found.sets)
    assert part.spec.notes["inertia"] == pytest.approx(found.inertia, rel=1e-8)
    assert part.spec.notes["converged"] is found.converged
    np.testing.assert_allclose(matrix, np.cov(softened.T, ddof=0), rtol=1e-4, atol=1e-9)

    after = contents(store.path)
    assert {name: after[name] for name in before} == before
    assert {n for n in after if not n.startswith("clusters/wide-2x3/")} - set(before) == {
        "__logitstore__/log/5.json"
    }
    assert recorder.of("covariance")[-1] == (VIEWS * ROWS, VIEWS * ROWS)
    assert recorder.of("errors")[-1] == (ROWS, ROWS)


def test_a_clustering_is_pinned_to_the_seal_of_its_capture(store: Store) -> None:
    cluster_store(store, cluster())
    identity = store.clustering("wide-2x3").spec.identity
    assert identity["capture"] == {"name": "wide", "seal": store.teachers["wide"].digest}
    assert {key: identity[key] for key in ("clusters", "classes_per_cluster", "temperature", "seed")} == {
        "clusters": 2, "classes_per_cluster": 3, "temperature": 2.0, "seed": 7,
    }  # fmt: skip


def test_the_second_call_does_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from logitstore.pipeline.cluster import stage

    digest = cluster_store(store, cluster())
    before = experiments.states(store.path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the covariance was computed again")

    monkeypatch.setattr(stage, "covariance", never)
    assert cluster_store(open_store(store.path), cluster()) == digest
    assert experiments.states(store.path) == before
    with pytest.raises(AssertionError):  # control: another one is computed
        cluster_store(store, cluster(seed=8, name="other"))
    # what changes nothing in a clustering is not compared
    assert cluster_store(open_store(store.path), cluster(memory=2.5)) == digest


def test_settings_at_their_defaults_are_not_in_the_identity(store: Store) -> None:
    """A clustering that was made before there were these keys is still the same one."""
    cluster_store(store, cluster())
    part = store.clustering("wide-2x3")
    assert set(part.spec.identity) == {
        "algorithm", "capture", "classes_per_cluster", "clusters", "seed", "temperature", "views",
    }  # fmt: skip
    assert part.spec.identity["algorithm"] == "online-kmeans"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "minibatch"}, {"algorithm": "minibatch-kmeans"}),
        ({"normalise": True}, {"normalise": True}),
        ({"disjoint": True, "classes_per_cluster": 2}, {"disjoint": True, "classes_per_cluster": 2}),
        ({"restarts": 3}, {"restarts": 3}),
    ],
)
def test_other_settings_are(store: Store, change: dict[str, Any], said: dict[str, Any]) -> None:
    cluster_store(store, cluster(name="first"))
    cluster_store(store, cluster(name="other", **change))
    first, other = store.clustering("first").spec.identity, store.clustering("other").spec.identity
    assert {key: value for key, value in other.items() if first.get(key) != value} == said
    with pytest.raises(SpecMismatch, match=r"clusters/first: expected "):
        cluster_store(store, cluster(name="first", **change))


def test_an_ensemble_is_clustered_by_the_mean_of_its_predictions(store: Store) -> None:
    weights = {"wide": 3.0, "deep": 1.0}
    settings = cluster(teacher=None, teachers=weights)
    assert settings.part_name == "ensemble-2x3"
    cluster_store(store, settings)
    part = store.clustering("ensemble-2x3")
    assert part.spec.identity["captures"] == {
        name: {"seal": store.teachers[name].digest, "share": weight / 4} for name, weight in weights.items()
    }
    assert "capture" not in part.spec.identity
    mean = np.zeros((VIEWS * ROWS, CLASSES))
    for name, weight in weights.items():
        logits = np.concatenate([store.teachers[name].read(slice(None), view) for view in range(VIEWS)])
        softened = np.exp(logits.astype(np.float64) / 2.0)
        mean += weight / 4 * softened / softened.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(part.small("covariance"), np.cov(mean.T, ddof=0), rtol=1e-4, atol=1e-9)
    labels, predictions = store.samples.labels, mean[:ROWS].argmax(axis=1)
    errors = errors_in_sets(store, "ensemble-2x3")
    assert errors is not None and errors.errors == int((labels != predictions).sum()) > 0
    # the same weights on another scale are the same ensemble
    assert cluster_store(store, cluster(teacher=None, teachers={"wide": 6, "deep": 2})) == part.digest
    with pytest.raises(SpecMismatch):
        cluster_store(store, cluster(teacher=None, teachers={"wide": 1, "deep": 1}))


def test_a_teacher_with_members_stands_for_all_of_them(tmp_path: Path) -> None:
    content = document()
    content["teacher"][0]["members"] = 2
    content["cluster"] = {"teachers": ["wide", "deep"], "clusters": 2, "classes_per_cluster": 2}
    table = parsed(content, tmp_path).cluster
    assert table is not None
    assert table.shares == {"wide-0": 0.25, "wide-1": 0.25, "deep": 0.5}
    assert table.part_name == "ensemble-2x2"
    for wrong, message in (
        (
            {"teachers": {"wade": 1.0}},
            "cluster.teachers: expected a teacher's name, found 'wade'; did you mean",
        ),
        (
            {"teachers": {"wide": 1.0}, "teacher": "deep"},
            "cluster: expected one of teacher, teachers, found teacher and teachers",
        ),
        ({}, "cluster: expected one of teacher, teachers, found no such key"),
        ({"teachers": {"wide": 0.0}}, "cluster.teachers.wide: expected"),
    ):
        with pytest.raises(ConfigError) as caught:
            parsed({**content, "cluster": {"clusters": 2, "classes_per_cluster": 2} | wrong}, tmp_path)
        assert message in str(caught.value)


def test_a_specialist_is_not_clustered(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s", num_rows=20, num_classes=CLASSES, digests=np.zeros(20, np.uint64))
    with store.capture("wide", provenance={}, classes=[0, 2, -1]) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, np.zeros((len(rows), 3), np.float32))
    with pytest.raises(
        BadDataError, match=r"teachers/wide: .* found a capture of 2 classes and a dustbin class"
    ):
        cluster_store(store, cluster(classes_per_cluster=2))
    assert store.clusterings == []


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


def test_the_figures_of_an_older_clustering_are_counted_when_they_are_asked_for(store: Store) -> None:
    """It has no notes."""
    cluster_store(store, cluster(name="new", seed=0))
    new = store.clustering("new")
    arrays = {name: new.small(name) for name in ("covariance", "assignment", "centres", "sets")}
    identity = {key: value for key, value in new.spec.identity.items() if key != "views"}
    store.write_clustering("old", arrays, identity=identity)
    assert store.clustering("old").spec.notes == {}
    before = contents(store.path)
    found, noted = errors_in_sets(store, "old"), errors_in_sets(store, "new")
    assert found is not None and noted is not None
    assert (found.errors, found.inside, found.draws) == (noted.errors, noted.inside, noted.draws)
    assert found.random_deviation == pytest.approx(noted.random_deviation, rel=1e-8)
    # and what it says of itself is that it is there already
    assert cluster_store(store, cluster(name="old", seed=0)) == store.clustering("old").digest
    assert contents(store.path) == before


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


# Where the matrix does not fit


MANY = 300
"""Classes whose matrix needs 7 MiB, ten times over."""


@pytest.fixture(scope="module")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """600 rows of 300 classes in ten groups that are confused; a class of a group is a row's label."""
    generator = np.random.default_rng(0)
    labels = np.arange(600) % MANY
    group = np.arange(MANY) % 10
    logits = 0.7 * generator.normal(size=(600, MANY))
    logits += 4.0 * (group[labels][:, None] == group)
    path = tmp_path_factory.mktemp("wide") / "store.zarr"
    store = create_store(
        path, num_classes=MANY, labels=labels, digests=np.zeros(600, np.uint64), block_rows=128
    )
    with store.capture("wide", provenance={}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, logits[rows.start : rows.stop].astype(np.float32))
    return open_store(path)


def test_projected_columns_are_clustered_where_the_matrix_does_not_fit(wide_store: Store) -> None:
    settings: dict[str, Any] = {"teacher": "wide", "clusters": 10, "classes_per_cluster": 30}
    cluster_store(wide_store, Cluster(**settings, name="whole"))
    small = Cluster(**settings, name="projected", memory=0.006)
    cluster_store(wide_store, small)
    whole, part = wide_store.clustering("whole"), wide_store.clustering("projected")
    assert set(part.layouts) == {"projected", "projected_centres", "assignment", "sets"}
    dimensions = part.spec.identity["dimensions"]
    assert part.small("projected").shape == (MANY, dimensions) and 64 <= dimensions < MANY
    assert part.small("projected_centres").shape == (10, dimensions)
    assert "dimensions" not in whole.spec.identity
    error = part.spec.notes["projection_error"]
    assert 0 < error["rms"] < 3 * error["expected"] and error["rms"] < error["largest"]
    truth = [sorted(np.flatnonzero(np.arange(MANY) % 10 == group)) for group in range(10)]
    for found in (whole, part):
        assert sorted(found.small("sets").tolist()) == sorted(truth), "the groups that were put in"
    assert cluster_store(wide_store, small) == part.digest
    with pytest.raises(SpecMismatch, match=r"clusters/whole: expected (no )?dimensions"):
        cluster_store(wide_store, Cluster(**settings, name="whole", memory=0.006))


def test_memory_that_is_too_small_for_anything(wide_store: Store) -> None:
    settings: dict[str, Any] = {"teacher": "wide", "clusters": 10, "classes_per_cluster": 30}
    with pytest.raises(ConfigError) as caught:
        cluster_store(wide_store, Cluster(**settings, memory=1e-4))
    assert (
        str(caught.value)
        == "memory: expected at least 0.00258 GiB for 300 classes, found 0.0001 GiB; raise memory"
    )
    with pytest.raises(
        ConfigError, match=r"^normalise: expected memory = 0.00604, for the whole matrix, found 0.006,"
    ):
        cluster_store(wide_store, Cluster(**settings, memory=0.006, normalise=True))


# Clusterings of somebody else, with every digest right


READY_MADE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "assignment beyond the sets": (
        {"assignment": [0, 1, 0, 3 * 10**8]},
        {},
        r"assignment: expected clusters from 0 to 1, found 0 to 300000000; ",
    ),
    "covariance of other classes": (
        {"covariance": np.eye(9)},
        {},
        r"covariance: expected 4 classes, found 9; ",
    ),
    "errors of text": (
        {},
        {"errors_inside": {"errors": "nine", "inside": 1, "random_share": 0.5}},
        r"spec.json: errors_inside: errors: expected a number of at least 0, found 'nine'; ",
    ),
    "errors without figures": (
        {},
        {"errors_inside": {}},
        r"spec.json: errors_inside: expected a number errors, found \[\]; ",
    ),
    "inertia of 400 digits": (
        {},
        {"inertia": 10**400},
        r"spec.json: inertia: expected a number that a float64 holds, found an integer of 1329 bits; ",
    ),
}


@pytest.mark.parametrize("kind", READY_MADE)
def test_a_ready_made_clustering_is_checked_before_it_is_used(
    store: Store, tmp_path: Path, kind: str
) -> None:
    changed, notes, message = READY_MADE[kind]
    arrays: dict[str, Any] = {
        "covariance": np.eye(CLASSES),
        "centres": np.zeros((2, CLASSES)),
        "assignment": [0, 1, 0, 1],
        "sets": [[0, 1, 2], [1, 2, 3]],
    } | changed
    dtypes = {"assignment": np.int64, "sets": np.int64}
    values = {name: np.asarray(one, dtypes.get(name, np.float32)) for name, one in arrays.items()}
    table = cluster()
    # Somebody else's writer: ours refuses what a reader does.
    with mock.patch.object(clustering_writer, "check_clustering", lambda arrays, *_: arrays):
        store.write_clustering(table.part_name, values, identity=cluster_identity(store, table), notes=notes)
    cluster_store(store, table)  # it is there, of the very settings
    with pytest.raises(ManifestInvalid, match=message):
        errors_in_sets(store, table.part_name)
        draw_clustering(store, table.part_name, tmp_path / "a.png")
        clustering_record(store, table.part_name)


# Figures


def test_a_figure_is_drawn_and_drawn_again_the_same(store: Store, tmp_path: Path) -> None:
    cluster_store(store, cluster())
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    draw_clustering(store, "wide-2x3", first)
    draw_clustering(store, "wide-2x3", second)
    assert first.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and len(first.read_bytes()) > 5000
    assert first.read_bytes() == second.read_bytes()
    draw_clustering(store, "wide-2x3", tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_a_figure_that_cannot_be(store: Store, wide_store: Store, tmp_path: Path) -> None:
    for name, expected in (
        ("a.gif", "a file name that ends in .pdf, .png, .svg, found a.gif; "),
        ("none/a.png", "a new file in an existing folder, found a missing folder "),
    ):
        with pytest.raises(ConfigError) as caught:
            draw_clustering(store, "wide-2x2", tmp_path / name)
        assert expected in str(caught.value)
    settings: dict[str, Any] = {"teacher": "wide", "clusters": 10, "classes_per_cluster": 30, "memory": 0.006}
    cluster_store(wide_store, Cluster(**settings, name="projected"))
    with pytest.raises(ConfigError, match=r"found clusters/projected, a clustering of projected columns; "):
        draw_clustering(wide_store, "projected", tmp_path / "a.png")
