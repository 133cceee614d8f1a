"""Does an object appear whole or not at all, once, and durably, and what is said when it cannot?"""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from logitstore.storage.errors import (
    ConfigError,
    LogitStoreError,
    StorageError,
    StorageFull,
    TransientIOError,
)
from logitstore.storage.files import Folder, local_path

TMP = "__logitstore__/tmp"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "part")


def test_put_new_writes_once(folder: Folder) -> None:
    assert folder.put_new("a/b/c.0", b"first")
    assert not folder.put_new("a/b/c.0", b"second")
    assert folder.read("a/b/c.0") == b"first"
    assert os.listdir(folder.path / TMP) == []


def test_reading_a_range(folder: Folder) -> None:
    folder.put_new("x", b"0123456789")
    assert folder.read_range("x", 3, 4) == (b"3456", 10)
    assert folder.read_range("x", 8, 9) == (b"89", 10)
    assert folder.read_range("x", 20, 1) == (b"", 10)
    with pytest.raises(FileNotFoundError):
        folder.read_range("y", 0, 1)


def test_of_many_writers_one_wins(folder: Folder) -> None:
    """Sixteen threads, one name: exactly one is told that it wrote, and its bytes are there."""
    results: dict[int, bool] = {}
    barrier = threading.Barrier(16)

    def put(number: int) -> None:
        barrier.wait()
        results[number] = folder.put_new("x/y", bytes([number]) * 1000)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [number for number, won in results.items() if won]
    assert folder.read("x/y") == bytes([winner]) * 1000


def test_bytes_then_link_then_directory(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the page: data are synced before the name is there, and the name before the return."""
    folder.put_new("x/first", b"1")  # the folders are there from now on
    happened: list[str] = []

    def record(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            subject = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[-1])
            happened.append(f"{name} {'tmp' if '/tmp/' in subject.replace(str(folder.path), '') else 'x'}")
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "unlink"):
        record(name)
    folder.put_new("x/second", b"2")
    assert happened == ["fsync tmp", "link x", "unlink tmp", "fsync x"]


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (
            errno.ENOSPC,
            StorageFull,
            "expected room to write, found No space left on device (errno 28); free space",
        ),
        (
            errno.EDQUOT,
            StorageFull,
            "free space and run the same command again; what was committed is intact",
        ),
        (
            errno.EIO,
            TransientIOError,
            "expected a working file system, found Input/output error (errno 5); run the",
        ),
        (
            errno.EACCES,
            StorageError,
            "found Permission denied (errno 13); check the path and its permissions",
        ),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_errors_of_the_system_are_typed_and_leave_nothing(
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[LogitStoreError],
    message: str,
) -> None:
    folder.put_new("there", b"")

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(error) as caught:
            folder.put_new("x", b"data")
    assert str(caught.value).startswith(f"{folder.path / 'x'}: expected ")
    assert message in str(caught.value)
    assert isinstance(caught.value, OSError)
    assert not folder.exists("x")
    assert os.listdir(folder.path / TMP) == []
    assert folder.put_new("x", b"data")


def test_a_disk_that_takes_a_byte_at_a_time(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data[:1])))
    assert folder.put_new("x", b"all of it")
    assert folder.read("x") == b"all of it"


def test_a_file_on_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        StorageError, match="expected folders all the way, found a file on the way; choose another"
    ):
        Folder(tmp_path / "file" / "store").put_new("x", b"")


def test_staging_is_tidied_under_the_hands_of_a_writer(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer has sealed the part and takes the staging folder away: the object is staged anew."""
    link, times = os.link, 0

    def tidied(source: Any, target: Any) -> None:
        nonlocal times
        times += 1
        if times <= 3:
            folder.drop_staging()
        link(source, target)

    monkeypatch.setattr(os, "link", tidied)
    assert folder.put_new("x", b"data")
    assert (times, folder.read("x")) == (4, b"data")


def test_staging_that_never_stays_is_an_error(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(*_: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file")

    monkeypatch.setattr(os, "link", vanish)
    with pytest.raises(
        TransientIOError, match="expected a staging folder that stays, found one that vanished 8 times"
    ):
        folder.put_new("x", b"data")


def test_dropping_staging_takes_what_is_left_in_it(folder: Folder) -> None:
    folder.put_new("x", b"")
    (folder.path / TMP / "left").write_bytes(b"half")
    folder.drop_staging()
    folder.drop_staging()
    assert not (folder.path / TMP).exists()


def test_removing_and_listing(folder: Folder) -> None:
    assert folder.names("none") == []
    folder.put_new("b", b"")
    folder.put_new("a", b"")
    assert folder.names() == ["__logitstore__", "a", "b"]
    folder.remove("a")
    folder.remove("a")
    assert not folder.exists("a")
    assert folder.put_new("a", b"")


def test_locations(tmp_path: Path) -> None:
    assert local_path(tmp_path) == local_path(str(tmp_path)) == local_path(tmp_path.as_uri()) == tmp_path
    with pytest.raises(
        ConfigError, match=r"^s3://bucket/key: expected a local path, found a s3:// URL; copy the store"
    ):
        local_path("s3://bucket/key")
