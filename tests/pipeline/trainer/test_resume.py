"""A training that was interrupted goes on as if nothing had happened, or says why it does not."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save
from support import experiments, trainings
from support.messages import Sentences
from support.trainings import STEPS_PER_EPOCH, content, curve, finished_store, interruption, trained, weights

from logitstore.pipeline.stream.torch_stream import TorchStream
from logitstore.pipeline.trainer import resume as keep
from logitstore.pipeline.trainer.checkpoints import Checkpoints
from logitstore.pipeline.trainer.steps import Steps
from logitstore.storage.errors import BadDataError, LogitStoreError, SpecMismatch
from logitstore.storage.format.documents import canonical_json

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 2 * STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with mock.patch("logitstore.pipeline.trainer.loop.REPORT_EVERY", 2):
        trained(content(), finished_store(), folder)
    return folder


@pytest.fixture
def often_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every two steps."""
    monkeypatch.setattr("logitstore.pipeline.trainer.loop.REPORT_EVERY", 2)


@pytest.mark.usefixtures("often_told")
@pytest.mark.parametrize(
    "step", [1, 2, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, STEPS], ids="step {}".format
)
def test_a_training_goes_on_to_the_same_bytes(tmp_path: Path, whole: Path, step: int) -> None:
    """First step, last of an epoch, first of the next, last of all: weights and log are those of the whole training."""
    with interruption(step):
        trained(content(), finished_store(), tmp_path)
    assert not (tmp_path / "students" / "a-seed0.safetensors").exists()
    torch.manual_seed(77)  # whatever the process that goes on has done before
    trained(content(), finished_store(), tmp_path)
    assert weights(tmp_path) == weights(whole)
    assert curve(tmp_path) == curve(whole)
    assert not trainings.checkpoints(tmp_path).exists()


@pytest.mark.usefixtures("often_told")
def test_a_training_may_be_interrupted_again_and_again(tmp_path: Path, whole: Path) -> None:
    for step in range(1, STEPS + 1, 2):
        with interruption(step):
            trained(content(), finished_store(), tmp_path)
    trained(content(), finished_store(), tmp_path)
    assert weights(tmp_path) == weights(whole)
    assert curve(tmp_path) == curve(whole)


@pytest.mark.usefixtures("often_told")
def test_what_came_after_the_checkpoint_is_cut_off_the_log(tmp_path: Path, whole: Path) -> None:
    """Kept at step 4, interrupted at 7, the last line torn: no step and no epoch has two lines, and none is lost."""
    with interruption(7):
        trained(content({"checkpoint_every": 4}), finished_store(), tmp_path)
    told = [(line[0], line[1]) for line in curve(tmp_path)]
    assert told == [("step", 2), ("step", 4), ("epoch", 5), ("step", 6)]
    with (tmp_path / "students" / "a-seed0.metrics.jsonl").open("a") as log:
        log.write('{"epoch":2,"event":"st')
    trained(content({"checkpoint_every": 4}), finished_store(), tmp_path)
    assert curve(tmp_path) == curve(whole)
    assert weights(tmp_path) == weights(whole)


def test_the_log_has_a_line_every_few_steps_and_one_an_epoch(whole: Path) -> None:
    told = [(line["event"], line["step"], line["epoch"], line["rows"]) for line in trainings.lines(whole)]
    assert told == [
        ("step", 2, 1, 64),
        ("step", 4, 1, 128),
        ("epoch", 5, 1, 150),
        ("step", 6, 2, 182),
        ("step", 8, 2, 246),
        ("step", 10, 2, 300),
        ("epoch", 10, 2, 300),
    ]
    for line in trainings.lines(whole):
        assert 0 <= line["waiting"] <= 1 and line["rows_per_second"] > 0 and line["seconds"] > 0
    seconds = [line["seconds"] for line in trainings.lines(whole)]
    assert seconds == sorted(seconds)


