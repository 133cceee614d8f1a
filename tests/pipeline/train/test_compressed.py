"""A student that learns from a compressed capture, which it names in `teachers`."""

from pathlib import Path
from typing import Any

import pytest
from support import experiments
from support.experiments import document, parsed, run_document, student, train
from support.messages import Sentences

from logitstore.pipeline.compress.stage import compress
from logitstore.pipeline.run import pending
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.errors import ConfigError, LogitStoreError, PartNotFound

NAME = "wide-kl1e-3"


def content(*teachers: str, **changes: Any) -> dict[str, Any]:
    """The tiny document with a student of these teachers alone."""
    small = student("small", teachers=list(teachers), train=train(epochs=1, seeds=[0]))
    return document() | {"student": [small]} | changes


def refused(kind: type[LogitStoreError], folder: Path, document: dict[str, Any]) -> str:
    with pytest.raises(kind) as caught:
        pending(Workspace.of_folder(parsed(document, folder), folder / "out"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_compressed_capture_is_a_teacher(tmp_path: Path, sentence: Sentences) -> None:
    folder = experiments.copy_finished(tmp_path)
    sentence(refused(PartNotFound, folder, content(NAME)))
    store = open_store(folder / "out" / "store.zarr")
    compress(store, "wide", NAME, {"max_kl": 1e-3})
    report = run_document(content(NAME), folder, folder / "out")
    assert report.done == ["train student small-seed0"]
    assert run_document(content(NAME), folder, folder / "out").done == []
    assert run_document(content("deep", NAME), folder, folder / "out").done[0] == "train student small-seed0"
    record = Workspace.of_folder(parsed(content(NAME), folder), folder / "out").models.recorded_identity(
        "students", "small-seed0"
    )
    assert record is not None
    assert record["seals"][NAME] == open_store(folder / "out" / "store.zarr").digest_of(f"teachers/{NAME}")


def test_without_a_store_nothing_is_captured_first(tmp_path: Path, sentence: Sentences) -> None:
    experiments.write_data(tmp_path)
    sentence(refused(PartNotFound, tmp_path, content(NAME)))


@pytest.mark.parametrize("name", ["wied-kl1e-3", "kl1e-3", "wide-", "wide-7", "wide-Kl"])
def test_other_names_are_refused_as_the_file_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"student\[0\].teachers: expected a teacher's name, found"):
        parsed(content(name), tmp_path)


def test_a_specialist_is_no_teacher(tmp_path: Path) -> None:
    special = {"train": train(epochs=1, batch_size=16)}
    with pytest.raises(ConfigError, match="expected a teacher's name, found 'wide-2x2-0'"):
        parsed(content("wide-2x2-0", specialists=special), tmp_path)
