"""The doctor: it detects whether a file system keeps the guarantees that several writers need.

A file system that does not is made by changing calls of this process alone: the second process, which is started
anew, makes them as they are.
"""

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from logitstore.cli.main import cli
from logitstore.storage.errors import ConfigError, StorageError
from logitstore.storage.integrity import doctor as probe
from logitstore.storage.integrity.doctor import SAFE, SAFE_VERDICT, UNSAFE, Findings, examine, mount_of

MEMORY = Path("/dev/shm")


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)])


def failed(findings: Findings, needed_by: str) -> list[str]:
    return [c.name for c in findings.checks if not c.passed and c.needed_by == needed_by]


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_local_disk_is_safe_for_several_writers_and_left_as_it_was(
    tmp_path: Path, where: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path
    if where == "memory":
        if not MEMORY.is_dir():
            pytest.skip("needs /dev/shm")
        folder = MEMORY
    before = {name for name in os.listdir(folder) if "doctor" in name}
    findings = examine(folder, rounds=300)
    assert (findings.verdict, findings.exit_code) == (SAFE_VERDICT, SAFE)
    assert all(check.passed for check in findings.checks if check.needed_by != "nobody"), findings.checks
    assert findings.free_bytes > 0
    if where == "memory":
        assert findings.mount.kind == "tmpfs"
    assert {name for name in os.listdir(folder) if "doctor" in name} == before
    (race,) = [check.found for check in findings.checks if check.name.startswith("link")]
    ours, theirs = (int(word) for word in race.partition(", ")[2].split(" to "))
    assert ours + theirs == 300
    assert min(ours, theirs) > 0, "there was no race"


def replacing(source: Any, target: Any, **others: Any) -> None:
    os.replace(source, target)


def refusing(number: int) -> Callable[..., None]:
    def refuse(*arguments: Any, **others: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def lying(handle: int, kind: int) -> None:
    """A lock that is always had."""


def test_links_that_replace_are_not_safe_for_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", replacing)
    findings = examine(tmp_path, rounds=50)
    assert (findings.verdict, findings.exit_code) == ("one writer at a time", UNSAFE)
    assert failed(findings, "several writers") == ["link: one winner of a race"]


def test_locks_that_lie_are_not_safe_for_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lying)
    findings = examine(tmp_path, rounds=5)
    assert findings.verdict == "one writer at a time"
    assert failed(findings, "several writers") == ["flock between processes"]


def test_without_locks_nothing_is_taken_away_and_writers_stay_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    findings = examine(tmp_path, rounds=5)
    assert findings.verdict == SAFE_VERDICT
    (lock,) = [check for check in findings.checks if check.name.startswith("flock")]
    assert (lock.passed, lock.found) == (False, "No locks available: torn files are not taken away")


def test_a_rename_that_replaces_nothing_stands_in_for_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    findings = examine(tmp_path, rounds=50)
    assert findings.verdict == SAFE_VERDICT
    assert failed(findings, "nobody") == ["link: one winner of a race"]


def test_names_that_can_be_given_in_no_safe_way_are_not_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(probe, "rename_noreplace", refusing(errno.EINVAL))
    findings = examine(tmp_path, rounds=5)
    assert (findings.verdict, findings.exit_code) == ("not safe", UNSAFE)


def test_a_rename_that_replaces_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the stand-in."""
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(probe, "rename_noreplace", lambda _, source, __, target: os.replace(source, target))
    assert examine(tmp_path, rounds=50).verdict == "not safe"


def test_names_that_come_late_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def stale(path: Any) -> list[str]:
        return [name for name in listdir(path) if not name.startswith("seen-")]

    monkeypatch.setattr(os, "listdir", stale)
    findings = examine(tmp_path, rounds=5)
    assert failed(findings, "several writers") == ["a name is seen at once by the other process"]


def test_a_disk_that_cannot_sync_a_directory_is_not_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    findings = examine(tmp_path, rounds=5)
    assert findings.verdict == "not safe"
    assert failed(findings, "every writer") == ["fsync of a file", "fsync of a directory"]


def test_a_file_that_is_made_twice_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = os.open

    def forgetful(path: Any, flags: int, *arguments: Any, **others: Any) -> int:
        return made(path, flags & ~os.O_EXCL, *arguments, **others)

    monkeypatch.setattr(os, "open", forgetful)
    assert failed(examine(tmp_path, rounds=5), "every writer") == ["O_EXCL: a file is made once"]


def test_network_file_systems_are_told_from_local_ones() -> None:
    table = "22 1 0:21 / / rw - ext4 /dev/vda rw\n23 22 0:22 / /a\\040b rw,noatime - {} host:/x rw"
    for kind in (
        "nfs4",
        "nfs",
        "cifs",
        "smb3",
        "lustre",
        "fuse.sshfs",
        "fuse",
        "ceph",
        "9p",
        "beegfs",
        "gpfs",
    ):
        mount = mount_of(Path("/a b/c"), table.format(kind))
        assert (mount.kind, mount.point, mount.options) == (kind, "/a b", "rw,noatime")
        assert mount.is_network, kind
        assert kind in Findings(Path("/a b"), mount, 1).not_tested[0]
    for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "f2fs", "apfs"):
        assert not mount_of(Path("/a b/c"), table.format(kind)).is_network, kind
    assert mount_of(Path("/elsewhere"), table.format("nfs4")).kind == "ext4"
    assert mount_of(Path("/a bc"), table.format("nfs4")).point == "/"


def test_a_path_that_is_no_folder_and_one_that_cannot_be_written_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder, found nothing"):
        examine(tmp_path / "nothing")
    if Path("/proc").is_dir():
        with pytest.raises(StorageError):
            examine(Path("/proc"))
        result = doctor("/proc")
        assert result.exit_code == 4
        assert result.stderr.startswith("logitstore: /proc: expected ")
        assert result.stderr.count("\n") == 1
    assert doctor(tmp_path / "nothing").exit_code == 64


def test_the_command_says_what_was_tried_and_leaves_with_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = doctor(tmp_path, "--rounds", 20)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"{tmp_path}: {SAFE_VERDICT}"
    assert "not tested: a real power cut" in result.stdout
    assert "20 races" in result.stdout
    found = json.loads(doctor(tmp_path, "--rounds", 5, "--json").stdout)
    assert (found["verdict"], found["exit_code"], found["network"]) == (SAFE_VERDICT, 0, False)
    assert {check["name"]: check["passed"] for check in found["checks"]}["flock between processes"]
    monkeypatch.setattr(os, "link", replacing)
    result = doctor(tmp_path, "--rounds", 20)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == f"{tmp_path}: one writer at a time"