def forget_random_numbers() -> Any:
    return mock.patch.object(keep, "set_random_state", lambda *_: None)


def forget_the_stream() -> Any:
    genuine = TorchStream.load_state_dict

    def load(self: TorchStream, state: Any) -> None:
        genuine(self, state)
        self.stream.begin_epoch(int(state["epoch"]))

    return mock.patch.object(TorchStream, "load_state_dict", load)


def forget(part: str) -> Callable[[], Any]:
    genuine = Steps.restore

    def restore(self: Steps, tensors: Any, numbers: Any) -> None:
        if part == "ema":  # the average of the weights as they are now
            own = {f"ema/module.{name[6:]}": t for name, t in tensors.items() if name.startswith("model/")}
            tensors = {**tensors, **own}
        genuine(
            self,
            {name: t for name, t in tensors.items() if not name.startswith(f"{part}/") or part == "ema"},
            numbers,
        )

    return lambda: mock.patch.object(Steps, "restore", restore)


@pytest.mark.parametrize(
    "forgetful",
    [forget_random_numbers, forget_the_stream, forget("optimizer"), forget("ema")],
    ids=["random numbers", "stream", "optimizer", "ema"],
)
def test_a_training_that_forgets_a_part_is_found_out(
    tmp_path: Path, whole: Path, forgetful: Callable[[], Any]
) -> None:
    """Negative control: each part of a checkpoint is needed for the same bytes."""
    with interruption(3):
        trained(content(), finished_store(), tmp_path)
    with forgetful():
        trained(content(), finished_store(), tmp_path)
    assert weights(tmp_path) != weights(whole)


def test_without_checkpoints_nothing_is_kept_and_nothing_changes(tmp_path: Path, whole: Path) -> None:
    seen = []
    genuine = Checkpoints.save

    def save(self: Checkpoints, checkpoint: Any) -> None:
        seen.append(checkpoint.step)
        genuine(self, checkpoint)

    with mock.patch.object(Checkpoints, "save", save):
        trained(content({"checkpoint_every": 4}), finished_store(), tmp_path / "some")
        assert seen == [4, 8]
        experiments_train = content()
        del experiments_train["student"][0]["train"]["checkpoint_every"]
        trained(experiments_train, finished_store(), tmp_path / "none")
        assert seen == [4, 8]
    assert weights(tmp_path / "some") == weights(tmp_path / "none") == weights(whole)


# What does not belong together


def test_another_store_is_refused_and_its_part_is_named(tmp_path: Path) -> None:
    """Neither begun anew nor gone on with: what was trained so far is of other logits."""
    document = content(views=0)
    first = trainings.plain_store(tmp_path / "data" / "x" / "one.zarr")
    with interruption(3):
        trained(document, first, tmp_path)
    before = experiments.contents(tmp_path / "students")
    folder = trainings.checkpoints(tmp_path)
    logits = trainings.plain_store(tmp_path / "data" / "x" / "two.zarr", logits_seed=5)
    rows = trainings.plain_store(tmp_path / "data" / "x" / "three.zarr", logits_seed=0, labels_seed=9)
    for store, parts in ((logits, {"teachers/wide"}), (rows, {"teachers/wide", "samples"})):
        with pytest.raises(SpecMismatch) as caught:
            trained(document, store, tmp_path)
        said = str(caught.value)
        assert "\n" not in said
        assert caught.value.where in {f"{store.path}: {part}" for part in parts}
        assert "with which this training was begun" in said
        assert said.endswith(f"or delete {folder} to restart the training")
        assert experiments.contents(tmp_path / "students") == before
    trained(document, first, tmp_path)  # control: with its own store it goes on
    assert not folder.exists()


