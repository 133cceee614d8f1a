"""Stage three: a student's sources, and the same student from every run."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import experiments
from support.experiments import ROWS, VIEWS, document, parsed, student, train
from torch import Tensor

from logitstore.pipeline import transfer
from logitstore.pipeline.augment import row_generator, shift
from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.losses import Distillation
from logitstore.pipeline.models.records import Models, Record
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.train import stage
from logitstore.pipeline.train.stage import open_stream, train_student, train_students
from logitstore.pipeline.train.todo import StudentSeed, student_rows, student_seeds
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.errors import BadDataError, RowMismatch, SpecMismatch

Content = dict[str, Any]


def with_student(table: Content) -> Content:
    """The tiny document with this student alone."""
    return document() | {"student": [table]}


def store() -> Store:
    """The store of the finished experiment, read only."""
    return open_store(experiments.finished() / "out" / "store.zarr")


def workspace(experiment: Experiment, models: Path = Path()) -> Workspace:
    """An experiment beside the finished store, with a folder of models of its own."""
    return Workspace(experiment, Path(store().path), Models(models), device="cpu")


def runs(content: Content) -> tuple[Experiment, list[StudentSeed]]:
    """The experiment, and every training in it."""
    experiment = parsed(content, experiments.finished())
    return experiment, list(student_seeds(experiment))


def trained(content: Content, folder: Path) -> tuple[Record, dict[str, Tensor]]:
    """The record and the weights of the first student of a document."""
    experiment, (run, *_) = runs(content)
    work = workspace(experiment, folder)
    record = train_student(work, run)
    return record, load_file(work.models.weights_path("students", run.name))


# What it is shown


def shown(content: Content, epochs: int) -> list[tuple[list[int], list[int], Any]]:
    """The rows, views and inputs that a student is shown, epoch by epoch."""
    experiment, (run, *_) = runs(content)
    stream, few = open_stream(workspace(experiment), run)
    assert few.shape == (2, *experiments.SHAPE)
    found = []
    for epoch in range(epochs):
        stream.set_epoch(epoch)
        batches = list(stream)
        inputs = np.concatenate([b.inputs for b in batches if b.inputs is not None])
        rows, views = (np.concatenate([getattr(b, name) for b in batches]) for name in ("rows", "views"))
        found.append((rows.tolist(), views.tolist(), inputs))
    return found


@pytest.mark.parametrize("views", ["cycle", "all", 1])
def test_hard_and_soft_students_of_a_seed_are_shown_the_same_replayed_views(views: Any) -> None:
    soft = shown(with_student(student("a", views=views)), VIEWS)
    hard = shown(with_student(student("a", views=views, targets="hard")), VIEWS)
    stored = store().samples.inputs
    assert stored is not None
    originals = stored[:]
    for epoch, ((rows, cycle, inputs), other) in enumerate(zip(soft, hard, strict=True)):
        assert (rows, cycle) == other[:2]
        np.testing.assert_array_equal(inputs, other[2])
        assert sorted(zip(cycle, rows, strict=True)) == [
            (view, row)
            for view in {"cycle": [epoch], "all": range(VIEWS), 1: [1]}[views]
            for row in range(ROWS)
        ]
        for row, view, given in zip(rows, cycle, inputs, strict=True):
            wanted = shift(1)(originals[row], row_generator(0, view, row)) if view else originals[row]
            np.testing.assert_array_equal(given, wanted)


def test_another_seed_is_shown_another_order() -> None:
    orders = [shown(with_student(student("a", train=train(seeds=[seed]))), 1)[0][0] for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_students_of_a_seed_learn_from_the_same_share_of_the_rows() -> None:
    def rows(**changes: Any) -> list[int]:
        return sorted(shown(with_student(student("a", views=0, **changes)), 1)[0][0])

    kept = rows(rows=0.25)
    assert len(kept) == len(set(kept)) == round(0.25 * ROWS)
    assert rows(rows=0.25, targets="hard") == kept
    assert rows(rows=0.25, train=train(seeds=[1])) != kept
    assert len(rows(rows=1e-9)) == 1
    assert rows() == rows(rows=1.0) == list(range(ROWS))  # negative control


def test_another_augmentation_than_the_captures_is_refused(tmp_path: Path) -> None:
    for change, said in (
        ({"args": {"pixels": 2}}, r"'pixels': 2"),
        ({"seed": 4}, r"'seed': 4"),
        ({"factory": "logitstore.pipeline.augment:identity", "args": {}}, "identity"),
    ):
        for table in (student("a"), student("a", targets="hard")):
            content = with_student(table)
            content["cache"]["augment"] |= change
            message = (
                "teachers/wide: expected the captured augmentation .*'pixels': 1.*found "
                f".*{said}.*; set \\[cache\\] augment to that of the capture"
            )
            with pytest.raises(SpecMismatch, match=message):
                trained(content, tmp_path)
    assert not any(tmp_path.iterdir())


def test_view_0_alone_needs_no_augmentation_to_be_replayed(tmp_path: Path) -> None:
    """Control: what a student reads decides; the rows as they are are in the store."""
    _, weights = trained(with_student(student("a", views=0)), tmp_path)
    assert weights


def test_hard_targets_need_labels(tmp_path: Path) -> None:
    inputs = np.zeros((8, *experiments.SHAPE), np.uint8)
    unlabelled = create_store(tmp_path / "store", num_classes=4, inputs=inputs, store_inputs=True)
    with unlabelled.capture("wide", provenance={}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, np.zeros((8, 4), np.float32))
    experiment, (run, *_) = runs(with_student(student("a", targets="hard")))
    message = (
        "student 'a': expected labels, for targets = \"hard\", found a store without any; train it on soft"
    )
    with pytest.raises(BadDataError, match=message):
        open_stream(Workspace.of_store(experiment, tmp_path / "store"), run)


def test_hard_targets_need_labels_among_the_rows_that_are_shown(tmp_path: Path) -> None:
    """One row is shown; labelled or not, it decides."""
    experiment, (run, *_) = runs(with_student(student("a", targets="hard", rows=1 / 8, views=0)))
    (row,) = student_rows(run, 8).tolist()  # type: ignore[union-attr]
    for labelled in (row, (row + 1) % 8):
        labels = np.where(np.arange(8) == labelled, 0, -1)
        inputs = np.zeros((8, *experiments.SHAPE), np.uint8)
        path = tmp_path / str(labelled)
        made = create_store(path, num_classes=4, inputs=inputs, labels=labels, store_inputs=True)
        with made.capture("wide", provenance={}) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, np.zeros((8, 4), np.float32))
        if labelled == row:
            open_stream(Workspace.of_store(experiment, path), run)
        else:
            with pytest.raises(BadDataError, match="found none in its 1 rows"):
                open_stream(Workspace.of_store(experiment, path), run)


def test_a_changed_transfer_set_stops_a_training_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs that are not stored are checked one by one against the digests, also those that no comparison has read."""
    monkeypatch.setattr(transfer, "WHOLE_BYTES", 0)
    monkeypatch.setattr(transfer, "SAMPLED_ROWS", 1)
    experiments.write_data(tmp_path)
    content = with_student(student("a", train=train(seeds=[0])))
    content["transfer_set"] |= {"factory": "support.experiments:no_fingerprint", "store_inputs": False}
    content["teacher"] = content["teacher"][:1]
    report = experiments.run_document(content, tmp_path, tmp_path / "out")
    with np.load(tmp_path / "train.npz") as archive:
        arrays = dict(archive)
    index = int(report.store.samples.source[5])
    arrays["inputs"][index] ^= 1
    np.savez(tmp_path / "train.npz", **arrays)
    experiment = parsed(content, tmp_path)
    assert transfer.TransferRows(experiment).looked.indices.tolist() != [index]
    with pytest.raises(
        RowMismatch, match=rf"row 5 \(index {index} of the transfer set\): expected the input that"
    ):
        work = Workspace(experiment, Path(report.store.path), Models(tmp_path / "m"), device="cpu")
        train_student(work, next(student_seeds(experiment)))


