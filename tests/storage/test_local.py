"""Objects on a local disk: whole or absent, written once, durable; a failure is reported."""

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from logitstore.storage.backends.local import Folder, keep_directories, local_path
from logitstore.storage.backends.posix import replace_file
from logitstore.storage.backends.staged import NewObject
from logitstore.storage.errors import (
    CommitStateUnknown,
    ConfigError,
    LimitExceeded,
    LogitStoreError,
    StorageError,
    StorageFull,
    TransientIOError,
    UnsafeFileSystem,
    UntrustedStoreError,
)

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
            handle = arguments[0] if name == "fsync" else named.get("dst_dir_fd", named.get("dir_fd"))
            subject = os.readlink(f"/proc/self/fd/{handle}").replace(str(folder.path), "")
            happened.append(f"{name} {subject.split('/')[1 + subject.startswith('/__')]}")
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

    def fail(*_: Any, **__: Any) -> None:
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
        StorageError, match="expected folders at every level of the path, found a file; choose another"
    ):
        Folder(tmp_path / "file" / "store").put_new("x", b"")


def test_staging_is_tidied_under_the_hands_of_a_writer(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer leaves and takes the empty staging folder away between its making and its use."""
    real, times = os.open, 0

    def tidied(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        nonlocal times
        if flags & os.O_EXCL and times < 3:
            times += 1
            folder.tidy()
        return real(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", tidied)
    assert folder.put_new("x", b"data")
    assert (times, folder.read("x")) == (3, b"data")


def test_staging_that_never_stays_is_an_error(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def vanish(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & os.O_EXCL:
            raise FileNotFoundError(errno.ENOENT, "No such file")
        return real(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", vanish)
    with pytest.raises(
        StorageError, match="expected folders at every level of the path, found a folder that was removed"
    ):
        folder.put_new("x", b"data")


def test_sweeping_takes_what_killed_writers_left(folder: Folder) -> None:
    folder.put_new("x", b"")
    (folder.path / TMP / "left").write_bytes(b"half")
    folder.tidy()
    assert (folder.path / TMP / "left").exists()  # tidying takes nothing away that might be somebody's
    folder.sweep()
    folder.sweep()
    assert not (folder.path / TMP).exists()


def test_an_object_that_is_left_unpublished_leaves_nothing(folder: Folder) -> None:
    with pytest.raises(RuntimeError), folder.stage("x") as (new,):
        new.write(b"half")
        raise RuntimeError
    assert not folder.exists("x")
    assert os.listdir(folder.path / TMP) == []


@pytest.mark.parametrize("key", ["", "/x", "a//b", "../x", "a/../../x", "a/.", "nul\0", "x" * 256])
def test_no_key_leads_out(folder: Folder, key: str) -> None:
    for call in (folder.read, folder.exists, folder.remove, folder.sub, folder.size):
        with pytest.raises(UntrustedStoreError, match="expected keys inside the store"):
            call(key)
    with pytest.raises(UntrustedStoreError, match="expected keys inside the store"):
        folder.put_new(key, b"")


def test_what_is_no_plain_file_is_not_opened(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"outside")
    folder.put_new("inside", b"")
    os.symlink(tmp_path / "secret" / "key", folder.path / "link")
    os.symlink(tmp_path / "secret", folder.path / "folder")
    os.mkfifo(folder.path / "pipe")
    (folder.path / "directory").mkdir()
    found = {
        "link": "a symbolic link",
        "folder/key": "a symbolic link",
        "pipe": "a pipe",
        "directory": "a folder",
    }
    for key, kind in found.items():
        with pytest.raises(UntrustedStoreError, match=f"plain files, found {kind}; do not use"):
            folder.read(key)
    with pytest.raises(UntrustedStoreError, match="found a symbolic link"):
        folder.put_new("folder/new", b"")
    with pytest.raises(UntrustedStoreError, match="found a symbolic link"):
        folder.names("folder")
    assert not folder.put_new("link", b"changed")  # the name is taken; what it points to is not touched
    assert (tmp_path / "secret" / "key").read_bytes() == b"outside"
    assert os.listdir(tmp_path / "secret") == ["key"]


def test_a_file_beyond_its_limit_is_not_read(folder: Folder) -> None:
    folder.put_new("x", b"12345")
    assert folder.read("x", most=5) == b"12345"
    with pytest.raises(LimitExceeded, match="expected at most 4 bytes, found 5 bytes"):
        folder.read("x", most=4)
    with (folder.path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(LimitExceeded, match="found 1099511627776 bytes"):
        folder.read("sparse")


def test_a_name_that_was_had_although_the_call_failed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system loses the answer and sends the call again: the name is taken, by ourselves."""
    real = os.link

    def forgetful(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        real(*arguments, **named)

    monkeypatch.setattr(os, "link", forgetful)
    assert folder.put_new("x", b"ours")
    assert not folder.put_new("x", b"theirs")
    assert folder.read("x") == b"ours"


def linking_a_snapshot(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every staged file a second name just before it gets its own, as `cp -al` and rsnapshot may."""
    real = os.link

    def link(source: Any, target: Any, **named: Any) -> None:
        real(source, folder.path / f"snapshot-{source}", src_dir_fd=named["src_dir_fd"])
        real(source, target, **named)

    monkeypatch.setattr(os, "link", link)


def test_a_snapshot_of_hard_links_makes_no_loser_a_winner(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    linking_a_snapshot(folder, monkeypatch)
    assert folder.put_new("x", b"ours")
    assert not folder.put_new("x", b"theirs")
    assert folder.read("x") == b"ours"
    folder.prove_exclusive()


def test_a_loser_that_counts_its_names_is_seen(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: it reports a name as its own that another file has."""

    def has_name(self: NewObject, final: int) -> bool:
        return os.stat(self._temporary, dir_fd=self._directory).st_nlink > 1

    monkeypatch.setattr(NewObject, "_has_name", has_name)
    linking_a_snapshot(folder, monkeypatch)
    assert folder.put_new("x", b"ours")
    assert folder.put_new("x", b"theirs")
    assert folder.read("x") == b"ours"


def test_a_name_that_cannot_be_looked_up_after_a_link_that_failed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def no_look(path: Any, **named: Any) -> os.stat_result:
        if path == "x":
            fails()
        return real(path, **named)

    monkeypatch.setattr(os, "link", fails)
    monkeypatch.setattr(os, "stat", no_look)
    with pytest.raises(
        CommitStateUnknown, match="expected the file that has this name, after a link that failed"
    ):
        folder.put_new("x", b"")


def test_without_hard_links_a_rename_that_replaces_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    assert folder.put_new("x", b"first")
    assert not folder.put_new("x", b"second")
    assert folder.read("x") == b"first"
    assert os.listdir(folder.path / TMP) == []
    monkeypatch.setattr("logitstore.storage.backends.staged.rename_noreplace", none)
    with pytest.raises(
        UnsafeFileSystem, match="expected a file system with hard links, or with renames that"
    ):
        folder.put_new("y", b"")
    assert not folder.exists("y")


def test_a_file_system_that_lets_names_be_taken_over_is_refused(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.prove_exclusive()
    assert os.listdir(folder.path / TMP) == []
    real = os.link

    def replacing(source: Any, target: Any, **named: Any) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target, dir_fd=named["dst_dir_fd"])
        real(source, target, **named)

    monkeypatch.setattr(os, "link", replacing)
    with pytest.raises(UnsafeFileSystem, match="expected a file system that gives a name to one file only"):
        folder.prove_exclusive()
    assert os.listdir(folder.path / TMP) == []


def test_removing_and_listing(folder: Folder) -> None:
    assert folder.names("none") == []
    folder.put_new("b", b"")
    folder.put_new("a", b"")
    assert folder.names() == ["__logitstore__", "a", "b"]
    folder.remove("a")
    folder.remove("a")
    assert not folder.exists("a")
    assert folder.put_new("a", b"")


@pytest.mark.parametrize("moment", ["before it is opened", "once it is open"])
def test_a_folder_that_becomes_a_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Names outside the store are never listed, whenever a link takes the place of a folder."""
    folder = Folder(tmp_path / "store")
    folder.put_new("inner/deeper/own", b"x")
    folder.put_new("aside/z", b"x")
    (tmp_path / "outside" / "deeper").mkdir(parents=True)
    (tmp_path / "outside" / "deeper" / "secret").touch()
    exchanged: list[bool] = []

    def exchange() -> None:
        inner = tmp_path / "store" / "inner"
        inner.rename(tmp_path / "away")
        inner.symlink_to(tmp_path / "outside")
        exchanged.append(True)

    real, calls = os.scandir, []

    def scandir(place: Any) -> Any:
        calls.append(place)
        now = moment == "once it is open" and os.listdir(place) == ["deeper"]
        if now and not exchanged:
            exchange()
        entries = list(real(place))
        if moment == "before it is opened" and len(calls) == 1:
            exchange()
        return contextlib.nullcontext(iter(entries))

    monkeypatch.setattr(os, "scandir", scandir)
    keys = folder.files()
    assert exchanged
    assert keys == ["aside/z", "inner" if moment == "before it is opened" else "inner/deeper"]


def test_folders_are_listed_to_a_depth(folder: Folder) -> None:
    """Fifty levels cost no more than the levels of a store: the deepest that is listed is a key of its own."""
    os.makedirs(Path(folder.path, *["d"] * 50))
    assert folder.files() == ["/".join(["d"] * 33)]


def test_locations(tmp_path: Path) -> None:
    assert local_path(tmp_path) == local_path(str(tmp_path)) == local_path(tmp_path.as_uri()) == tmp_path
    with pytest.raises(
        ConfigError, match=r"^s3://bucket/key: expected a local path, found a s3:// URL; copy the store"
    ):
        local_path("s3://bucket/key")


# Files that are replaced


def test_a_file_is_replaced_and_the_litter_of_killed_calls_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    litter = tmp_path / f".a.json.{'0' * 12}"
    others = [tmp_path / f".b.json.{'0' * 12}", tmp_path / ".a.json.swp", tmp_path / ".a.json.0123"]
    for file in (litter, *others):
        file.write_bytes(b"half")
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_a_file_that_another_process_is_replacing_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    real, calls = os.fsync, [0]

    def fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] == 1:  # in the middle of the first call, another one comes
            replace_file(path, b"theirs")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(path, b"ours")
    assert path.read_bytes() == b"ours"
    assert list(tmp_path.iterdir()) == [path]


def test_a_call_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    replace_file(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="expected room for 3 bytes"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def opened_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the name of each file and folder that is opened."""
    names: list[str] = []
    real = os.open

    def counted(path: Any, *arguments: Any, **named: Any) -> int:
        names.append(os.path.basename(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", counted)
    return names


def test_a_directory_that_is_kept_is_opened_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        folder.put_new(f"a/c.{number}", b"0123")
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    names = opened_in(monkeypatch)
    with keep_directories():
        assert [folder.read(f"a/c.{number}") for number in range(3)] == [b"0123"] * 3
        with pytest.raises(FileNotFoundError):
            folder.read("a/c.9")
        elsewhere = threading.Thread(target=folder.read, args=("a/c.0",))
        elsewhere.start()
        elsewhere.join()
    assert names.count("a") == 2  # once by each thread
    assert (os.listdir("/proc/self/fd") if before else []) == before
    folder.read("a/c.0")
    assert names.count("a") == 3


def test_a_kept_directory_is_closed_after_an_error(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put_new("a/c.0", b"0123")
    handles: list[int] = []
    walk, close = Folder._walk, os.close

    def walked(self: Folder, *arguments: Any) -> int:
        handles.append(walk(self, *arguments))
        return handles[-1]

    def closed(handle: int) -> None:
        if handle in handles:
            handles.remove(handle)
        close(handle)

    monkeypatch.setattr(Folder, "_walk", walked)
    monkeypatch.setattr(os, "close", closed)
    with pytest.raises(LimitExceeded), keep_directories():
        with contextlib.suppress(FileNotFoundError):
            folder.read("a/c.9")
        assert len(handles) == 1
        folder.read("a/c.0", most=2)
    assert not handles


def test_a_kept_directory_stays_the_same_one(folder: Folder, tmp_path: Path) -> None:
    folder.put_new("a/c.0", b"ours")
    other = tmp_path / "other"
    other.mkdir()
    (other / "c.0").write_bytes(b"theirs")
    with keep_directories():
        assert folder.read("a/c.0") == b"ours"
        os.rename(folder.path / "a", folder.path / "b")
        os.symlink(other, folder.path / "a")
        assert folder.read("a/c.0") == b"ours"
    with pytest.raises(UntrustedStoreError):
        folder.read("a/c.0")
