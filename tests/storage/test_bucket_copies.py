"""Copies to and from buckets: identical, resumed after every fault of the server, and merged from several teams."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import stores
from support.buckets import KINDS, Bucket, Fault, MemoryS3, serving_bucket
from support.stores import Teacher

from logitstore.storage.api import open_store
from logitstore.storage.backends import conditional
from logitstore.storage.format.constants import CARD_FILE
from logitstore.storage.integrity.verify import verify
from logitstore.storage.sharing.catalog import find_stores
from logitstore.storage.sharing.copying import copy_store


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch, without_fsync: None) -> None:
    """Writers wait for milliseconds."""
    monkeypatch.setattr(conditional, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(conditional, "_LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(conditional, "PATIENCE_S", 20.0)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket in memory, to which the environment leads."""
    with serving_bucket() as found:
        settings = {"ENDPOINT": found.url, "REGION": "us-east-1", "ALLOW_HTTP": "true", "TIMEOUT": "5s"}
        for name, value in {**settings, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        yield found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two captures; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    stores.make(path, rows=14, teachers={"wide": Teacher(views=2), "deep": Teacher()})
    return path


def objects_in(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    assert isinstance(bucket.serve, MemoryS3)
    objects = [(key, data) for key, data in bucket.serve.objects.items() if not key.endswith(CARD_FILE)]
    return {key.removeprefix(prefix): data for key, data in objects if key.startswith(prefix)}


def test_a_copy_to_a_bucket_and_back_is_identical(whole: Path, bucket: Bucket, tmp_path: Path) -> None:
    done = copy_store(whole, "s3://bucket/a/store.zarr")
    assert objects_in(bucket, "a/store.zarr/") == stores.tree(whole)
    assert done.digest == open_store(whole).digest
    copy_store("s3://bucket/a/store.zarr", "s3://bucket/b.zarr", teachers=["deep"])
    copy_store("s3://bucket/a/store.zarr", tmp_path / "back.zarr")
    assert stores.tree(tmp_path / "back.zarr") == stores.tree(whole)
    assert [one.name for one in find_stores("s3://bucket")] == ["a/store.zarr", "b.zarr"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_gets_over_a_fault_of_the_server(whole: Path, bucket: Bucket, kind: str) -> None:
    for first in (0, 20):  # a probe of the bucket, and a shard
        bucket.puts, bucket.faults = 0, [Fault(kind, first, 2)]
        for _ in range(3):  # a refusal ends a copy, which is then run again
            try:
                copy_store(whole, f"s3://bucket/{first}.zarr")
                break
            except OSError:
                bucket.faults = []
        assert objects_in(bucket, f"{first}.zarr/") == stores.tree(whole)


def test_teams_that_copy_back_at_once_are_all_kept(whole: Path, bucket: Bucket, tmp_path: Path) -> None:
    copy_store(whole, "s3://bucket/store.zarr")
    errors: list[BaseException] = []

    def team(name: str, seed: int) -> None:
        try:
            copy_store("s3://bucket/store.zarr", tmp_path / name)
            store, logits = open_store(tmp_path / name), stores.some_logits(1, 14, 5, seed=seed)
            stores.write_capture(store, name, logits, Teacher(), stores.some_inputs(14))
            copy_store(tmp_path / name, "s3://bucket/store.zarr")
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads: list[Any] = [threading.Thread(target=team, args=(f"team{n}", n)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    shared = open_store("s3://bucket/store.zarr")
    assert set(shared.teachers) == {"wide", "deep", *(f"team{n}" for n in range(2))}
    copy_store("s3://bucket/store.zarr", tmp_path / "all.zarr")
    assert verify(tmp_path / "all.zarr", deep=True).exit_code == 0
