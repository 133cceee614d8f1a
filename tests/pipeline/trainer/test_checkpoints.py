"""The files of a checkpoint: what was written comes back, and nothing else ever does."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from logitstore.pipeline.trainer.checkpoints import Checkpoint, Checkpoints
from logitstore.storage.errors import BadDataError, StorageError, WriterBusy
from logitstore.storage.format.documents import canonical_json

IDENTITY = {"seals": {"wide": "sha256:00"}, "temperature": 2.0}


def checkpoint(step: int) -> Checkpoint:
    """A checkpoint whose content follows from its step."""
    tensors = {
        "model/weight": torch.full((3, 2), float(step)),
        "optimizer/0/step": torch.tensor(float(step)),
        "random/0": torch.arange(5, dtype=torch.uint8),
        "loss_sum": torch.tensor(0.1 * step, dtype=torch.float64),
    }
    return Checkpoint(step, IDENTITY, {"epoch": step // 10, "stream": {"rows": [[0, step]]}}, tensors)


def same(found: Checkpoint | None, wanted: Checkpoint) -> bool:
    """Whether a checkpoint came back as it was."""
    assert found is not None
    tensors: dict[str, Tensor] = dict(found.tensors)
    return (
        (found.step, found.identity, found.state) == (wanted.step, wanted.identity, wanted.state)
        and tensors.keys() == wanted.tensors.keys()
        and all(
            torch.equal(t, wanted.tensors[n]) and t.dtype == wanted.tensors[n].dtype
            for n, t in tensors.items()
        )
    )


def kept(path: Path) -> list[str]:
    """The files that are there, staging and all, by kind and step."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return sorted(f"{int(file.name[:12])}{file.suffix}" for file in files)


def with_checkpoints(path: Path, *steps: int) -> Checkpoints:
    """A folder with these."""
    made = Checkpoints(path)
    with mock.patch("os.fsync"):
        for step in steps:
            made.save(checkpoint(step))
    return made


def test_the_newest_comes_back_as_it_was_and_two_are_kept(tmp_path: Path) -> None:
    made = with_checkpoints(tmp_path / "c")
    assert made.newest() is None
    for step in (20, 100, 1000):  # as text, 1000 would come before 20
        made.save(checkpoint(step))
        assert same(Checkpoints(tmp_path / "c").newest(), checkpoint(step))
    assert kept(tmp_path / "c") == ["100.json", "100.safetensors", "1000.json", "1000.safetensors"]
    made.remove()
    assert not (tmp_path / "c").exists()
    made.remove()  # nothing there is fine


def test_tensors_without_their_json_are_no_checkpoint_and_are_swept(tmp_path: Path) -> None:
    made = with_checkpoints(tmp_path, 1)
    (tmp_path / "000000000002-00ff.safetensors").write_bytes(b"torn")
    assert same(made.newest(), checkpoint(1))
    made.keep_up_to(1)
    assert kept(tmp_path) == ["1.json", "1.safetensors"]
    with_checkpoints(tmp_path, 2)
    assert same(made.newest(), checkpoint(2))


def flips(data: bytes) -> list[bytes]:
    """The same with one bit of some bytes flipped, cut, empty, longer."""
    changed = []
    for place in range(0, len(data), max(1, len(data) // 40)):
        for bit in (0, 6):
            changed.append(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
    return [*changed, data[: len(data) // 2], data[:-1], b"", data + b"\0"]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_what_is_torn_or_flipped_is_refused_and_the_one_before_is_taken(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = with_checkpoints(tmp_path, 1, 2)
    (file,) = tmp_path.glob(f"*02*.{suffix}")
    good = file.read_bytes()
    for number, bad in enumerate(flips(good)):
        file.write_bytes(bad)
        caplog.clear()
        assert same(made.newest(), checkpoint(1)), number
        (warning,) = caplog.messages
        assert warning.startswith(f"{tmp_path}/000000000002.json: ")
        assert warning.endswith("; resuming from step 1")  # and nothing to delete
        assert "\n" not in warning
    file.write_bytes(good)
    assert same(made.newest(), checkpoint(2))  # control
    file.unlink()
    assert same(made.newest(), checkpoint(1))


def test_where_none_is_whole_it_says_what_to_delete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = with_checkpoints(tmp_path, 1, 2)
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    message = (
        r"000000000002\.json: expected a checkpoint with the bytes of its sha256, found other bytes in \S+; "
        rf"delete {tmp_path} to restart the training$"
    )
    with pytest.raises(BadDataError, match=message):
        made.newest()
    assert caplog.messages == []  # one line, not one a checkpoint


def test_a_forged_json_with_a_digest_of_its_own_is_read_as_what_it_says(tmp_path: Path) -> None:
    """The digest is against accidents: another format, or another step than its name, is refused beyond it."""
    made = with_checkpoints(tmp_path, 3)
    file = tmp_path / "000000000003.json"
    record = json.loads(file.read_bytes())["record"]
    for change in ({"format": 2}, {"step": 4}):
        altered: dict[str, Any] = {**record, **change}
        digest = sha256(canonical_json(altered)).hexdigest()
        file.write_bytes(canonical_json({"record": altered, "sha256": digest}))
        with pytest.raises(BadDataError, match=r"found format \d, step \d"):
            made.newest()


def test_a_bad_one_makes_room_for_a_good_one_of_the_same_step(tmp_path: Path) -> None:
    made = with_checkpoints(tmp_path, 1, 2)
    (file,) = tmp_path.glob("*02-*.safetensors")
    file.write_bytes(b"")
    assert same(made.newest(), checkpoint(1))
    made.keep_up_to(1)
    made.save(checkpoint(2))
    assert same(made.newest(), checkpoint(2))


def test_tensors_that_are_longer_than_any_of_the_training_are_not_read(tmp_path: Path) -> None:
    """A sparse file of 8 GiB would be read whole, only to find that its digest is another."""
    made = with_checkpoints(tmp_path, 1, 2)
    (file,) = tmp_path.glob("*02-*.safetensors")
    with file.open("r+b") as handle:
        handle.truncate(8 << 30)
    read = made._folder.read

    def read_few(key: str, most: int) -> bytes:
        assert most < 1 << 20, "it is read"
        return read(key, most)

    with mock.patch.object(made._folder, "read", lambda key, most=1 << 10: read_few(key, most)):
        assert same(made.newest(1 << 20), checkpoint(1))
        with pytest.raises(BadDataError, match="it is read"):  # negative control: without a limit
            made.read(2)
    with pytest.raises(BadDataError, match=r"found 8,589,934,592 bytes of tensors, above the 1,048,576"):
        made.read(2, 1 << 20)


def test_two_trainings_of_one_student_do_not_mix(tmp_path: Path) -> None:
    made = with_checkpoints(tmp_path, 1)
    with pytest.raises(WriterBusy, match=r"expected one process that trains this student"):
        made.save(checkpoint(1))


def test_a_disk_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    made = with_checkpoints(tmp_path, 1)
    with (
        mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")),
        pytest.raises(StorageError),
    ):
        made.save(checkpoint(2))
    assert same(made.newest(), checkpoint(1))
    made.keep_up_to(1)
    assert kept(tmp_path) == ["1.json", "1.safetensors"]
