"""Worker processes that make the inputs of a student: the same weights, errors and lines as without them."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from support import experiments, hands
from support.experiments import document, parsed, student, train
from support.hands import Changed, Darker, Failing, Killing, Pictures

import logitstore
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.train import inputs
from logitstore.pipeline.train.inputs import InputWorkers
from logitstore.pipeline.train.stage import train_student
from logitstore.pipeline.train.todo import student_seeds
from logitstore.pipeline.trainer.checkpoints import Checkpoints
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadDataError, ConfigError, RowMismatch, TransientIOError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store without inputs, of three views of a data set in hand."""
    made = tmp_path_factory.mktemp("hands")
    with mock.patch("os.fsync"):
        hands.cached(made, store_inputs=False)
    return made


@pytest.fixture(autouse=True)
def small_chunks() -> Iterator[None]:
    """Chunks of five inputs, so that a batch is made by several workers."""
    with mock.patch.object(inputs, "CHUNK_BYTES", 80):
        yield


def distilled(folder: Path, out: Path, **changes: Any) -> bytes:
    """Return the bytes of the weights of a student."""
    net = hands.distilled(folder, **({"dataset": Pictures(), "checkpoint": out} | changes))
    return b"".join(tensor.numpy().tobytes() for tensor in net.state_dict().values())


def lines(out: Path) -> list[dict[str, Any]]:
    (log,) = out.rglob("*.metrics.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_student_has_the_same_weights_and_its_log_the_share_of_waiting(
    folder: Path, tmp_path: Path
) -> None:
    shown = list[str]()

    def progress(task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        shown.append(detail)

    plain = distilled(folder, tmp_path / "plain")
    other = distilled(folder, tmp_path / "workers", workers=2, epochs=2, views="cycle", progress=progress)
    assert other == plain
    with mock.patch.object(
        inputs, "Worker", side_effect=AssertionError
    ):  # the identity is the same: nothing to do
        assert distilled(folder, tmp_path / "plain", workers=2) == plain
    assert all(0 <= line["waiting"] <= 1 for line in lines(tmp_path / "workers"))
    assert distilled(folder, tmp_path / "seed", workers=2, seed=4) != plain  # control


def test_a_training_resumes_at_a_batch_with_workers_or_without(folder: Path, tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    save, plain = Checkpoints.save, distilled(folder, tmp_path / "plain")
    for first, then in ((2, 0), (0, 2)):

        def saved_once(checkpoints: Checkpoints, checkpoint: Any) -> None:
            save(checkpoints, checkpoint)
            raise Ended  # in the middle of the first epoch

        out = tmp_path / f"{first}-{then}"
        with mock.patch.object(Checkpoints, "save", saved_once), pytest.raises(Ended):
            distilled(folder, out, workers=first)
        assert distilled(folder, out, workers=then) == plain


def test_an_experiment_of_a_file_has_the_same_weights(tmp_path: Path) -> None:
    """Its views are made of stored inputs, and mixed views of two of them."""
    weights = []
    for number in (0, 1):
        table = student("a", views="all", train=train(epochs=1, workers=number))
        experiment = parsed(document() | {"student": [table]}, experiments.finished())
        run = next(student_seeds(experiment))
        models = Models(tmp_path / str(number))
        store = experiments.finished() / "out" / "store.zarr"
        train_student(Workspace(experiment, store, models, device="cpu"), run)
        weights.append(models.weights_path("students", run.name).read_bytes())
    assert weights[0] == weights[1]


def test_errors_of_a_worker_are_the_lines_without_one(folder: Path, tmp_path: Path) -> None:
    def refusal(number: int, **changes: Any) -> str:
        with (
            mock.patch(
                "logitstore.pipeline.same_set.check_samples"
            ),  # which would find it before the training
            pytest.raises((BadDataError, RowMismatch)) as caught,
        ):
            distilled(folder, tmp_path / "refused", workers=number, views=0, **changes)
        return f"{type(caught.value).__name__}: {caught.value}"

    for dataset, part in ((Failing(), "a torn file"), (Changed(), "digest")):
        without, within = refusal(0, dataset=dataset), refusal(2, dataset=dataset)
        assert without == within
        assert part in within


def test_a_worker_that_dies_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Any
) -> None:
    monkeypatch.setenv("TEST_PARENT", str(os.getpid()))
    with pytest.raises(TransientIOError) as caught:
        distilled(folder, tmp_path, workers=2, augment=Killing())
    sentence(caught.value)


def test_things_that_no_worker_can_have_are_refused(folder: Path, tmp_path: Path, sentence: Any) -> None:
    darker = Darker()
    with pytest.raises(ConfigError) as refused:
        distilled(folder, tmp_path, workers=1, augment=lambda image, generator: darker(image, generator))
    assert refused.value.where == "workers"
    assert "pickle" in refused.value.found
    with pytest.raises(ConfigError) as refused:
        distilled(folder, tmp_path, workers=-1)
    sentence(refused.value)


def test_a_class_that_a_worker_cannot_import_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Any
) -> None:
    """As one of a notebook's cell, which is in `__main__` of the parent alone."""
    cell = ModuleType("a_cell")
    cell.Own = type("Own", (Darker,), {"__module__": "a_cell", "__qualname__": "Own"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_cell", cell)
    with pytest.raises(ConfigError) as refused:
        distilled(folder, tmp_path, workers=1, augment=cell.Own())
    sentence(refused.value)


def test_batches_ahead_are_bounded_by_the_chunks_of_the_workers(folder: Path) -> None:
    store = logitstore.open_store(folder / "store.zarr")
    experiment = parsed(document(), experiments.finished())
    workers = InputWorkers(store.stream(8, inputs=False), 3, experiment, store, "here")
    chunk = 80
    assert [workers.batches_ahead(size) for size in (0, chunk, 2 * chunk, 6 * chunk, 100 * chunk)] == [
        7,
        7,
        4,
        2,
        2,
    ]
    workers.close()
