"""The workspace opens what it names once, and a stage that is handed its todo does not look for it again."""

import pickle
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from support import experiments
from support.experiments import Recorder, document, parsed

from logitstore.pipeline.cache import stage as caching
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.cache.todo import find_todo
from logitstore.pipeline.runtime.ranks import Ranks
from logitstore.pipeline.train.stage import train_students
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import begin_store
from logitstore.storage.errors import NotAStoreError


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """A workspace in which nothing is there yet."""
    experiments.write_data(tmp_path)
    return Workspace.of_folder(parsed(document(), tmp_path), tmp_path / "out", device="cpu")


def test_it_lies_in_one_folder_unless_told(work: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (work.path, work.models.folder, work.scores) == (
        out / "store.zarr", out / "models", out / "evaluation.json",
    )  # fmt: skip
    elsewhere = Workspace.of_store(work.experiment, out / "store.zarr", tmp_path / "nets")
    assert elsewhere.models.folder == tmp_path / "nets"


def test_the_store_is_none_until_it_is_made_and_then_one_object(work: Workspace) -> None:
    assert work.find_store() is None
    with pytest.raises(NotAStoreError):
        _ = work.store
    begin_store(work.path, num_rows=experiments.ROWS, num_classes=experiments.CLASSES)
    assert work.find_store() is work.find_store() is work.store


def test_the_transfer_set_is_opened_once(work: Workspace) -> None:
    rows = work.rows
    assert work.rows is rows
    assert replace(work, given_rows=rows).rows is rows


def test_the_first_rank_alone_reports(work: Workspace) -> None:
    recorder = Recorder()
    for rank in (0, 1):
        replace(work, progress=recorder, ranks=Ranks(rank, 2)).progress("task", rank, 2)
    assert recorder.of("task") == [(0, 2)]


def test_it_can_be_sent_to_a_worker(work: Workspace) -> None:
    _ = work.rows
    again = pickle.loads(pickle.dumps(replace(work)))
    assert (again.experiment, again.path, again.device) == (work.experiment, work.path, "cpu")


def test_a_stage_with_its_todo_does_not_look_again() -> None:
    folder = experiments.finished()
    work = Workspace.of_folder(parsed(document(), folder), folder / "out", device="cpu")
    todo = find_todo(work)
    looked = AssertionError("looked again")
    with (
        mock.patch.object(caching, "find_todo", side_effect=looked),
        mock.patch("logitstore.pipeline.train.stage.missing_students", side_effect=looked),
    ):
        assert (cache(work, todo).kept, train_students(work, [])) == (("wide", "deep"), [])
        with pytest.raises(AssertionError, match="looked again"):  # negative control
            cache(work)