def test_another_setting_is_refused_until_the_folder_is_deleted(tmp_path: Path) -> None:
    with interruption(3):
        trained(content(), finished_store(), tmp_path)
    changed = content(temperature=4.0)
    with pytest.raises(
        SpecMismatch, match=r"expected temperature = 3\.0, with which this training was begun, found 4\.0"
    ):
        trained(changed, finished_store(), tmp_path)
    shutil.rmtree(trainings.checkpoints(tmp_path))
    trained(changed, finished_store(), tmp_path)
    trained(changed, finished_store(), tmp_path / "fresh")
    assert weights(tmp_path) == weights(tmp_path / "fresh")


def test_how_a_training_is_kept_is_not_what_it_is(tmp_path: Path, whole: Path) -> None:
    """Another `checkpoint_every` goes on from the same checkpoints."""
    with interruption(3):
        trained(content(), finished_store(), tmp_path)
    record = trained(content({"checkpoint_every": 7}), finished_store(), tmp_path)
    assert weights(tmp_path) == weights(whole)
    assert record.identity == json.loads((whole / "students" / "a-seed0.json").read_text())["identity"]


def test_checkpoints_of_a_finished_training_are_swept_away_by_the_next(tmp_path: Path) -> None:
    """Killed after its record was written: what is left of it stands in nobody's way."""
    with mock.patch.object(Checkpoints, "remove"):
        trained(content(), finished_store(), tmp_path)
    assert any(trainings.checkpoints(tmp_path).glob("*.json"))
    trained(content(temperature=4.0), finished_store(), tmp_path)
    assert not trainings.checkpoints(tmp_path).exists()


def test_another_model_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """Installed code is in an identity by name alone: the tensors of another version tell."""
    with interruption(3):
        trained(content(), finished_store(), tmp_path)
    genuine = keep.StudentKeeper.find

    def find(self: keep.StudentKeeper, most: int | None = None) -> Any:
        found = genuine(self, most)
        assert found is not None
        tensors = {n: (t[:1] if n.startswith("model/") else t) for n, t in found.tensors.items()}
        return type(found)(found.step, found.identity, found.state, tensors)

    with (
        mock.patch.object(keep.StudentKeeper, "find", find),
        pytest.raises(
            BadDataError,
            match=r"expected a checkpoint of this model, found a checkpoint of another model: .*size mismatch",
        ),
    ):
        trained(content(), finished_store(), tmp_path)


def test_a_checkpoint_of_other_samples_is_refused(tmp_path: Path, whole: Path) -> None:
    """Other labels alone: the seals of the captures may be the same."""
    with interruption(3):
        trained(content(), finished_store(), tmp_path)
    genuine = keep.StudentKeeper.__init__

    def of_other_samples(self: keep.StudentKeeper, *arguments: Any) -> None:
        genuine(self, *arguments)
        self._identity = {**self._identity, "samples": "sha256:other"}

    before = trainings.checkpoints(tmp_path)
    names = sorted(path.name for path in before.iterdir())
    with (
        mock.patch.object(keep.StudentKeeper, "__init__", of_other_samples),
        pytest.raises(SpecMismatch) as caught,
    ):
        trained(content(), finished_store(), tmp_path)
    assert caught.value.where.endswith("store.zarr: samples") and caught.value.found == "'sha256:other'"
    assert sorted(path.name for path in before.iterdir()) == names, "nothing is lost"