# What it learns from


def recorded_targets(content: Content, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The soft targets of each step of the first epoch, as the loss gets them."""
    found: list[Tensor] = []
    genuine = Distillation.forward

    def forward(self: Any, logits: Tensor, targets: Tensor, labels: Tensor | None = None) -> Tensor:
        found.append(targets.clone())
        return genuine(self, logits, targets, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "forward", forward)
        trained(content, folder)
    return found


def first_batch(content: Content) -> TorchBatch:
    """What the student of a document is given first."""
    experiment, (run, *_) = runs(content)
    stream, _ = open_stream(workspace(experiment), run)
    return TorchBatch.of(next(iter(stream)))


MEANS: list[tuple[dict[str, float], str, float]] = [
    ({"wide": 1.0}, "arithmetic", 3.0),
    ({"wide": 1.0, "deep": 1.0}, "arithmetic", 3.0),
    ({"wide": 1.0, "deep": 1.0}, "geometric", 3.0),
    ({"wide": 3.0, "deep": 1.0}, "arithmetic", 3.0),
    ({"wide": 3.0, "deep": 1.0}, "arithmetic", 1.0),
]


def test_mean_weights_and_temperature_make_the_targets_that_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for number, (weights, mean, temperature) in enumerate(MEANS):
        table = student(
            "a", teachers=weights, mean=mean, temperature=temperature, train=train(seeds=[0], epochs=1)
        )
        content = with_student(table)
        targets = recorded_targets(content, tmp_path / str(number), monkeypatch)[0]
        batch = first_batch(content)
        shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        softened = {n: torch.softmax(batch.logits[n].double() / temperature, dim=1) for n in weights}
        if mean == "arithmetic":
            expected = sum((shares[n] * softened[n] for n in weights), torch.zeros(1))
        else:
            product = torch.exp(sum((shares[n] * softened[n].log() for n in weights), torch.zeros(1)))
            expected = product / product.sum(dim=1, keepdim=True)
        torch.testing.assert_close(targets.double(), expected, rtol=1e-5, atol=1e-6)
        made.append(targets)
    for first in range(len(made)):
        for second in range(first):  # control: none of these settings makes another's targets
            assert not torch.allclose(made[first], made[second], atol=1e-4)


def test_the_loss_falls_towards_what_it_can_come_to(tmp_path: Path) -> None:
    """A cross-entropy with soft targets cannot fall below their entropy; one with labels below 0."""
    logits = store().teachers["wide"].read(slice(None)).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1).mean()
    wide = {"args": {"hidden": [32]}, "views": 0}
    for table, floor in (
        (student("soft", temperature=1.0, **wide), entropy),
        (student("hard", targets="hard", **wide), 0.0),
    ):
        losses = []
        for epochs in (1, 20):
            content = with_student(table | {"train": train(seeds=[0], epochs=epochs)})
            record, _ = trained(content, tmp_path / f"{table['name']}-{epochs}")
            losses.append(float(record.facts["last_loss"]) - floor)
        assert 0 < losses[1] < losses[0] / 2


# The same student


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are the same to the last bit."""
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


CHANGES: dict[str, Callable[[Content], None]] = {
    "seed": lambda table: table["train"].update(seeds=[1]),
    "temperature": lambda table: table.update(temperature=4.0),
    "hard_weight": lambda table: table.update(hard_weight=1.0),
    "teachers": lambda table: table.update(teachers=["wide", "deep"]),
    "batch_size": lambda table: table["train"].update(batch_size=31),
    "views": lambda table: table.update(views="all"),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of the student that the changes below are made to."""
    return trained(with_student(student("a")), tmp_path_factory.mktemp("reference"))[1]


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(
    tmp_path: Path, reference: dict[str, Tensor]
) -> None:
    torch.rand(7)  # whatever state the global generator is in
    assert same(trained(with_student(student("a")), tmp_path)[1], reference)


@pytest.mark.parametrize("key", CHANGES)
def test_every_setting_has_an_effect(tmp_path: Path, key: str, reference: dict[str, Tensor]) -> None:
    table = student("a")
    CHANGES[key](table)
    assert not same(trained(with_student(table), tmp_path)[1], reference)


def test_the_reference_is_the_one_that_a_whole_run_trained(reference: dict[str, Tensor]) -> None:
    path = experiments.finished() / "out" / "models" / "students" / "soft-seed0.safetensors"
    assert same(load_file(path), reference)


# What is known of it afterwards


def test_the_record_pins_the_seals_of_what_was_read() -> None:
    folder = experiments.finished() / "out" / "models" / "students"
    opened = store()
    seals = {name: capture.digest for name, capture in opened.teachers.items()}
    read = {"soft": ["wide"], "both": ["wide", "deep"], "hard": ["wide"]}
    for name, teachers in read.items():
        record = json.loads((folder / f"{name}-seed0.json").read_bytes())
        assert record["identity"]["seals"] == {teacher: seals[teacher] for teacher in teachers}
        assert record["identity"]["samples"] == opened.samples.digest
        assert record["identity"]["seed"] == 0
        assert record["facts"]["parameters"] == 16 * 6 + 6 + 6 * 4 + 4


def test_students_are_trained_once_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, all_runs = runs(document())
    recorder = experiments.Recorder()
    work = replace(workspace(experiment, tmp_path), progress=recorder)
    assert train_students(work) == [run.name for run in all_runs]
    assert {task for task, *_ in recorder.calls} == {f"training student {run.name}" for run in all_runs}

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a student was trained again")

    monkeypatch.setattr(stage, "train_student", never)
    assert train_students(work) == []


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_k_rows_are_decoded_for_the_temperature_of_the_student(
    tmp_path: Path, temperature: float
) -> None:
    """The omitted classes share one level, which differs from temperature to temperature."""
    made = create_store(
        tmp_path / "store", num_classes=4, inputs=np.zeros((ROWS, 4, 4), np.uint8), store_inputs=True
    )
    logits = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32) * 3
    with made.capture("wide", provenance={}, encoding={"top_k": 2}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, logits[rows])
    experiment, (run, *_) = runs(with_student(student("a", temperature=temperature)))
    stream, _ = open_stream(Workspace.of_store(experiment, tmp_path / "store"), run)
    expected = open_store(tmp_path / "store").teachers["wide"].read(slice(None), temperature=temperature)
    for batch in stream:
        assert np.array_equal(batch.logits["wide"], expected[batch.rows])


@pytest.fixture(autouse=True)
def generator_state() -> Iterator[None]:
    """Leave torch's global generator as it was."""
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)
