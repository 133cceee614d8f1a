"""Shards of remote stores on the local disk: fetched once, whole or not at all, up to a limit, and never trusted."""

import errno
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import stores
from support.stores import Teacher
from support.web import Web, serving

from logitstore.storage.api import Store, open_store
from logitstore.storage.backends import remote, remote_folder, shard_cache
from logitstore.storage.backends.cache_choice import bytes_of, cache_limits
from logitstore.storage.backends.shard_cache import CacheLimits, ShardCache
from logitstore.storage.errors import ConfigError, ShardCorrupt, StorageError

MANY = 1 << 30


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    stores.make(path, rows=150, classes=7, block_rows=32, teachers={"wide": Teacher(views=2)})
    return path


@pytest.fixture
def web(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """Serve the store at <url>/store.zarr; who asks it is patient for a moment alone."""
    monkeypatch.setattr(remote, "_RETRY", {"max_retries": 0})
    monkeypatch.setattr(remote_folder, "PATIENCE_S", 0.0)
    with serving(whole.parent) as found:
        yield found


def opened(web: Web, cache: Path, **options: Any) -> Store:
    return open_store(f"{web.url}/store.zarr", cache=cache, **options)


def epoch(store: Store) -> list[Any]:
    """Return all arrays of an epoch, batch by batch."""
    batches = list(store.stream(40, views="all", seed=3))
    return [(b.rows, b.views, b.labels, b.inputs, b.logits["wide"]) for b in batches]


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert np.array_equal(mine, other)


def shards_asked(web: Web) -> list[str]:
    return [line for line in web.requests if "/c." in line and "classes" not in line]


def objects(cache: Path) -> list[Path]:
    return [path for path in (cache / "v1" / "objects").rglob("*") if path.is_file()]


# Epochs


def test_the_second_epoch_is_local_and_the_first_fetches_each_shard_once(
    web: Web, whole: Path, tmp_path: Path
) -> None:
    wanted = epoch(open_store(whole))
    store = opened(web, tmp_path)
    assert_same(epoch(store), wanted)
    asked = shards_asked(web)
    # No size is asked for, and shards of equal bytes are fetched once.
    assert len(asked) == len(objects(tmp_path)) and all(line.startswith("GET") for line in asked)
    web.requests.clear()
    assert_same(epoch(store), wanted)
    assert web.requests == []
    assert_same(epoch(opened(web, tmp_path)), wanted)
    assert shards_asked(web) == []


def test_without_a_cache_an_epoch_is_the_same(web: Web, whole: Path, tmp_path: Path) -> None:
    store = open_store(f"{web.url}/store.zarr", cache=False)
    assert_same(epoch(store), epoch(open_store(whole)))
    web.requests.clear()
    epoch(store)
    assert shards_asked(web) != []


def test_a_few_rows_are_read_without_the_rest_of_their_shard(web: Web, tmp_path: Path) -> None:
    opened(web, tmp_path).teachers["wide"].read(slice(0, 1))
    assert objects(tmp_path) == [] or all(path.stat().st_size < 2000 for path in objects(tmp_path))


def test_a_store_opens_in_few_requests_however_many_its_shards(tmp_path: Path) -> None:
    stores.make(
        tmp_path / "store.zarr", rows=40, classes=2, block_rows=1, teachers={"wide": Teacher()},
        store_inputs=False,
    )  # fmt: skip
    with serving(tmp_path) as web:
        store = open_store(f"{web.url}/store.zarr")
        assert len(web.requests) <= 10
        _ = store.teachers["wide"].classes, store.samples.class_names
        assert len(web.requests) <= 40


# Trust


@pytest.mark.parametrize("damage", ["a flipped bit", "a shorter file", "an empty file"])
def test_bytes_that_changed_on_the_disk_are_noticed_and_fetched_again(
    web: Web, whole: Path, tmp_path: Path, damage: str
) -> None:
    wanted = epoch(open_store(whole))
    store = opened(web, tmp_path)
    epoch(store)
    for path in objects(tmp_path):
        data = bytearray(path.read_bytes())
        data[len(data) // 5] ^= 4
        cut = {"a flipped bit": len(data), "a shorter file": len(data) // 2, "an empty file": 0}[damage]
        path.write_bytes(data[:cut])
    web.requests.clear()
    assert_same(epoch(store), wanted)
    assert shards_asked(web) != []
    for path in objects(tmp_path):
        assert sha256(path.read_bytes()).hexdigest() == path.name


def test_a_shard_of_other_bytes_never_becomes_visible(web: Web, whole: Path, tmp_path: Path) -> None:
    shard = whole / "teachers" / "wide" / "logits" / "c.0.1.0"
    data = shard.read_bytes()
    try:
        shard.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:])
        store = opened(web, tmp_path)
        with pytest.raises(ShardCorrupt, match=r"c\.0\.1\.0"):
            epoch(store)
        assert sha256(data).hexdigest() not in {path.name for path in objects(tmp_path)}
    finally:
        shard.write_bytes(data)
    for path in objects(tmp_path):
        assert sha256(path.read_bytes()).hexdigest() == path.name


# Room


def test_a_full_cache_removes_what_no_open_store_uses(tmp_path: Path) -> None:
    limits = CacheLimits(tmp_path, 250)
    digests = []
    for number in range(5):
        data = bytes([number]) * 100
        digests.append(sha256(data).hexdigest())
        user = ShardCache(limits)
        assert user.fetch(digests[-1], 100, lambda write, data=data: write(memoryview(data)))  # type: ignore[misc]
        assert user.open(digests[-1], 100) is not None
        del user
        assert sum(path.stat().st_size for path in objects(tmp_path)) <= 250
    held = {path.name for path in objects(tmp_path)}
    assert held == set(digests[-2:])


def test_a_shard_in_use_is_never_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = CacheLimits(tmp_path, 250)
    user, other = ShardCache(limits), ShardCache(limits)
    kept = [bytes([number]) * 100 for number in range(2)]
    for data in kept:
        assert user.fetch(sha256(data).hexdigest(), 100, lambda write, data=data: write(memoryview(data)))  # type: ignore[misc]
    with caplog.at_level(logging.WARNING):
        for number in range(2, 5):
            data = bytes([number]) * 100
            assert not other.fetch(sha256(data).hexdigest(), 100, lambda write: pytest.fail("no room"))
    assert {path.name for path in objects(tmp_path)} == {sha256(data).hexdigest() for data in kept}
    assert len(caplog.records) == 1 and other.takes_no_more


def test_a_cache_too_small_for_an_epoch_gives_the_same_batches(
    web: Web, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(web, tmp_path, cache_size=6000)
    wanted = epoch(open_store(whole))
    with caplog.at_level(logging.WARNING):
        assert_same(epoch(store), wanted)
        assert_same(epoch(store), wanted)
    assert 0 < sum(path.stat().st_size for path in objects(tmp_path)) <= 6000
    assert len(caplog.records) == 1


@pytest.mark.parametrize("fault", ["a full disk", "a file in its place", "a disk that fails"])
def test_a_disk_that_takes_nothing_costs_one_warning(
    web: Web,
    whole: Path,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = tmp_path / "cache"
    if fault == "a file in its place":
        cache.write_bytes(b"")
    else:
        number = errno.ENOSPC if fault == "a full disk" else errno.EIO

        def fails(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(shard_cache, "_allocate", fails)
    with caplog.at_level(logging.WARNING):
        assert_same(epoch(opened(web, cache)), epoch(open_store(whole)))
    assert len(caplog.records) == 1
    assert not cache.is_dir() or objects(cache) == []


# Several at once


def test_of_several_that_want_a_shard_one_fetches(tmp_path: Path) -> None:
    data, downloads = os.urandom(4000), []

    def download(write: Any) -> None:
        downloads.append(1)
        for start in range(0, len(data), 500):
            write(memoryview(data)[start : start + 500])
            time.sleep(0.02)

    found: list[bool] = []
    users = [ShardCache(CacheLimits(tmp_path, MANY)) for _ in range(3)]

    def fetch(user: ShardCache) -> None:
        found.append(user.fetch(sha256(data).hexdigest(), len(data), download))

    threads = [threading.Thread(target=fetch, args=(user,)) for user in users for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6 and len(downloads) == 1
    assert [path.read_bytes() for path in objects(tmp_path)] == [data]


_FETCHER = """
import os, sys, time
from pathlib import Path
from logitstore.storage.backends.shard_cache import CacheLimits, ShardCache

def download(write):
    write(memoryview(b"x" * 10))
    print("begun", flush=True)
    time.sleep(60)

ShardCache(CacheLimits(Path(sys.argv[1]), 1 << 30)).fetch(sys.argv[2], 100, download)
"""


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_a_killed_or_stopped_fetcher_blocks_nobody(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_cache, "STALL_SECONDS", 0.5)
    data = bytes(100)
    digest = sha256(data).hexdigest()
    call = [sys.executable, "-c", _FETCHER, str(tmp_path), digest]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "begun\n"
            if end == "killed":
                child.kill()
                child.wait()
            user = ShardCache(CacheLimits(tmp_path, MANY))
            found = user.fetch(digest, 100, lambda write: write(memoryview(data)))
        finally:
            child.kill()
    assert found == (end == "killed")
    if end == "killed":
        assert [path.read_bytes() for path in objects(tmp_path)] == [data]
        assert list((tmp_path / "v1" / "parts").iterdir()) == []


# Errors on the way


def test_an_iteration_after_an_error_goes_on_where_the_one_before_ended(web: Web, whole: Path) -> None:
    store = open_store(f"{web.url}/store.zarr", cache=False)
    wanted = epoch(open_store(whole))
    # a window of one run, so that the error comes in the middle of the epoch
    stream = store.stream(10, views="all", seed=3, window=1)
    plain = [batch.rows.tolist() for batch in open_store(whole).stream(10, views="all", seed=3, window=1)]
    rows: list[list[int]] = []
    with pytest.raises(StorageError):
        for batch in stream:
            rows.append(batch.rows.tolist())
            if len(rows) == 3:
                web.answers["c.0.2.0"] = web.answers["c.1.3.0"] = web.answers["c.1.1.0"] = 503
    assert 3 <= len(rows) < len(plain) and len(wanted) > 0
    web.answers.clear()
    rows += [batch.rows.tolist() for batch in stream]
    assert rows == plain
    assert stream.epoch == 1


def test_an_iteration_that_is_left_begins_the_epoch_anew(whole: Path) -> None:
    """Check the control of the test above: without an error no position is kept."""
    stream = open_store(whole).stream(10, views="all", seed=3)
    first = next(iter(stream)).rows
    assert np.array_equal(next(iter(stream)).rows, first)


@pytest.mark.parametrize("cached", [False, True])
def test_a_server_that_restarts_within_the_minute_does_not_end_an_epoch(
    web: Web, whole: Path, tmp_path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_folder, "PATIENCE_S", 20.0)
    store = open_store(f"{web.url}/store.zarr", cache=tmp_path if cached else False)
    web.answers["c.0.2.0"] = web.answers["c.1"] = 503
    timer = threading.Timer(1.0, web.answers.clear)
    timer.start()
    assert_same(epoch(store), epoch(open_store(whole)))
    timer.join()


# Options


def test_options_reach_the_server_and_no_message(web: Web, tmp_path: Path) -> None:
    options = {"default_headers": {"x-token": "very-secret-token"}}
    store = open_store(f"{web.url}/store.zarr", storage_options=options)
    assert {headers.get("x-token") for headers in web.headers} == {"very-secret-token"}
    again = pickle.loads(pickle.dumps(store))
    web.headers.clear()
    again.refresh()
    assert web.headers[-1]["x-token"] == "very-secret-token"
    assert "very-secret-token" not in str(store.stream(8).state_dict()) + repr(store) + str(store.path)
    web.answers["/zarr.json"] = 403
    with pytest.raises(StorageError) as caught:
        open_store(f"{web.url}/store.zarr", storage_options=options)
    assert "very-secret-token" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("options", [{"provider": object()}, {"client_options": {"b": {1, 2}}}])
def test_options_of_other_kinds_are_refused_without_their_values(web: Web, options: Any) -> None:
    with pytest.raises(ConfigError, match="storage_options: expected a dict"):
        open_store(f"{web.url}/store.zarr", storage_options=options)
    assert web.requests == []


@pytest.mark.parametrize("cache", [3, "off and on"])
def test_where_shards_are_kept(cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITSTORE_CACHE", str(tmp_path))
    monkeypatch.setenv("LOGITSTORE_CACHE_SIZE", "2GB")
    assert cache_limits() == CacheLimits(tmp_path, 2_000_000_000)
    assert cache_limits(False) is None
    assert cache_limits(tmp_path / "a", "3 KiB") == CacheLimits(tmp_path / "a", 3072)
    monkeypatch.setenv("LOGITSTORE_CACHE", "off")
    assert cache_limits() is None
    monkeypatch.delenv("LOGITSTORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    limits = cache_limits()
    assert limits is not None and limits.folder.name == "logitstore"
    with pytest.raises(ConfigError):
        bytes_of("much")
    if not isinstance(cache, str):
        with pytest.raises(ConfigError, match="expected a folder, True or False"):
            cache_limits(cache)


# Buckets


@pytest.fixture
def bucket(web: Web, monkeypatch: pytest.MonkeyPatch) -> str:
    address = {"ENDPOINT": web.url, "ALLOW_HTTP": "true", "REGION": "x", "SKIP_SIGNATURE": "true"}
    for name, value in address.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return "s3://bucket/store.zarr"


def test_a_bucket_that_may_be_read_and_not_listed_opens(web: Web, bucket: str, whole: Path) -> None:
    web.lists = False
    store = open_store(bucket)
    assert store.digest == open_store(whole).digest
    assert_same(epoch(store), epoch(open_store(whole)))


def test_a_bucket_opens_in_ten_requests(web: Web, bucket: str) -> None:
    open_store(bucket)
    assert len(web.requests) <= 10, web.requests


def test_a_bucket_without_permission_to_read_is_refused_with_its_own_code(web: Web, bucket: str) -> None:
    web.lists = False
    with pytest.raises(StorageError, match="AccessDenied"):
        open_store(bucket.replace("store.zarr", "nothing.zarr"))


def test_an_http_endpoint_names_the_option_that_allows_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StorageError, match="AWS_ALLOW_HTTP=true"):
        open_store(bucket)
    assert open_store(bucket, storage_options={"allow_http": True}).num_rows == 150
    assert open_store(bucket, storage_options={"aws_allow_http": "true", "region": "y"}).num_rows == 150


def test_a_stream_that_is_left_gives_its_fetches_up(web: Web, whole: Path, tmp_path: Path) -> None:
    iterator = iter(opened(web, tmp_path).stream(10, views="all", seed=3, window=1))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert [thread.name for thread in threading.enumerate() if "fetch-ahead" in thread.name] == []
    assert list((tmp_path / "v1" / "parts").iterdir()) == []
    assert_same(epoch(opened(web, tmp_path)), epoch(open_store(whole)))
