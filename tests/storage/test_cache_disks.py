"""Caches of shards on disks that fail, are full or cannot be written to: nothing of them ends a read, or lies about it."""

import errno
import logging
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import stores
from support.stores import Teacher
from support.web import Web, serving

from logitstore.storage.api import open_store
from logitstore.storage.backends import remote, remote_folder, shard_cache
from logitstore.storage.backends.cache_choice import cache_limits
from logitstore.storage.backends.shard_cache import CacheLimits, ShardCache
from logitstore.storage.backends.store_errors import TO_READ
from logitstore.storage.backends.urls import check_url
from logitstore.storage.errors import ConfigError, StorageRefused, TransientIOError
from logitstore.storage.format.constants import LOG


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    stores.make(path, rows=64, classes=7, block_rows=32, teachers={"wide": Teacher()})
    return path


@pytest.fixture
def web(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """Serve the store at <url>/store.zarr; who asks it is patient for a moment alone."""
    monkeypatch.setattr(remote, "_RETRY", {"max_retries": 0})
    monkeypatch.setattr(remote_folder, "PATIENCE_S", 0.0)
    with serving(whole.parent) as found:
        yield found


def logits(location: Any, **options: Any) -> Any:
    return open_store(location, **options).teachers["wide"].read(slice(None))


def objects(cache: Path) -> list[Path]:
    return [path for path in (cache / "v1" / "objects").rglob("*") if path.is_file()]


def put(cache: ShardCache, data: bytes) -> bool:
    return cache.fetch(sha256(data).hexdigest(), len(data), lambda write: write(memoryview(data)))


def test_a_changed_shard_that_cannot_be_removed_is_read_over_the_network(
    web: Web, whole: Path, tmp_path: Path
) -> None:
    url = f"{web.url}/store.zarr"
    logits(url, cache=tmp_path)
    for path in objects(tmp_path):
        data = bytearray(path.read_bytes())
        data[len(data) // 5] ^= 4
        path.write_bytes(data)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    with mock.patch.object(shard_cache.os, "unlink", refused):
        assert np.array_equal(logits(url, cache=tmp_path), logits(whole))


def test_a_cached_shard_that_cannot_be_read_is_read_over_the_network(
    web: Web, whole: Path, tmp_path: Path
) -> None:
    url = f"{web.url}/store.zarr"
    logits(url, cache=tmp_path)
    assert objects(tmp_path)

    def fails(handle: int, offset: int, length: int, take: Any, place: Any) -> None:
        genuine(handle, offset, length // 3, take, place)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    genuine = remote_folder.read_through
    with mock.patch.object(remote_folder, "read_through", fails):
        assert np.array_equal(logits(url, cache=tmp_path), logits(whole))


def test_a_disk_that_fails_while_it_is_written_to_is_not_blamed_on_the_server(
    web: Web, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = os.pwrite

    def fails(handle: int, data: Any, offset: int) -> int:
        if len(data) == 20 and bytes(data).isdigit():  # the count
            return genuine(handle, data, offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    wanted = logits(whole)
    with mock.patch.object(shard_cache.os, "pwrite", fails), caplog.at_level(logging.WARNING):
        assert np.array_equal(logits(f"{web.url}/store.zarr", cache=tmp_path), wanted)
    assert ["no more shards are kept" in record.getMessage() for record in caplog.records] == [True]


def test_a_shard_that_cannot_fit_removes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = CacheLimits(tmp_path, 250)
    for number in range(2):
        assert put(ShardCache(limits), bytes([number]) * 100)
    before = sorted(objects(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert not put(ShardCache(limits), bytes(300))
    assert sorted(objects(tmp_path)) == before
    assert "a shard has 300 bytes, of at most 250 for all" in caplog.text


def test_a_full_cache_is_not_counted_for_each_shard(tmp_path: Path) -> None:
    limits = CacheLimits(tmp_path, 4000)
    for number in range(40):
        assert put(ShardCache(limits), bytes([number]) * 100)
    user = ShardCache(limits)
    with mock.patch.object(user, "_counted", wraps=user._counted) as counted:
        assert put(user, b"a" * 100) and put(user, b"b" * 100)
    assert counted.call_count == 1
    assert sum(path.stat().st_size for path in objects(tmp_path)) <= 4000


def test_a_count_that_another_process_holds_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "_LOCK_SECONDS", 0.05)
    user = ShardCache(CacheLimits(tmp_path, 4000))
    assert put(user, b"first")
    handle = os.open(tmp_path / "v1" / "total", os.O_RDWR)
    try:
        assert shard_cache._lock(handle)
        assert not put(user, b"second")
        with mock.patch.object(user, "_counting", side_effect=AssertionError):
            assert not put(user, b"second")
    finally:
        os.close(handle)


def test_the_notes_of_a_store_are_locked_once_they_are_made(tmp_path: Path) -> None:
    """Keep them from another process, which may lock and remove the new file before its maker locks it."""
    genuine, calls = shard_cache._lock, []

    def lock(handle: int) -> bool:
        calls.append(handle)
        if len(calls) == 1:  # the other process has it, and is about to remove it
            return False
        if len(calls) == 2:
            assert len(list(tmp_path.iterdir())) == 1
        return genuine(handle)

    with mock.patch.object(shard_cache, "_lock", lock):
        lease = shard_cache._Lease(tmp_path)
    assert len(calls) == 2 and len(list(tmp_path.iterdir())) == 1
    lease.end()


def test_time_to_wait_for_a_server_begins_anew_with_each_byte(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_folder, "_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(remote_folder, "PATIENCE_S", 0.1)
    folder: Any = open_store(f"{web.url}/store.zarr").root.folder
    done = [0]

    def request(grows: int) -> str:
        remote_folder.time.sleep(0.05)
        done[0] += grows
        if done[0] < 6:
            raise TransientIOError("x", expected="a", found="b", remedy="c")
        return "whole"

    assert folder._patiently(lambda: request(1), progress=lambda: done[0]) == "whole"
    done[0] = 0
    with pytest.raises(TransientIOError):
        folder._patiently(lambda: request(0), progress=lambda: done[0])


@pytest.mark.parametrize("url", ["abfss://box@account.dfs.core.windows.net/x", "abfs://box@account/x"])
def test_the_container_of_a_url_of_azure_is_no_credential(url: str) -> None:
    check_url(url)
    for other in (url.replace("box", "box:key"), url.replace("abfss", "s3").replace("abfs", "s3")):
        with pytest.raises(ConfigError, match="a URL with credentials"):
            check_url(other)


@pytest.mark.parametrize("word", ["on", "1", "TRUE", "yes"])
def test_a_cache_that_is_switched_on_is_the_users_own(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITSTORE_CACHE", word)
    assert cache_limits() == cache_limits(True)


def test_a_url_is_no_folder_of_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITSTORE_CACHE", "s3://bucket/cache")
    for given in (None, "https://host/cache"):
        with pytest.raises(ConfigError, match="expected a folder of this machine, found a URL"):
            cache_limits(given)


@pytest.mark.parametrize("expected", ["a listing that ends", TO_READ])
def test_a_listing_that_does_not_end_is_none_that_is_refused(web: Web, expected: str) -> None:
    folder: Any = open_store(f"{web.url}/store.zarr").root.folder
    folder.can_list = folder._objects.can_list = True
    refused = StorageRefused("x", expected=expected, found="b", remedy="c")
    genuine = folder._objects.ask

    def ask(where: str, request: Any, *arguments: Any) -> Any:
        if request == folder._objects.names:
            raise refused
        return genuine(where, request, *arguments)

    with mock.patch.object(folder._objects, "ask", ask):
        if expected == TO_READ:
            assert folder.names(LOG)
        else:
            with pytest.raises(StorageRefused, match="a listing that ends"):
                folder.names(LOG)
