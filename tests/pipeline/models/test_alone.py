"""One training of a model at a time: the second process waits and takes what the first has made."""

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import experiments
from support.experiments import contents, document, parsed

from logitstore.pipeline.cache import stage, teachers
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.models import alone as alone_module
from logitstore.pipeline.models.alone import alone
from logitstore.pipeline.run import run
from logitstore.pipeline.train.stage import train_students
from logitstore.pipeline.trainer import resume
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import NameTaken, WriterBusy


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path: Path) -> None:
    weights = tmp_path / "teachers" / "t.safetensors"
    with alone(weights, "training teacher t") as waited:
        assert not waited
        assert [path.name for path in weights.parent.iterdir()] == [".t.lock"]
        with (
            pytest.raises(
                WriterBusy, match=r"^training teacher t: expected one training of this model at a time"
            ) as caught,
            alone(weights, "training teacher t", waits=False),
        ):
            pass
        assert caught.value.exit_code == 75
        with alone(tmp_path / "teachers" / "other.safetensors", "another model", waits=False):
            pass
    assert not weights.parent.exists()


def test_the_second_waits_until_the_first_has_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights, order = tmp_path / "t.safetensors", list[str]()

    def second() -> None:
        with alone(weights, "training teacher t") as waited:
            order.append(f"second, waited {waited}")

    with alone(weights, "training teacher t"):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 20
        while "waiting" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second, waited True"]
    assert caplog.text.count("another process trains this model; waiting until it has ended") == 1


def _die_with_the_lock(weights: str) -> None:
    with alone(Path(weights), "a training"):
        os._exit(9)


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    weights = tmp_path / "t.safetensors"
    child = multiprocessing.get_context("fork").Process(target=_die_with_the_lock, args=(str(weights),))
    child.start()
    child.join()
    assert (tmp_path / ".t.lock").exists()
    with alone(weights, "training teacher t", waits=False) as waited:
        assert not waited
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "made anew by a third"])
def test_the_lock_of_a_file_that_was_removed_meanwhile_keeps_nobody_out(
    tmp_path: Path, is_replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes would train the same model at once, and write over each other."""
    weights, lock = tmp_path / "t.safetensors", tmp_path / ".t.lock"
    genuine, calls = alone_module._lock, list[int]()

    def late(handle: int) -> bool:
        calls.append(handle)
        if len(calls) == 1:  # since the file was opened
            lock.unlink()
            if is_replaced:
                lock.touch()
        return genuine(handle)

    monkeypatch.setattr(alone_module, "_lock", late)
    with alone(weights, "training teacher t") as waited:
        assert waited and len(calls) == 2
        with pytest.raises(WriterBusy), alone(weights, "training teacher t", waits=False):
            pass


def _run(base: str, out: str) -> None:
    run(parsed(document(), Path(base)), Path(out), device="cpu")


def test_two_runs_begun_at_once_both_end_with_the_bytes_of_one(tmp_path: Path) -> None:
    experiments.write_data(tmp_path)
    fork: Any = multiprocessing.get_context("fork")
    children = [fork.Process(target=_run, args=(str(tmp_path), str(tmp_path / "out"))) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    ours, theirs = (
        contents(tmp_path / "out" / "store.zarr"),
        contents(experiments.finished() / "out" / "store.zarr"),
    )
    assert ours == theirs
    weights = {
        name: sha
        for name, sha in contents(tmp_path / "out" / "models").items()
        if name.endswith(".safetensors")
    }
    assert weights == {
        name: sha
        for name, sha in contents(experiments.finished() / "out" / "models").items()
        if name.endswith(".safetensors")
    }
    assert not list((tmp_path / "out" / "models").rglob("*.lock"))


def test_a_store_that_another_process_has_just_begun_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments.write_data(tmp_path)
    genuine = stage.begin_store

    def begun_twice(*args: Any, **sizes: Any) -> Any:
        genuine(*args, **sizes)  # the other process
        return genuine(*args, **sizes)

    monkeypatch.setattr(stage, "begin_store", begun_twice)
    work = Workspace.of_folder(parsed(document(), tmp_path), tmp_path / "out", device="cpu")
    assert cache(work).captured == ("wide", "deep")

    def another(*args: Any, **sizes: Any) -> Any:
        genuine(*args, **{**sizes, "num_rows": 10})
        return genuine(*args, **sizes)

    monkeypatch.setattr(stage, "begin_store", another)
    work = Workspace.of_store(work.experiment, tmp_path / "other.zarr", work.models.folder, device="cpu")
    with pytest.raises(NameTaken, match=r"expected a store of 150 rows .*, found a store of 10 rows"):
        cache(work)


@pytest.mark.parametrize("kind", ["teachers", "students"])
def test_what_another_process_has_trained_meanwhile_is_taken(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process had found it missing."""
    base = experiments.copy_finished(tmp_path)
    work = Workspace.of_folder(parsed(document(), base), base / "out", device="cpu")
    name, module = {"teachers": ("wide", teachers), "students": ("soft-seed0", resume)}[kind]
    record = work.models.weights_path(kind, name).with_suffix(".json")
    kept, before = record.read_bytes(), contents(base / "out" / "models")
    record.unlink()

    class Waited:
        def __init__(self, *args: Any, **settings: Any) -> None:
            record.write_bytes(kept)

        def __enter__(self) -> bool:
            return True

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(module, "alone", Waited)
    if kind == "teachers":
        found = teachers.train_teacher(work, work.experiment.teacher_members()[0])
        assert found.facts["seconds"] is not None
    else:
        assert train_students(work) == ["soft-seed0"]
    assert contents(base / "out" / "models") == before
