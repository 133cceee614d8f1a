"""Exchanged weights: whenever a file is replaced, no result is of other weights than it says.

A whole run builds its networks one after the other; building the n-th takes a while, and meanwhile the file of a teacher is
replaced, as by the training job that writes it. The run may end with a typed error, and is then run again.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from support import experiments, special
from torch import nn

from faults.tally import Tally
from logitstore.pipeline.cache.teachers import load_teacher
from logitstore.pipeline.cache.todo import find_teacher
from logitstore.pipeline.evaluate import stage
from logitstore.pipeline.evaluate.scores import Score, Scores, subjects
from logitstore.pipeline.evaluate.stage import evaluate
from logitstore.pipeline.evaluation_set import EvaluationExamples
from logitstore.pipeline.models.networks import mlp
from logitstore.pipeline.models.weights import save_weights
from logitstore.pipeline.specialists.todo import special_rows
from logitstore.pipeline.specialists.training import load_specialist, specialist_network, train_specialists
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import BadDataError, LogitStoreError

MODULE = """
import os
from pathlib import Path

from logitstore.pipeline.models import mlp

HERE = Path(__file__).parent


def net(*, input_shape, num_classes):
    left = HERE / "builds_left"
    if left.exists():
        number = int(left.read_text()) - 1
        left.write_text(str(number))
        if number == 0:
            os.replace(HERE / "B.safetensors", HERE / "given.safetensors")
    return mlp([5], input_shape=input_shape, num_classes=num_classes)
"""
BUILDS = 5
"""Networks of a run: the student on trial, the teacher to be captured, the student, and the two that are scored."""


def content() -> dict[str, Any]:
    """A teacher from a file, and a student of the same module."""
    document = experiments.document()
    del document["cluster"], document["cache"]["augment"], document["cache"]["views"]
    given = {"name": "wide", "factory": "ls_exchange:net", "weights": "given.safetensors"}
    small = {"factory": "ls_exchange:net", "args": {}, "train": experiments.train(epochs=1, seeds=[0])}
    return document | {"teacher": [given], "student": [experiments.student("s", **small)]}


def network(seed: int) -> nn.Module:
    """A network of the teacher's kind."""
    torch.manual_seed(seed)
    made: nn.Module = mlp([5], input_shape=experiments.SHAPE, num_classes=experiments.CLASSES)
    return made.eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with data, the module and two files of weights, of which A is given."""
    experiments.write_data(tmp_path)
    (tmp_path / "ls_exchange.py").write_text(MODULE)
    for seed, name in enumerate("AB"):
        save_weights(network(seed), tmp_path / f"{name}.safetensors")
    shutil.copy(tmp_path / "A.safetensors", tmp_path / "given.safetensors")
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("ls_exchange", None)
    yield tmp_path
    sys.modules.pop("ls_exchange", None)


def logits_of(seed: int, file: Path) -> Any:
    """Logits of a network on the inputs of a set, without any of the code that is tested."""
    with torch.inference_mode():
        return network(seed)(torch.from_numpy(np.load(file)["inputs"])).numpy()


def harm(folder: Path) -> list[str]:
    """Say which result is of other weights than it says."""
    wrong, out = [], folder / "out"
    work = Workspace.of_folder(experiments.parsed(content(), folder), out, device="cpu")
    store = work.find_store()
    digests = {}
    for seed, name in enumerate("AB"):
        path = folder / f"fresh-{name}.safetensors"
        digests[save_weights(network(seed), path)] = seed
    if store is not None and "wide" in store.teachers:
        capture = store.teachers["wide"]
        seed = digests[capture.provenance["teacher"]["weights"]]
        stored = capture.read(slice(None)) + capture.peak(slice(None))[:, None]
        expected = logits_of(seed, folder / "train.npz")[store.samples.source]
        if abs(stored - expected).max() > 0.05:
            wrong.append("a capture of other logits")
    labels = np.load(folder / "test.npz")["labels"]
    for seed, name in enumerate("AB"):
        shutil.copy(folder / f"fresh-{name}.safetensors", folder / "given.safetensors")
        examples = EvaluationExamples(work.experiment, work.rows)
        teacher = next(s for s in subjects(work, examples) if s.kind == "teacher")
        score = Scores(work.scores).get(teacher)
        errors = int((logits_of(seed, folder / "test.npz").argmax(axis=1) != labels).sum())
        if isinstance(score, Score) and score.errors != errors:
            wrong.append(f"a score of {name} with {score.errors} errors instead of {errors}")
    return wrong


def exchanged_at(folder: Path, build: int) -> list[str]:
    """Run with the exchange while the n-th network is built, and again; what is wrong afterwards."""
    (folder / "builds_left").write_text(str(build))
    wrong = []
    for _ in range(2):
        try:
            experiments.run_document(content(), folder, folder / "out")
        except LogitStoreError as error:
            if "\n" in str(error):
                wrong.append(f"more than a line: {error}")
    assert int((folder / "builds_left").read_text()) <= 0, f"there was no build {build}"
    return [f"build {build}: {line}" for line in wrong + harm(folder)]


@pytest.mark.parametrize("build", range(1, BUILDS + 1), ids="build {}".format)
def test_nothing_is_of_weights_that_came_meanwhile(folder: Path, tally: Tally, build: int) -> None:
    a, b = (int(logits_of(seed, folder / "test.npz").argmax(axis=1).sum()) for seed in (0, 1))
    assert a != b, "networks that agree would test nothing"
    tally.reached("weights", 1, "exchanges", exchanged_at(folder, build))


@pytest.mark.parametrize("build", [2, 4], ids=["capture", "score"])
def test_weights_that_are_not_compared_are_seen(folder: Path, tally: Tally, build: int) -> None:
    """Negative control: the file is digested, and another one is loaded."""
    with (
        mock.patch("logitstore.pipeline.cache.teachers.check_loaded"),
        mock.patch("logitstore.pipeline.evaluate.stage.check_loaded"),
    ):
        tally.control(
            "weights", f"digest of what was loaded, build {build}", exchanged_at(folder, build) != []
        )


# One door at a time: the digest of A is known, and B is in its place when it is loaded.


def spoil(path: Path, *, in_place: bool) -> None:
    """Put weights of the same shapes and other numbers in the place of a file."""
    content = save({name: tensor + 1 for name, tensor in load_file(path).items()})
    if in_place:
        path.write_bytes(content)
    else:
        other = path.with_suffix(".new")
        other.write_bytes(content)
        os.replace(other, path)


@pytest.fixture(scope="module")
def specialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with trained specialists, and a student."""
    folder = special.grounds(tmp_path_factory.mktemp("specialised"))
    with mock.patch("os.fsync"):
        train_specialists(special.Field(folder, special.content()).work)
    return folder


