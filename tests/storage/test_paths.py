"""Stores read by their paths, where folders are not walked by descriptors; and the calls that systems differ in."""

import errno
import os
import resource
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import stores
from support.make_golden import DATA

from logitstore.storage.backends import local, paths, posix, system
from logitstore.storage.backends.local import Folder, local_path
from logitstore.storage.backends.paths import PathFolder
from logitstore.storage.errors import (
    ConfigError,
    LimitExceeded,
    StoreCorrupt,
    UnsupportedSystem,
    UntrustedStoreError,
)
from logitstore.storage.integrity.verify import CLEAN, verify
from logitstore.storage.parts.root import open_root

GOLDEN = DATA / "store-v1.0"


def both(path: Path) -> tuple[Folder, PathFolder]:
    return Folder(path), PathFolder(path)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Folder, PathFolder]:
    folder, by_path = both(tmp_path / "store")
    folder.put_new("a/b", b"0123456789")
    return folder, by_path


# The same answers as by descriptors


def test_every_file_is_read_as_by_descriptors() -> None:
    folder, by_path = both(GOLDEN)
    assert by_path.files() == folder.files()
    assert by_path.names("samples") == folder.names("samples")
    assert by_path.sub("samples").files() == folder.sub("samples").files()
    assert by_path.sub("samples").path == folder.sub("samples").path
    for key in folder.files():
        assert by_path.read(key) == folder.read(key)
        assert by_path.read_range(key, 3, 5) == folder.read_range(key, 3, 5)
        assert by_path.size(key) == folder.size(key)
    assert by_path.kind() == folder.kind() == "a folder"


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: [folder.exists(key) for key in ("a", "a/b", "a/c", "a/b/c", "d/e")],
        lambda folder: [folder.names(prefix) for prefix in ("", "a", "a/b", "none")],
        lambda folder: [folder.sub("a").exists("b"), folder.sub("none").files()],
        lambda folder: folder.read_range("a/b", 20, 1),
    ],
)
def test_questions_have_the_same_answers(pair: tuple[Folder, PathFolder], ask: Callable[[Any], Any]) -> None:
    folder, by_path = pair
    assert ask(by_path) == ask(folder)


@pytest.mark.parametrize("key", ["none", "a/none", "a/b/c", "none/b"])
def test_a_file_that_is_missing(pair: tuple[Folder, PathFolder], key: str) -> None:
    for folder in pair:
        with pytest.raises(FileNotFoundError):
            folder.read(key)


def test_pieces_of_a_file_are_read_through(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 3 * posix.PIECE_BYTES + 7, dtype=np.uint8).tobytes()
    (tmp_path / "x").write_bytes(data)
    pieces: list[bytes] = []
    size = PathFolder(tmp_path).read_through("x", 5, len(data), lambda piece: pieces.append(piece.tobytes()))
    assert (size, b"".join(pieces)) == (len(data), data[5:])


def test_a_file_beyond_its_limit_is_not_read(pair: tuple[Folder, PathFolder]) -> None:
    with pytest.raises(LimitExceeded, match="expected at most 4 bytes, found 10 bytes"):
        pair[1].read("a/b", most=4)


@pytest.mark.parametrize("key", ["", "/x", "a//b", "../x", "a/../../x", "nul\0", "x" * 256])
def test_no_key_leads_out(pair: tuple[Folder, PathFolder], key: str) -> None:
    for call in (pair[1].read, pair[1].exists, pair[1].size, pair[1].sub):
        with pytest.raises(UntrustedStoreError, match="expected keys inside the store"):
            call(key)


def test_a_store_is_verified_and_damage_is_found(tmp_path: Path) -> None:
    path = Path(shutil.copytree(GOLDEN, tmp_path / "store"))
    assert verify(PathFolder(path), deep=True).exit_code == CLEAN
    root = open_root(PathFolder(path))
    shard = next(path.glob("teachers/*/logits/c.*"))
    damaged = bytearray(shard.read_bytes())
    damaged[0] ^= 1
    shard.write_bytes(damaged)
    report = verify(PathFolder(path), deep=True)
    assert report.exit_code != CLEAN
    assert any(isinstance(problem, StoreCorrupt) for problem in report.problems)
    assert root.digest == report.digest