def test_a_checkpoint_of_before_there_was_source_is_gone_on_with(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it does not hold is not compared, and that is said."""
    with interruption(3):
        trained(content(), finished_store(), tmp_path)
    with mock.patch(
        "logitstore.pipeline.factories.products.local_source", return_value={"mine.py": "sha256:0"}
    ):
        trained(content(), finished_store(), tmp_path)
    assert weights(tmp_path) == weights(whole)
    assert "a-seed0.checkpoints: written by a version that kept no source of a model" in caplog.text


# Checkpoints that somebody has changed, with digests that fit


def tampered(folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> None:
    """Change the record and the tensors of every checkpoint."""
    place = trainings.checkpoints(folder)
    for path in place.glob("*.json"):
        record = json.loads(path.read_bytes())["record"]
        tensors = load_file(place / record["tensors"]["file"])
        record = change(record, tensors) or record
        content_of_tensors = save(tensors)
        record["tensors"]["sha256"] = hashlib.sha256(content_of_tensors).hexdigest()
        (place / record["tensors"]["file"]).write_bytes(content_of_tensors)
        digest = hashlib.sha256(canonical_json(record)).hexdigest()
        path.write_bytes(canonical_json({"record": record, "sha256": digest}))


def of_state(**values: Any) -> Callable[..., Any]:
    return lambda record, tensors: record["state"].update(values)


def of_tensors(prefix: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def changed(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            tensors[name] = change(tensors[name])

    return changed


TAMPERED: dict[str, Callable[..., Any]] = {
    "an identity that is a list": lambda record, _: record | {"identity": [1]},
    "an identity that is a text": lambda record, _: record | {"identity": "a"},
    "seals that are a text": lambda record, _: record["identity"].update(seals="a"),
    "a state that is a list": lambda record, _: record | {"state": []},
    "a state without anything": lambda record, _: record | {"state": {}},
    "an epoch that is a text": of_state(epoch="a"),
    "an epoch that is a list": of_state(epoch=[1]),
    "an epoch below 0": of_state(epoch=-1),
    "an epoch above all": of_state(epoch=1 << 62),
    "rows below 0": of_state(rows=-3),
    "more steps than there were": of_state(epoch_steps=99),
    "no step": of_state(epoch_steps=0),
    "seconds below 0": of_state(seconds=-1.0),
    "seconds of a table": of_state(seconds={}),
    "a stream that is a list": of_state(stream=[1]),
    "a stream of another seed": of_state(stream={"seed": 9}),
    "weights of another shape": of_tensors("model/", lambda t: t[:1]),
    "an average of another shape": of_tensors("ema/", lambda t: t[..., None]),
    "memory of another shape": of_tensors("optimizer/", lambda t: torch.ones(3, 3, 3)),
    "memory of no parameter": lambda _, tensors: tensors.update({"optimizer/99/exp_avg": torch.ones(1)}),
    "memory of no number": lambda _, tensors: tensors.update({"optimizer/a/exp_avg": torch.ones(1)}),
    "random numbers of another length": of_tensors("random/", lambda t: t[:5].clone()),
    "random numbers of another type": of_tensors("random/", lambda t: t.float()),
    "a sum of many": of_tensors("loss_sum", lambda t: torch.ones(2, 2)),
    "no sum": lambda _, tensors: tensors.pop("loss_sum") and None,
    "more than a training has": lambda _, tensors: tensors.update(more=torch.zeros(20 << 20)),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_tampered_checkpoint_ends_in_one_line(
    tmp_path: Path, whole: Path, change: Callable[..., Any]
) -> None:
    with interruption(3):
        trained(content(), finished_store(), tmp_path)
    tampered(tmp_path, change)
    with pytest.raises(LogitStoreError) as caught:
        trained(content(), finished_store(), tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_checkpoint_that_was_only_written_again_is_gone_on_with(tmp_path: Path, whole: Path) -> None:
    """Negative control: what is refused above is refused for what was changed."""
    with interruption(3):
        trained(content(), finished_store(), tmp_path)
    tampered(tmp_path, lambda record, tensors: None)
    trained(content(), finished_store(), tmp_path)
    assert weights(tmp_path) == weights(whole)


def test_a_finished_training_is_replaced_with_a_warning_of_the_first_difference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sentence: Sentences
) -> None:
    trained(content(), finished_store(), tmp_path)
    (tmp_path / "students" / "a-seed0.safetensors").unlink()
    trained(content(), finished_store(), tmp_path)
    assert caplog.messages == []  # negative control: the same training again
    trained(content({"epochs": 1}), finished_store(), tmp_path)
    (warning,) = (line for line in caplog.messages if "replaces" in line)
    sentence(warning)
