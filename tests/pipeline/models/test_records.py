"""Records of models: made from the same things, and still the same weights, or to be made again."""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.pipeline.models.records import Models, weights_digest
from logitstore.storage.backends import posix
from logitstore.storage.backends.posix import replace_file
from logitstore.storage.errors import BadDataError, StorageError, StorageFull
from logitstore.storage.format.documents import canonical_json
from logitstore.storage.identity import as_json

IDENTITY = {"factory": "a:b", "args": {"hidden": (3, 4)}, "lr": 1e-3, "seed": 2**63}


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """A folder with one student."""
    models = Models(tmp_path / "models")
    path = models.weights_path("students", "small")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    models.put("students", "small", IDENTITY, weights_digest(path), {"parameters": 3})
    return models


def test_what_was_put_is_found_with_its_facts(models: Models) -> None:
    record = models.find("students", "small", IDENTITY)
    assert record is not None
    assert record.identity == {**IDENTITY, "args": {"hidden": [3, 4]}}
    assert record.facts == {"parameters": 3}
    assert record.weights == weights_digest(models.weights_path("students", "small"))
    assert models.recorded_identity("students", "small") == record.identity


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"lr": 2e-3}, {"args": {"hidden": [4, 3]}}, {"new": 1}, {"factory": "a:c"}]
)
def test_another_identity_is_not_found(models: Models, change: dict[str, Any]) -> None:
    assert models.find("students", "small", {**IDENTITY, **change}) is None


def test_other_kinds_and_names_are_not_found(models: Models) -> None:
    assert models.find("teachers", "small", IDENTITY) is None
    assert models.find("students", "smaller", IDENTITY) is None
    assert models.recorded_identity("students", "smaller") is None


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"identity": {}, "weights": "x"}',
        b"\xff",
        b'{"identity":1,"identity":2}',
    ],
)
def test_a_torn_record_counts_as_none(models: Models, record: bytes) -> None:
    models.weights_path("students", "small").with_suffix(".json").write_bytes(record)
    assert models.find("students", "small", IDENTITY) is None
    assert models.recorded_identity("students", "small") is None


@pytest.mark.parametrize("damage", ["gone", "longer", "flipped"])
def test_weights_that_are_gone_or_changed_count_as_none(models: Models, damage: str) -> None:
    path = models.weights_path("students", "small")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"weights!" if damage == "longer" else b"weighty")
    assert models.find("students", "small", IDENTITY) is None
    # What it was made from is still known: a changed teacher is refused, whatever became of its file.
    assert models.recorded_identity("students", "small") is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_as_json_is_what_a_file_gives_back(value: dict[str, Any]) -> None:
    once = as_json(value)
    assert once == as_json(once) == json.loads(json.dumps(value))


def test_the_digest_of_a_missing_file_says_where(tmp_path: Path) -> None:
    with pytest.raises(
        BadDataError, match=r"none\.safetensors: expected a file of weights, found No such file"
    ):
        weights_digest(tmp_path / "none.safetensors")


# Writing


def test_a_file_that_is_written_again_within_a_tick_of_the_clock_has_the_digest_of_its_new_bytes(
    tmp_path: Path,
) -> None:
    """Place, size and time of a young file may be those of before. Of an older one they tell: it is hashed once."""
    path, seen, now = tmp_path / "a.safetensors", [], time.time()
    for age, content in (
        (0.0, b"old weights"),
        (0.0, b"new weights"),
        (60.0, b"older bytes"),
        (60.0, b"hashed once"),
    ):
        path.write_bytes(content)
        then = int((now - age) * 1e9)
        os.utime(path, ns=(then, then))
        seen.append(weights_digest(path))
    digest = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (b"old weights", b"new weights")]
    assert seen[:2] == digest
    assert seen[2] == seen[3]  # control: the digest is known by place, size and time


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    replace_file(path, b"old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(
        StorageFull, match=r"file: expected room for 3 bytes .*, found No space left .*; make room"
    ):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(StorageError, match=r"found (File exists|Not a directory)") as caught:
        replace_file(tmp_path / "taken" / "file", b"new")
    assert not isinstance(caught.value, StorageFull)