# What is not followed


def test_links_pipes_and_folders_are_not_opened(pair: tuple[Folder, PathFolder], tmp_path: Path) -> None:
    by_path, store = pair[1], tmp_path / "store"
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"outside")
    os.symlink(tmp_path / "secret" / "key", store / "link")
    os.symlink(tmp_path / "secret", store / "folder")
    os.mkfifo(store / "pipe")
    kinds = {"link": "a symbolic link", "folder/key": "a symbolic link", "pipe": "a pipe", "a": "a folder"}
    for key, kind in kinds.items():
        with pytest.raises(UntrustedStoreError, match=f"plain files, found {kind}; do not use"):
            by_path.read(key)
    with pytest.raises(UntrustedStoreError, match="found a symbolic link"):
        by_path.names("folder")
    assert by_path.files() == ["a/b", "folder", "link", "pipe"]
    assert by_path.exists("link")
    # The path that the user names may be a link.
    os.symlink(store, tmp_path / "named")
    assert PathFolder(tmp_path / "named").read("a/b") == b"0123456789"


def test_without_the_look_a_link_is_followed(
    pair: tuple[Folder, PathFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control, of a system without O_NOFOLLOW."""
    (tmp_path / "secret").write_bytes(b"outside")
    os.symlink(tmp_path / "secret", tmp_path / "store" / "link")
    monkeypatch.setattr(os, "lstat", os.stat)
    monkeypatch.setattr(paths, "_FILE", os.O_RDONLY)
    assert pair[1].read("link") == b"outside"


def test_a_junction_of_windows_is_not_followed(
    pair: tuple[Folder, PathFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    junction = os.stat(pair[1].path / "a").st_ino
    monkeypatch.setattr(paths, "leads_elsewhere", lambda status: status.st_ino == junction)
    with pytest.raises(UntrustedStoreError, match="found a junction"):
        pair[1].read("a/b")
    assert pair[1].files() == ["a"]


@pytest.mark.parametrize(
    ("mode", "tag", "leads"),
    [
        (stat.S_IFLNK, 0, True),
        (stat.S_IFDIR, 0xA000_0003, True),  # a junction
        (stat.S_IFREG, 0xA000_000C, True),  # a symbolic link of Windows
        (stat.S_IFDIR, 0x9000_001A, False),  # a folder in a cloud, which leads nowhere else
        (stat.S_IFREG, 0, False),
    ],
)
def test_a_reparse_point_of_windows_may_lead_elsewhere(mode: int, tag: int, leads: bool) -> None:
    assert system.leads_elsewhere(SimpleNamespace(st_mode=mode, st_reparse_tag=tag)) == leads
    assert system.leads_elsewhere(os.lstat(".")) is False  # of a system without such tags


def test_a_file_that_is_exchanged_while_it_is_opened(
    pair: tuple[Folder, PathFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"outside")
    real = os.open

    def exchanging(path: Any, *arguments: Any) -> int:
        os.replace(tmp_path / "secret", path)
        return real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", exchanging)
        with pytest.raises(UntrustedStoreError, match="found another file, put in its place"):
            pair[1].read("a/b")
    assert pair[1].read("a/b") == b"outside"  # negative control: that very file, unless it is exchanged


@pytest.mark.parametrize(
    "name", ["con", "NUL", "aux.x", "com1", "lpt9.json", "wide.", "wide ", "a:b", "a\\b"]
)
def test_names_of_which_windows_makes_others(tmp_path: Path, name: str) -> None:
    folder = Folder(tmp_path / "store")
    folder.put_new(f"teachers/{name}/x", b"data")
    by_path = PathFolder(tmp_path / "store")
    with pytest.raises(UnsupportedSystem, match="expected a name that is a file's on Windows, too"):
        by_path.read(f"teachers/{name}/x")
    assert not by_path.exists(f"teachers/{name}/x")
    assert by_path.files() == [f"teachers/{name}"]
    assert folder.read(f"teachers/{name}/x") == b"data"  # negative control


# Calls that systems lack


def lacking(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.delattr(os, name)


@pytest.mark.parametrize("names", [(), ("preadv",), ("preadv", "pread")], ids=["linux", "macos", "windows"])
def test_bytes_are_read_at_an_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    data = bytes(range(100))
    (tmp_path / "x").write_bytes(data)
    lacking(monkeypatch, *names)
    handle = os.open(tmp_path / "x", os.O_RDONLY)
    try:
        for offset, length in ((90, 20), (3, 5), (100, 4)):
            assert system.read_some(handle, length, offset) == data[offset : offset + length]
            buffer = np.zeros(length, np.uint8)
            count = system.read_into(handle, buffer.data, offset)
            assert buffer[:count].tobytes() == data[offset : offset + length]
    finally:
        os.close(handle)


def test_a_full_sync_falls_back_to_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system of macOS may know no full sync."""
    calls: list[str] = []

    def control(handle: int, command: int) -> None:
        calls.append("full")
        if not works:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    works = True
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync"))
    monkeypatch.setattr(system, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=control))
    system.sync(0)
    works = False
    system.sync(0)
    monkeypatch.setattr(system, "fcntl", None)
    system.sync(0)
    assert calls == ["full", "full", "fsync", "fsync"]


def test_a_limit_that_the_system_refuses_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, Any]] = []

    def refuse(kind: int, values: Any) -> None:
        limits.append((kind, values))
        if kind == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    system.limit_memory(1 << 40)
    assert [kind for kind, _ in limits] == [resource.RLIMIT_CORE, resource.RLIMIT_AS]
    monkeypatch.setattr(system, "_resource", None)
    system.limit_memory(1 << 40)
    assert len(limits) == 2


