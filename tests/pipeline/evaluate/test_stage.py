"""Evaluation: the figures of the table are those of the models, counted by hand."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from support import experiments
from support.experiments import document, parsed, run_document, student, teacher, train
from torch import nn

from logitstore.pipeline.evaluate.scores import Score, TableRow
from logitstore.pipeline.evaluate.stage import evaluate
from logitstore.pipeline.evaluation_set import EvaluationExamples
from logitstore.pipeline.models.networks import mlp
from logitstore.pipeline.models.weights import load_weights
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadDataError, SpecMismatch

TEST_ROWS = 70


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the data."""
    experiments.write_data(tmp_path)
    return tmp_path


def row_of(rows: Any, name: str) -> TableRow:
    """The line of a model."""
    found: TableRow = next(row for row in rows if row.name == name)
    return found


def test_a_model_that_is_known_has_the_figures_that_are_known(base: Path) -> None:
    """A softmax regression without weights and with a bias: the same logits for every input."""
    bias = torch.tensor([0.0, 2.0, 1.0, -1.0])
    save_file({"head.weight": torch.zeros(4, 16), "head.bias": bias}, base / "constant.safetensors")
    content = document()
    constant = teacher("wide", args={"hidden": []}, weights="constant.safetensors")
    del constant["train"], content["cluster"]
    content |= {"teacher": [constant], "student": []}
    report = run_document(content, base, base / "out")
    labels = np.load(base / "test.npz")["labels"]
    probabilities = np.exp(bias.double().numpy()) / np.exp(bias.double().numpy()).sum()
    (found,) = row_of(report.table, "wide").scores
    errors = int((labels != 1).sum())
    assert (found.examples, found.errors, found.parameters) == (TEST_ROWS, errors, 16 * 4 + 4)
    assert found.nll == pytest.approx(-np.log(probabilities[labels]).mean(), rel=1e-6)
    # One bin, as all confidences are the same: its confidence against its accuracy.
    assert found.calibration_error == pytest.approx(
        abs(probabilities[1] - (1 - errors / TEST_ROWS)), rel=1e-5
    )


def logits_of(path: Path, hidden: list[int]) -> NDArray[np.float64]:
    """Logits of a trained mlp on the evaluation set, without any of the code that is tested."""
    module: nn.Module = mlp(hidden, input_shape=experiments.SHAPE, num_classes=4)
    load_weights(module, path)
    with torch.inference_mode():
        logits = module.eval()(torch.from_numpy(np.load(path.parents[3] / "test.npz")["inputs"]))
    return np.asarray(logits.numpy(), np.float64)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def check(found: Score, probabilities: NDArray[np.float64], parameters: int) -> None:
    """Compare a score with probabilities of all classes."""
    labels = np.load(experiments.finished() / "test.npz")["labels"]
    assert found.errors == int((probabilities.argmax(axis=1) != labels).sum())
    assert found.nll == pytest.approx(-np.log(probabilities[np.arange(TEST_ROWS), labels]).mean(), rel=1e-5)
    assert (found.examples, found.parameters) == (TEST_ROWS, parameters)


WIDE, DEEP, SMALL = 16 * 12 + 12 + 12 * 4 + 4, 16 * 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4, 16 * 6 + 6 + 6 * 4 + 4


def test_teachers_ensemble_and_students_are_scored_by_their_own_weights() -> None:
    folder = experiments.finished()
    table = run_document(document(), folder, folder / "out").table
    models = folder / "out" / "models"
    wide = softmax(logits_of(models / "teachers" / "wide.safetensors", [12]))
    deep = softmax(logits_of(models / "teachers" / "deep.safetensors", [8, 8]))
    check(row_of(table, "wide").scores[0], wide, WIDE)
    check(row_of(table, "deep").scores[0], deep, DEEP)
    # The ensemble that "both" learns from: three parts wide, one part deep.
    check(row_of(table, "3 wide + deep, arithmetic mean").scores[0], 0.75 * wide + 0.25 * deep, WIDE + DEEP)
    for seed, found in enumerate(row_of(table, "soft").scores):
        check(found, softmax(logits_of(models / "students" / f"soft-seed{seed}.safetensors", [6])), SMALL)
    assert not np.allclose(wide, deep, atol=0.02), "two models as alike as these would test nothing"


def of_folder(content: dict[str, Any], folder: Path) -> Workspace:
    """A workspace of a folder in which a run has ended."""
    return Workspace.of_folder(parsed(content, folder), folder / "out", device="cpu")