def test_what_is_renamed_was_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File before its rename, folder after it: else a crash may leave an empty file under the name."""
    steps: list[str] = []
    genuine_fsync, genuine_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append("folder" if name.is_dir() else "file")
        genuine_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return genuine_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    replace_file(tmp_path / "file", b"content")
    assert steps == ["file", "rename", "folder"]


# What a killed run leaves


def leftovers(folder: Path) -> set[str]:
    """Names of files and folders in the models."""
    return {path.name for path in (folder / "students").iterdir()}


def littered(models: Models) -> Path:
    """A finished model, beside unfinished files of it and of another one; the folder."""
    folder = made(models).parent
    for name in (
        ".small.safetensors.0123456789ab",
        ".small.json.0123456789ab",
        ".small.metrics.jsonl.0123456789ab",
    ):
        (folder / name).write_bytes(b"half")
    for name in (".smaller.safetensors.0123456789ab", ".small.safetensors.mine", "small.txt"):
        (folder / name).write_bytes(b"another's")
    return folder


def made(models: Models) -> Path:
    """A model with its record; its weights."""
    path = models.weights_path("students", "small")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    models.put("students", "small", IDENTITY, weights_digest(path), {})
    return path


def checkpoint_of(folder: Path, identity: Mapping[str, Any]) -> Path:
    """A checkpoint of a training, beside its tensors; its folder."""
    checkpoints = folder / "small.checkpoints"
    checkpoints.mkdir()
    record = {"format": 1, "step": 3, "identity": dict(identity)}
    (checkpoints / "000000000003.json").write_bytes(canonical_json({"record": record, "sha256": "0"}))
    (checkpoints / "000000000003-00.safetensors").write_bytes(b"tensors")
    return checkpoints


def test_unfinished_files_of_a_model_are_taken_away_and_no_others(tmp_path: Path) -> None:
    models = Models(tmp_path)
    littered(models)
    models.tidy("students", "small")
    assert leftovers(tmp_path) == {
        "small.safetensors", "small.json", "small.txt",
        ".smaller.safetensors.0123456789ab", ".small.safetensors.mine",
    }  # fmt: skip
    assert models.find("students", "small", IDENTITY) is not None
    Models(tmp_path / "nowhere").tidy("students", "small")


def test_a_file_that_is_being_written_stays(tmp_path: Path) -> None:
    """Another process holds its lock, and renames it when it is whole."""
    models = Models(tmp_path)
    folder = littered(models)
    with (folder / ".small.safetensors.0123456789ab").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        models.tidy("students", "small")
        assert ".small.safetensors.0123456789ab" in leftovers(tmp_path)
    models.tidy("students", "small")
    assert ".small.safetensors.0123456789ab" not in leftovers(tmp_path)


def test_a_file_is_locked_as_long_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def sweeping(handle: int) -> None:
        posix.remove_leftovers(tmp_path / "a.json")
        seen.append([path.name[:8] for path in tmp_path.iterdir()])

    monkeypatch.setattr("os.fsync", sweeping)
    posix.replace_file(tmp_path / "a.json", b"content")
    assert seen[0] == [".a.json."] and (tmp_path / "a.json").read_bytes() == b"content"


@pytest.mark.parametrize("change", [{}, {"seed": 4}], ids=["of its training", "of another"])
def test_checkpoints_go_with_the_training_that_has_ended(tmp_path: Path, change: dict[str, Any]) -> None:
    """Those of another training are hours of work, and stay."""
    models = Models(tmp_path)
    checkpoints = checkpoint_of(made(models).parent, {**IDENTITY, **change})
    models.tidy("students", "small")
    assert checkpoints.exists() is bool(change)


def test_checkpoints_stay_if_one_among_them_is_of_another_training(tmp_path: Path) -> None:
    """The folder goes as a whole, and hours of that training with it."""
    models = Models(tmp_path)
    checkpoints = checkpoint_of(made(models).parent, IDENTITY)
    other = {"record": {"format": 1, "step": 4, "identity": {**IDENTITY, "seed": 4}}, "sha256": "0"}
    (checkpoints / "000000000004.json").write_bytes(canonical_json(other))
    models.tidy("students", "small")
    assert checkpoints.exists()
    (checkpoints / "000000000004.json").unlink()
    models.tidy("students", "small")  # control
    assert not checkpoints.exists()


def test_checkpoints_of_a_training_that_goes_on_stay(tmp_path: Path) -> None:
    """No record was written, or its weights are gone."""
    models = Models(tmp_path)
    path = made(models)
    checkpoints = checkpoint_of(path.parent, IDENTITY)
    path.unlink()
    models.tidy("students", "small")
    path.with_suffix(".json").unlink()
    models.tidy("students", "small")
    assert checkpoints.exists()


# Records of earlier versions


def test_a_record_is_compared_by_what_it_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of before there was source in it; that nobody compared it is said once."""
    models = Models(tmp_path)
    made(models)
    today = {**IDENTITY, "source": {"mine.py": "sha256:0"}}
    for _ in range(2):
        assert models.find("students", "small", today) is not None
    assert caplog.text.count("students/small.json: written by a version that kept no source of a model") == 1
    assert models.find("students", "small", {**today, "seed": 9}) is None


def test_a_record_with_source_is_of_that_source_alone(tmp_path: Path) -> None:
    models = Models(tmp_path)
    path, identity = made(models), {**IDENTITY, "source": {"mine.py": "sha256:0"}}
    models.put("students", "small", identity, weights_digest(path), {})
    assert models.find("students", "small", identity) is not None
    assert models.find("students", "small", {**IDENTITY, "source": {"mine.py": "sha256:1"}}) is None
    assert models.find("students", "small", IDENTITY) is None


@pytest.mark.timeout(30)
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    models = Models(tmp_path)
    path = made(models).with_suffix(suffix)
    path.unlink()
    os.mkfifo(path)
    assert models.find("students", "small", IDENTITY) is None
