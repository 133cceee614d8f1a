"""The stages on a capture in the transform encoding: the results of its decoded rows, stored as float32.

The decoded rows come from `decoded_by_hand`, which shares no code with the reader.
"""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from support import experiments, trainings, transform_stores
from support.transform_stores import (
    CLASSES,
    ENCODINGS,
    ROWS,
    VIEWS,
    Transformed,
    decoded_by_hand,
    escaped_rows,
)

from logitstore.pipeline.cluster.covariance import covariance
from logitstore.pipeline.cluster.softened import softened_outputs
from logitstore.pipeline.cluster.stage import cluster_store
from logitstore.pipeline.evaluate.captures import evaluate_captures
from logitstore.pipeline.experiment.tables import Cluster
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.encodings.transform import Transform


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Transformed:
    """Make a store with "wide" in the transform encoding, and "decoded", its decoded rows as float32."""
    path = tmp_path_factory.mktemp("transform") / "store.zarr"
    made = transform_stores.make(path, {"wide": ENCODINGS["wide"]})
    capture = made.store.teachers["wide"]
    add_decoded(made.store, np.stack([decoded_by_hand(made, "wide", view) for view in range(VIEWS)]))
    assert len(escaped_rows(made, "wide", 0)) > 5 and not np.array_equal(
        capture.part.small("classes"), np.arange(CLASSES)
    )
    return Transformed(path, open_store(path), made.logits, made.labels)


def add_decoded(store: Store, logits: NDArray[np.float64]) -> None:
    """Write logits as the capture "decoded", of the same inputs as "wide"."""
    wide = store.teachers["wide"]
    with (
        mock.patch("os.fsync"),
        store.capture(
            "decoded",
            provenance={"augmentation": wide.augmentation},
            views=len(logits),
            encoding="float32",
        ) as capture,
    ):
        for view in range(len(logits)):
            for rows in capture.missing_blocks(view):
                part = slice(rows.start, rows.stop)
                capture.write(
                    rows, logits[view, part].astype(np.float32), view=view, seen=wide.seen(part, view)
                )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("view", range(VIEWS))
def test_scores_are_those_of_the_decoded_rows(made: Transformed, view: int, temperature: float) -> None:
    scores = evaluate_captures(made.store, view=view, temperature=temperature).metrics
    assert scores["wide"].rows == scores["decoded"].rows > 0
    for field in ("errors", "top_k_errors", "nll", "calibration_error"):
        found, expected = (getattr(scores[name], field) for name in ("wide", "decoded"))
        assert found == pytest.approx(expected, abs=1e-5)
    other = evaluate_captures(made.store, view=1 - view, temperature=temperature).metrics
    assert other["wide"].nll != pytest.approx(scores["wide"].nll, abs=1e-5)  # control


def test_ranked_rows_are_the_rows(made: Transformed) -> None:
    wide, decoded = (made.store.teachers[name] for name in ("wide", "decoded"))
    for view in range(VIEWS):
        for temperature in (None, 1.0, 7.5):
            ranked = wide.read_ranked(slice(3, 90), view, temperature)
            assert np.array_equal(ranked, wide.read(slice(3, 90), view))
            np.testing.assert_allclose(ranked, decoded.read(slice(3, 90), view), atol=2e-5)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_the_dask_array_is_the_rows(made: Transformed, scheduler: str) -> None:
    found = made.store.teachers["wide"].dask().compute(scheduler=scheduler)
    assert (found.dtype, found.shape) == (np.float32, (VIEWS, ROWS, CLASSES))
    for view in range(VIEWS):
        np.testing.assert_allclose(found[view], decoded_by_hand(made, "wide", view), atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_covariance_is_that_of_the_decoded_rows(made: Transformed, temperature: float) -> None:
    softened = {name: softened_outputs(made.store, {name: 1}, temperature) for name in ("wide", "decoded")}
    for view in range(VIEWS):
        rows = [softened[name].read(view, range(10, 60)) for name in ("wide", "decoded")]
        np.testing.assert_allclose(*rows, atol=1e-6)
    found, expected = (covariance(softened[name]) for name in ("wide", "decoded"))
    size = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert (abs(found - expected) <= 1e-4 * size).all()
    mixed = softened_outputs(made.store, {"wide": 1, "decoded": 3}, temperature)
    np.testing.assert_allclose(covariance(mixed), expected, atol=1e-6)


def test_the_sets_of_classes_are_those_of_the_decoded_rows(made: Transformed) -> None:
    sets = []
    for name in ("wide", "decoded"):
        table = Cluster(teacher=name, clusters=3, classes_per_cluster=8)
        with mock.patch("os.fsync"):
            cluster_store(made.store, table)
        sets.append(made.store.clustering(table.part_name).small("sets"))
    assert np.array_equal(*sets)


# A student


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Make a store of an experiment's inputs with "wide" in the transform encoding, some rows of which are escaped."""
    inputs, labels = experiments.some_digits(experiments.ROWS, 1)
    random = np.random.default_rng(4)
    logits = inputs.reshape(len(inputs), -1) @ random.normal(size=(16, experiments.CLASSES)) / 40
    logits[::9] = random.normal(size=logits[::9].shape) * 12
    path = tmp_path_factory.mktemp("taught") / "a" / "b" / "store.zarr"
    with mock.patch("os.fsync"):
        store = create_store(
            path,
            num_classes=experiments.CLASSES,
            inputs=inputs,
            store_inputs=True,
            labels=labels,
            block_rows=64,
        )
        given = logits.astype(np.float32)
        with store.capture(
            "wide",
            provenance={},
            encoding={"transform": {"max_kl": 1e-4}},
            calibration=given[np.arange(len(given)) % 9 > 0],
        ) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, given[rows.start : rows.stop])
    store = open_store(path)
    assert isinstance(store.teachers["wide"].encoding, Transform)
    return store