def test_models_that_are_not_made_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A table without a row looks like a whole one."""
    folder, content = experiments.copy_finished(tmp_path), document()
    evaluate(of_folder(content, folder))
    assert caplog.text == ""  # control
    changed = next(one for one in content["student"] if one["name"] == "soft")
    changed["temperature"] = 7.0
    table = evaluate(of_folder(content, folder))
    assert "soft" not in {row.name for row in table}
    (line,) = caplog.messages
    assert line == (
        "not in the table, as they are not made: student soft-seed0, student soft-seed1; `logitstore run` makes them"
    )


def test_a_teacher_that_was_captured_otherwise_is_not_left_out_but_refused(tmp_path: Path) -> None:
    folder, content = experiments.copy_finished(tmp_path), document()
    content["teacher"][0]["train"]["epochs"] += 1
    with pytest.raises(SpecMismatch, match=r"teachers/wide: expected .*epochs"):
        evaluate(of_folder(content, folder))


def test_a_combination_of_other_settings_than_the_stores_is_refused(tmp_path: Path) -> None:
    content = experiments.whole_document()
    shutil.copytree(experiments.kept_run(content), tmp_path, dirs_exist_ok=True)
    evaluate(of_folder(content, tmp_path))  # control
    content["combine"]["top"] = 2
    with pytest.raises(
        SpecMismatch, match="teachers/all: expected top = 1, with which it was combined, found 2"
    ):
        evaluate(of_folder(content, tmp_path))


def test_the_errors_of_all_clustered_teachers_are_counted_in_the_sets(tmp_path: Path) -> None:
    folder = experiments.copy_finished(tmp_path)
    content = document()
    content["cluster"] = {"teachers": ["wide", "deep"], "clusters": 2, "classes_per_cluster": 2}
    report = run_document(content, folder, folder / "out")
    models = folder / "out" / "models" / "teachers"
    labels = np.load(folder / "test.npz")["labels"]
    sets = [set(members) for members in report.store.clustering("ensemble-2x2").small("sets").tolist()]
    pairs = [
        {int(label), int(prediction)}
        for name, hidden in (("wide", [12]), ("deep", [8, 8]))
        for label, prediction in zip(
            labels, logits_of(models / f"{name}.safetensors", hidden).argmax(axis=1), strict=True
        )
        if label != prediction
    ]
    found = report.errors_inside
    assert found is not None and pairs
    assert found.errors == len(pairs)
    assert found.inside == sum(any(pair <= members for members in sets) for pair in pairs)
    assert found.random_share == pytest.approx(1 - (1 - 1 / 6) ** 2)
    # It is kept, and a run without a clustering has none.
    assert run_document(content, folder, folder / "out").errors_inside == found
    del content["cluster"]
    assert run_document(content, folder, folder / "out").errors_inside is None


def test_a_geometric_ensemble_is_the_normalised_geometric_mean(tmp_path: Path) -> None:
    folder = experiments.copy_finished(tmp_path)
    content = document()
    content["student"][1] |= {"mean": "geometric"}
    table = run_document(content, folder, folder / "out").table
    models = folder / "out" / "models" / "teachers"
    wide, deep = (logits_of(models / f"{n}.safetensors", h) for n, h in (("wide", [12]), ("deep", [8, 8])))
    check(
        row_of(table, "3 wide + deep, geometric mean").scores[0],
        softmax(0.75 * wide + 0.25 * deep),
        WIDE + DEEP,
    )


def test_a_model_that_works_in_place_spoils_no_other_score(base: Path) -> None:
    """Every model is given the evaluation set as it is."""
    for name in ("train", "test"):
        with np.load(base / f"{name}.npz") as archive:
            arrays = dict(archive)
        np.savez(base / f"{name}.npz", **arrays | {"inputs": arrays["inputs"].astype(np.float32) / 255})
    content = document()
    del content["cluster"], content["cache"]["augment"], content["cache"]["views"]
    spoiling = {"factory": "support.experiments:spoils_its_input", "args": {"hidden": [5]}}
    content["teacher"] = [teacher("spoiling") | spoiling, teacher("wide")]
    content["student"] = [student("soft", train=train(seeds=[0]))]
    table = run_document(content, base, base / "out").table
    content["teacher"].pop(0)
    clean = run_document(content, base, base / "clean").table
    for name in ("wide", "soft"):
        assert row_of(table, name).scores == row_of(clean, name).scores


class Unlabelled:
    """A user's own set: inputs alone."""

    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        example = np.zeros(experiments.SHAPE, np.uint8)
        return (example, index) if self.labelled else example


def own_set(labelled: bool) -> Unlabelled:
    """A factory."""
    return Unlabelled(labelled)


def test_an_evaluation_set_without_labels_is_refused_before_anything_is_trained(base: Path) -> None:
    content = document()
    own = {"factory": f"{__name__}:own_set"}
    for labelled in (True, False):
        content["evaluation_set"] = own | {"args": {"labelled": labelled}}
        if labelled:
            work = Workspace.of_folder(parsed(content, base), base)
            assert len(EvaluationExamples(work.experiment, work.rows)) == 3
    arrays = {"factory": "logitstore.pipeline.datasets:arrays"}
    for table in (content["evaluation_set"], arrays | {"args": {"file": "test.npz", "labels": ""}}):
        content["evaluation_set"] = table
        with pytest.raises(BadDataError) as caught:
            run_document(content, base, base / "out")
        assert str(caught.value) == (
            "evaluation_set: expected labelled examples, (input, label), found a set without labels; "
            "evaluate on a labelled set, or drop [evaluation_set]"
        )
        assert not (base / "out").exists()


def test_an_unlabelled_transfer_set_is_distilled_and_evaluated(base: Path) -> None:
    """Its classes are stated; the evaluation set has its own labels, and need not name them."""
    folder = experiments.finished()
    content = document()
    content["transfer_set"] |= {"num_classes": 4}
    content["transfer_set"]["args"] = {"file": "train.npz", "labels": "", "class_names": ""}
    content["evaluation_set"]["args"]["class_names"] = ""
    weights = str(folder / "out" / "models" / "teachers" / "wide.safetensors")
    given = teacher("wide", weights=weights)
    del given["train"], content["cluster"]
    content |= {"teacher": [given], "student": [student("soft", train=train(seeds=[0]))]}
    report = run_document(content, base, base / "out")
    assert (report.store.num_classes, report.store.samples.labels.max()) == (4, -1)
    whole = run_document(document(), folder, folder / "out").table
    assert row_of(report.table, "wide").scores == row_of(whole, "wide").scores
    assert row_of(report.table, "soft").scores[0].examples == TEST_ROWS
