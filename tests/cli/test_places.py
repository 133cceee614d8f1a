"""Places that cannot hold a store, streams that are closed, stores that vanish: one line, before work is done."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner, Result
from support import experiments, stores
from support.experiments import document, parsed

from logitstore.cli.main import cli
from logitstore.pipeline.run import run
from logitstore.storage.api import open_store
from logitstore.storage.backends import posix
from logitstore.storage.backends.local import Folder
from logitstore.storage.backends.obstacles import check_folder
from logitstore.storage.backends.posix import check_writable
from logitstore.storage.errors import LogitStoreError, StorageError, StorageFull, StorageRefused
from logitstore.storage.integrity.repair import repair
from logitstore.storage.integrity.sealed_faults import SealedDiagnosis

LONG = "a" * 300


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store and a file; the working directory."""
    stores.make(tmp_path / "s", rows=9, classes=3, block_rows=4, teachers={})
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["inspect", "verify", "repair", "doctor"])
@pytest.mark.parametrize("location", ["file/x", LONG, f"{LONG}/x", "http://[::1", "http://[::1]]/x"])
def test_a_place_that_cannot_be_is_one_line(place: Path, command: str, location: str) -> None:
    result = call(command, location)
    assert result.exit_code in (4, 64, 65), result.stderr
    lines = [line for line in result.output.splitlines() if "expected" in line]
    assert len(lines) == 1 and "bug" not in result.output


@pytest.mark.parametrize("out", ["file/x", LONG])
def test_an_out_that_cannot_be_is_found_before_a_teacher_is_trained(place: Path, out: str) -> None:
    experiments.write_data(place)
    experiment = parsed(document(), place)
    with (
        mock.patch("logitstore.pipeline.cache.stage.train_teacher", side_effect=AssertionError("trained")),
        pytest.raises(StorageRefused),
    ):
        run(experiment, place / out, device="cpu")


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EROFS, StorageRefused), (errno.ENOSPC, StorageFull), (errno.EACCES, StorageRefused)],
)
def test_a_disk_that_takes_nothing_is_found_before_a_teacher_is_trained(
    tmp_path: Path, number: int, kind: type[StorageError]
) -> None:
    experiments.write_data(tmp_path)
    experiment = parsed(document(), tmp_path)
    failing = mock.patch(
        "logitstore.storage.backends.posix._unnamed_file", side_effect=OSError(number, os.strerror(number))
    )
    trained: list[object] = []
    training = mock.patch(
        "logitstore.pipeline.cache.stage.train_teacher", side_effect=lambda *a: trained.append(a)
    )
    storing = mock.patch(
        "logitstore.pipeline.cache.stage._prepare", side_effect=kind("s", expected="", found="", remedy="")
    )
    with failing, training, storing, pytest.raises(kind):
        run(experiment, tmp_path / "out", device="cpu")
    assert not trained
    with training, storing, pytest.raises(kind):  # negative control: without the look ahead
        run(experiment, tmp_path / "out", device="cpu")
    assert trained


def test_a_look_ahead_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet" / "there")
    with mock.patch.object(
        posix, "NAMELESS", os.O_DIRECTORY | os.O_CREAT
    ):  # a file system without unnamed files
        check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("right", [os.W_OK, os.X_OK], ids=["write", "search"])
def test_a_store_that_is_not_written_may_be_read_only(place: Path, right: int) -> None:
    """The look ahead of a stage that writes a part finds its folder, by either right that it lacks."""
    folder = Folder(place / "s")
    check_folder(folder)
    with (
        mock.patch("os.access", lambda path, mode, **others: not mode & right),
        pytest.raises(StorageRefused, match="can be written to"),
    ):
        check_folder(folder)
    assert open_store(place / "s").num_rows == 9


def test_a_store_by_a_relative_path_is_the_same_from_anywhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store("s")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert len(store.samples.labels) == 9 and str(store.path) == "s"
    with pytest.raises(FileNotFoundError):
        Path("s").stat()  # negative control: the path by itself


@pytest.mark.parametrize("closed", ["stdout", "stderr", "both"])
@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_closed_streams_change_no_exit_code(place: Path, closed: str, command: str) -> None:
    words = {"stdout": ">&-", "stderr": "2>&-", "both": ">&- 2>&-"}[closed]
    for location, code in (("s", 0), ("none", 65)):
        shell = f'"$0" -m logitstore {command} {location} {words}'
        done = subprocess.run(
            ["sh", "-c", shell, sys.executable], check=False, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        assert "bug" not in done.stderr


def test_a_store_that_vanishes_under_repair_is_a_typed_error(place: Path) -> None:
    real = SealedDiagnosis.faults

    def faults(self: SealedDiagnosis) -> Iterator[object]:
        yield from real(self)
        shutil.rmtree(place / "s", ignore_errors=True)

    with mock.patch.object(SealedDiagnosis, "faults", faults), pytest.raises(LogitStoreError):
        repair(place / "s")


def test_a_folder_that_vanishes_in_the_middle_of_a_call_is_one_too(place: Path) -> None:
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", "samples")
    with (
        mock.patch.object(Folder, "files", side_effect=gone),
        pytest.raises(StorageError, match="samples was removed"),
    ):
        repair(place / "s")
    with mock.patch("logitstore.storage.integrity.verify.verify", side_effect=gone):
        result = call("verify", place / "s")
    assert result.exit_code == 65
    assert "samples: expected a path that can be used, found no such file or directory" in result.stderr
