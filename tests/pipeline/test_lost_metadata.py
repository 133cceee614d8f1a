"""A sealed part that has lost files counts as missing; what made it writes them again."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from support import experiments
from support.experiments import contents, document, parsed, run_document, whole_document

from logitstore.pipeline.run import pending
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import LogitStoreError, ManifestInvalid
from logitstore.storage.integrity.repair import DONE, repair


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A folder of its own in which everything is done."""
    return experiments.copy_finished(tmp_path)


def workspace(folder: Path) -> Workspace:
    """The workspace of the finished folder."""
    return Workspace.of_folder(parsed(document(), folder), folder / "out", device="cpu")


LOST = [
    ("teachers/deep/zarr.json", "capture teacher deep"),
    ("teachers/deep/seen/zarr.json", "capture teacher deep"),
    ("samples/zarr.json", "write samples again"),
    ("clusters/wide-2x2/zarr.json", "make clustering wide-2x2"),
]


@pytest.mark.parametrize(("name", "line"), LOST, ids=[name for name, _ in LOST])
def test_it_is_listed_and_written_again(done: Path, name: str, line: str) -> None:
    before = contents(done / "out")
    (done / "out" / "store.zarr" / name).unlink()
    assert line in pending(workspace(done)).lines()
    assert line in run_document(document(), done, done / "out").done
    assert contents(done / "out") == before  # no student was trained, no other part was touched
    assert pending(workspace(done)).lines() == []


@pytest.mark.parametrize("name", [name for name, _ in LOST])
def test_a_damaged_file_is_not_taken_for_a_lost_one(done: Path, name: str) -> None:
    """Negative control: `repair` decides about bytes that are there."""
    file = done / "out" / "store.zarr" / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ManifestInvalid) as caught:
        pending(workspace(done))
    assert caught.value.found != "no file"


def test_a_part_without_its_metadata_is_not_whole(done: Path) -> None:
    assert workspace(done).store.is_whole("teachers/deep")
    (done / "out" / "store.zarr" / "teachers" / "deep" / "zarr.json").unlink()
    assert not workspace(done).store.is_whole("teachers/deep")


# Every stage, with encoded captures


@functools.cache
def _everything() -> Path:
    return experiments.kept_run(whole_document())


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """A folder of its own in which every stage is done."""
    shutil.copytree(_everything(), tmp_path, dirs_exist_ok=True)
    return tmp_path


def losses() -> Iterator[str]:
    """One folder of every kind of array of every kind of part, and files that the list of missing work reads."""
    yield from ("samples/label", "samples/digest", "samples/class_name", "samples/__logitstore__/commits")
    yield from (f"clusters/wide-2x2/{name}" for name in ("sets", "assignment", "covariance", "centres"))
    for part in ("wide", "spec-0", "all"):
        yield from (f"teachers/{part}/{name}" for name in ("logits", "classes"))
    yield from ("teachers/wide/__logitstore__/commits", "teachers/wide/error")
    yield from ("samples/label/c.1", "clusters/wide-2x2/sets/c.0.0", "teachers/wide/seen/c.1.0")


def mended(folder: Path) -> str:
    """Repair the store, run the experiment, and return what came of it."""
    with mock.patch("os.fsync"):
        done = repair(folder / "out" / "store.zarr")
    if done.exit_code != DONE:
        return f"repair: {done.beyond[0]}"
    try:
        run_document(whole_document(), folder, folder / "out")
    except LogitStoreError as error:
        return f"run: {error}"
    return "mended"


@pytest.mark.parametrize("name", list(losses()))
def test_after_a_repair_the_run_gets_there(everything: Path, name: str) -> None:
    before = contents(everything / "out")
    path = everything / "out" / "store.zarr" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert mended(everything) == "mended"
    assert contents(everything / "out") == before  # no network was trained, no other part was touched
    work = Workspace.of_folder(parsed(whole_document(), everything), everything / "out", device="cpu")
    assert pending(work).lines() == []


@pytest.mark.parametrize("name", ["samples/label", "clusters/wide-2x2/sets"])
def test_a_list_of_missing_work_that_reads_lost_parts_never_gets_there(everything: Path, name: str) -> None:
    """Negative control: `pending` takes a part that lost files for one that is there."""
    shutil.rmtree(everything / "out" / "store.zarr" / name)
    with mock.patch("logitstore.pipeline.specialists.todo.can_begin", return_value=True):
        assert mended(everything).startswith("run: ")


def test_the_report_of_a_run_names_the_work_that_was_done(everything: Path) -> None:
    """Labels come back, and no specialist is trained: what the list could not know is not claimed."""
    shutil.rmtree(everything / "out" / "store.zarr" / "samples/label")
    with mock.patch("os.fsync"):
        repair(everything / "out" / "store.zarr")
    assert run_document(whole_document(), everything, everything / "out").done == ["write samples again"]
