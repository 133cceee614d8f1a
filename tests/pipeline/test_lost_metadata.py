"""A sealed part that has lost a file of its metadata counts as missing; what made it writes the file again."""

from pathlib import Path

import pytest
from support import experiments
from support.experiments import contents, document, parsed, run_document

from logitstore.pipeline.run import pending
from logitstore.pipeline.workspace import Workspace, is_whole
from logitstore.storage.errors import ManifestInvalid


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
    assert is_whole(workspace(done).store, "teachers/deep")
    (done / "out" / "store.zarr" / "teachers" / "deep" / "zarr.json").unlink()
    assert not is_whole(workspace(done).store, "teachers/deep")