def generalist(field: special.Field, digest: str) -> None:
    run = field.runs[0]
    specialist_network(field.work, run, special_rows(field.work, run), digest)


def specialist(field: special.Field, digest: str) -> None:
    run = field.runs[0]
    load_specialist(field.work, run, special_rows(field.work, run), digest)


def teacher(field: special.Field, digest: str) -> None:
    load_teacher(field.work, field.experiment.generalist, digest)


OF_SPECIALISTS: dict[Callable[[special.Field, str], None], tuple[str, str]] = {
    generalist: ("teachers", "wide"),
    specialist: ("specialists", "pairs-0"),
    teacher: ("teachers", "wide"),
}


@pytest.mark.parametrize("in_place", [False, True], ids=["renamed", "in place"])
@pytest.mark.parametrize("door", OF_SPECIALISTS, ids=lambda door: door.__name__)
def test_other_weights_are_refused_at_every_door(
    specialised: Path,
    tmp_path: Path,
    tally: Tally,
    door: Callable[[special.Field, str], None],
    in_place: bool,
) -> None:
    copy = shutil.copytree(specialised, tmp_path / "copy")
    field = special.Field(copy, special.content())
    path = field.models.weights_path(*OF_SPECIALISTS[door])
    digest = json.loads(path.with_suffix(".json").read_bytes())["weights"]
    door(field, digest)  # as it is
    spoil(path, in_place=in_place)
    with pytest.raises(BadDataError) as caught:
        door(field, digest)
    assert caught.value.expected == f"the weights {digest}, as when this command began"
    tally.reached("weights", 1, "exchanges")


def test_a_student_that_is_exchanged_before_it_is_scored_is_refused(tmp_path: Path, tally: Tally) -> None:
    folder = experiments.copy_finished(tmp_path)
    work = Workspace.of_folder(
        experiments.parsed(experiments.document(), folder), folder / "out", device="cpu"
    )
    work.scores.unlink()
    path = work.models.weights_path("students", "soft-seed1")
    genuine = stage.new_network

    def slow(*arguments: Any) -> Any:
        spoil(path, in_place=False)
        return genuine(*arguments)

    with mock.patch.object(stage, "new_network", slow), pytest.raises(BadDataError) as caught:
        evaluate(work)
    assert caught.value.where == "student 'soft-seed1'"
    tally.reached("weights", 1, "exchanges")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_whole_network_that_is_exchanged_is_refused(folder: Path, tally: Tally) -> None:
    """A TorchScript file, which holds network and weights."""
    for seed, name in enumerate("AB"):
        torch.manual_seed(seed)
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(16, 4))), folder / f"{name}.pt")
    shutil.copy(folder / "A.pt", folder / "given.pt")
    document = content() | {"student": [], "teacher": [{"name": "wide", "file": "given.pt"}]}
    work = Workspace.of_folder(experiments.parsed(document, folder), folder / "out", device="cpu")
    (member,) = work.experiment.teacher_members()
    record = find_teacher(work, member)
    assert record is not None
    load_teacher(work, member, record.weights)
    os.replace(folder / "B.pt", folder / "given.pt")
    with pytest.raises(BadDataError) as caught:
        load_teacher(work, member, record.weights)
    assert caught.value.expected == f"the weights {record.weights}, as when this command began"
    tally.reached("weights", 1, "exchanges")