def float32_store(taught: Store, path: Path) -> Store:
    """Store the rows that `taught` decodes to, as float32."""
    samples = taught.samples
    assert samples.inputs is not None
    with mock.patch("os.fsync"):
        store = create_store(
            path,
            num_classes=experiments.CLASSES,
            inputs=samples.inputs[:],
            store_inputs=True,
            labels=samples.labels,
            block_rows=64,
        )
        with store.capture("wide", provenance={}, encoding="float32") as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, taught.teachers["wide"].read(slice(rows.start, rows.stop)))
    return open_store(path)


LOSSES = [
    {},
    {"loss": {"name": "logit_matching"}, "temperature": None},
    {"loss": {"name": "dkd"}, "hard_weight": 0.1},
    {"loss": {"name": "dist"}, "standardise": True},
]


@pytest.mark.parametrize("changes", LOSSES, ids=str)
def test_a_student_learns_what_it_learns_from_float32(
    taught: Store, tmp_path: Path, changes: dict[str, object]
) -> None:
    document = trainings.content(**changes)
    (table,) = document["student"]
    document["student"] = [{key: value for key, value in table.items() if value is not None}]
    weights = []
    for name, store in (
        ("transform", taught),
        ("float32", float32_store(taught, tmp_path / "a/b/store.zarr")),
    ):
        trainings.trained(document, store, tmp_path / name, base=experiments.finished())
        weights.append(load_file(tmp_path / name / "students" / "a-seed0.safetensors"))
        values = [line["loss"] for line in trainings.lines(tmp_path / name) if line["loss"] is not None]
        assert values and np.isfinite(values).all()
    found, expected = weights
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=2e-3)


@pytest.mark.parametrize(("temperature", "warned"), [(4.0, 0), (20.0, 1)])
def test_a_student_beyond_the_guarantee_is_warned_of(
    taught: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, temperature: float, warned: int
) -> None:
    trainings.trained(
        trainings.content(temperature=temperature), taught, tmp_path, base=experiments.finished()
    )
    said = [message for message in caplog.messages if "keeps its budget at T = 1, 2, 4, 8" in message]
    assert len(said) == warned
    assert not warned or "at T = 20 its error was not bounded" in said[0]


def test_a_student_of_other_logits_is_another(taught: Store, tmp_path: Path) -> None:
    """Train on reversed classes, as a negative control."""
    wide = type(taught.teachers["wide"])
    read = wide.read
    with mock.patch.object(wide, "read", lambda self, rows, *more: read(self, rows, *more)[:, ::-1]):
        other = float32_store(taught, tmp_path / "a/b/store.zarr")
    document = trainings.content()
    weights = []
    for name, store in (("transform", taught), ("other", other)):
        trainings.trained(document, store, tmp_path / name, base=experiments.finished())
        weights.append(load_file(tmp_path / name / "students" / "a-seed0.safetensors"))
    assert any(abs(weights[0][name] - values).max() > 1e-2 for name, values in weights[1].items())


def test_a_student_that_was_interrupted_is_the_same(taught: Store, tmp_path: Path) -> None:
    document = trainings.content()
    base = experiments.finished()
    trainings.trained(document, taught, tmp_path / "whole", base=base)
    with trainings.interruption(7):
        trainings.trained(document, taught, tmp_path / "twice", base=base)
    trainings.trained(document, taught, tmp_path / "twice", base=base)
    assert trainings.weights(tmp_path / "twice") == trainings.weights(tmp_path / "whole")