@pytest.mark.parametrize("number", [errno.ENOTDIR, errno.ELOOP, errno.EMLINK], ids=["linux", "macos", "bsd"])
def test_a_link_is_refused_however_the_system_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = Folder(tmp_path / "store")
    folder.put_new("x", b"")
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", folder.path / "link")
    real = os.open

    def refusing(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if path == "link" and flags & os.O_NOFOLLOW:
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(UntrustedStoreError, match="found a symbolic link"):
        folder.read("link/x")
    with pytest.raises(UntrustedStoreError, match="found a symbolic link"):
        folder.names("link")


def test_a_disk_of_windows_has_a_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_path("file:///C:/data/store.zarr") == Path("/C:/data/store.zarr")
    monkeypatch.setattr(system, "WALKS", False)
    assert local_path("file:///C:/data/store.zarr") == Path("C:/data/store.zarr")
    assert local_path("C:\\data\\store.zarr") == Path("C:\\data\\store.zarr")
    with pytest.raises(ConfigError):
        local_path("s3://bucket/x")


def test_a_folder_to_write_to_is_refused_where_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stores.make(tmp_path / "store", rows=9, classes=3, block_rows=4, teachers={})
    for module in (system, paths):
        monkeypatch.setattr(module, "WRITES", False)
    monkeypatch.setattr(system.platform, "system", lambda: "Windows")
    assert isinstance(paths.local_folder(made.path), PathFolder)
    with pytest.raises(UnsupportedSystem) as caught:
        Folder(tmp_path / "new")
    assert (caught.value.found, caught.value.exit_code) == ("Windows", 64)
    assert isinstance(caught.value, NotImplementedError)
    with pytest.raises(UnsupportedSystem):
        local.writable(PathFolder(made.path))


def test_this_system_walks_and_writes() -> None:
    """Safety on Linux rests on descriptors: nothing may turn them off unseen."""
    assert system.WALKS and system.WRITES
    assert local._FILE & os.O_NOFOLLOW and local._BELOW & os.O_NOFOLLOW and local._BELOW & os.O_DIRECTORY
