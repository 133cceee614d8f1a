"""A loader of our own keeps its name in identities when its module moves, and what was made before counts as the same."""

import shutil
from pathlib import Path

import pytest
from support import experiments
from support.experiments import MLP_FACTORY, contents, document, parsed, run_document

from logitstore.pipeline.cache import todo
from logitstore.pipeline.cache.todo import agreed, capture_identity
from logitstore.pipeline.experiment.networks import SOURCES
from logitstore.pipeline.models import loaders
from logitstore.pipeline.models.loaders import stable_name, with_stable_names
from logitstore.pipeline.run import pending
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import SpecMismatch

YESTERDAY = {
    "hugging_face": "logitstore.pipeline.hugging_face:classifier",
    "file": "logitstore.pipeline.exported:exported",
    "timm": "logitstore.pipeline.named_models:timm_model",
    "torchvision": "logitstore.pipeline.named_models:torchvision_model",
}
"""Factories that captures were written with, by the key of the experiment."""
NAMES = {"hugging_face": "hugging_face", "file": "exported", "timm": "timm", "torchvision": "torchvision"}


@pytest.mark.parametrize("key", list(SOURCES))
def test_each_loader_has_one_name_wherever_its_module_was(key: str) -> None:
    assert stable_name(SOURCES[key]) == stable_name(YESTERDAY[key]) == NAMES[key]


def test_a_factory_of_a_users_own_keeps_its_place() -> None:
    """Negative control: two factories that are called alike are not the same."""
    assert stable_name("mine.named_models:timm_model") == "mine.named_models:timm_model"
    assert (
        with_stable_names({"teacher": {"factory": "mine:net", "args": {}}})["teacher"]["factory"]
        == "mine:net"
    )


def test_the_identity_of_a_capture_has_the_name(tmp_path: Path) -> None:
    experiments.write_data(tmp_path)
    content = document()
    content["teacher"][0] = {"name": "wide", "timm": "resnet18", "weights": "wide.safetensors"}
    work = Workspace.of_folder(parsed(content, tmp_path), tmp_path / "out")
    member = work.experiment.teacher_members()[0]
    assert member.teacher.factory == SOURCES["timm"]
    ours = capture_identity(work.experiment, member, work.rows, "sha256:0")
    assert ours["teacher"]["factory"] == "timm"
    written = {**ours, "teacher": {**ours["teacher"], "factory": YESTERDAY["timm"]}}
    assert agreed(ours, written) == written
    other = {**ours, "teacher": {**ours["teacher"], "factory": YESTERDAY["torchvision"]}}
    assert agreed(ours, other) == ours != other


@pytest.fixture
def renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished folder whose factory has got a stable name since: nothing there was written with it."""
    folder = experiments.copy_finished(tmp_path)
    monkeypatch.setitem(loaders.LOADERS, MLP_FACTORY, "mlp")  # type: ignore[arg-type]  # a dict, not to be changed
    return folder


def workspace(folder: Path) -> Workspace:
    """The workspace of the finished folder."""
    return Workspace.of_folder(parsed(document(), folder), folder / "out", device="cpu")


def test_captures_and_models_with_yesterdays_name_are_done(renamed: Path) -> None:
    """Scores are known by the digest of a name, and are measured again."""
    lines = pending(workspace(renamed)).lines()
    assert [line for line in lines if not line.startswith("evaluate ")] == []


def test_a_comparison_by_the_letter_would_be_caught(renamed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the test above."""
    monkeypatch.setattr(todo, "agreed", lambda ours, theirs: dict(ours))
    with pytest.raises(SpecMismatch) as caught:
        pending(workspace(renamed))
    assert caught.value.found == "'mlp'"


def test_a_capture_that_was_begun_with_yesterdays_name_is_resumed(renamed: Path) -> None:
    whole, store = contents(renamed / "out"), renamed / "out" / "store.zarr"
    for name in ("2", "3", "4"):  # the log names samples, wide, deep and the clustering
        (store / "__logitstore__" / "log" / f"{name}.json").unlink()
    shutil.rmtree(store / "clusters" / "wide-2x2")
    for part in ("wide", "deep"):
        for seal in ("seal.json", "seal.bin"):
            (store / "teachers" / part / "__logitstore__" / seal).unlink()
    report = run_document(document(), renamed, renamed / "out")
    assert "capture teacher deep" in report.done
    after = contents(renamed / "out")
    assert {n: d for n, d in after.items() if n.startswith("store.zarr")} == {
        n: d for n, d in whole.items() if n.startswith("store.zarr")
    }
