"""Stores under a prefix: found by names, described from metadata alone, damaged ones beside the rest."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import stores
from support.memory_bucket import Bucket
from support.stores import Teacher
from support.web import Web, serving

import logitstore
from logitstore.storage.api import begin_store, create_store, open_store
from logitstore.storage.errors import (
    ConfigError,
    LimitExceeded,
    LogitStoreError,
    ManifestInvalid,
    StorageRefused,
)
from logitstore.storage.sharing import catalog
from logitstore.storage.sharing.catalog import Found, exit_code, find_stores
from logitstore.storage.sharing.copying import copy_store

CARD = {"name": "Strokes", "licence": "CC-BY-4.0"}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two stores, one of them further down, beside other things; it is not changed."""
    folder = tmp_path_factory.mktemp("shelf")
    teachers = {"wide": Teacher(views=2), "top": Teacher(encoding={"top_k": 2})}
    stores.add_clustering(stores.make(folder / "b.zarr", rows=20, teachers=teachers).store)
    stores.make(folder / "team" / "run" / "store.zarr", rows=9, teachers={})
    (folder / "team" / "run" / "models" / "student").mkdir(parents=True)
    (folder / "README.md").write_text("mine")
    (folder / "plain.zarr" / "array").mkdir(parents=True)
    (folder / "plain.zarr" / "zarr.json").write_text("{}")
    (folder / ".hidden").mkdir()
    return folder


@pytest.fixture
def bucket(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The shelf as a bucket of S3's protocol, at s3://bucket."""
    with serving(shelf) as web:
        settings = {"ENDPOINT": web.url, "ALLOW_HTTP": "true", "SKIP_SIGNATURE": "true", "REGION": "x"}
        for key, value in settings.items():
            monkeypatch.setenv(f"AWS_{key}", value)
        yield web


def names(found: list[Found]) -> list[str]:
    return [one.name for one in found]


def test_stores_are_found_and_described(shelf: Path) -> None:
    first, second = find_stores(shelf)
    store = open_store(shelf / "b.zarr")
    assert (first.name, first.path) == ("b.zarr", shelf / "b.zarr")
    assert (first.num_rows, first.num_classes, first.digest) == (20, 5, store.digest)
    assert first.teachers == (("wide", "float16"), ("top", "top-k"))
    parts = [store.root.part(name) for name in ("samples", "teachers/wide", "teachers/top")]
    assert first.bytes == sum(part.table.total_bytes() for part in parts)
    assert first.sealed and first.title is None and first.problem is None
    assert (second.name, second.num_rows, second.teachers) == ("team/run/store.zarr", 9, ())
    assert exit_code([first, second]) == 0
    assert logitstore.find_stores is find_stores


BOTH = ["b.zarr", "team/run/store.zarr"]


@pytest.mark.parametrize(("depth", "expected"), [(0, []), (1, BOTH[:1]), (2, BOTH[:1]), (3, BOTH), (9, BOTH)])
def test_the_depth_is_bounded(shelf: Path, depth: int, expected: list[str]) -> None:
    assert names(find_stores(shelf, depth=depth)) == expected


def test_a_store_itself_is_found_at_its_own_prefix(shelf: Path) -> None:
    assert names(find_stores(shelf / "b.zarr", depth=0)) == ["."]
    with serving(shelf) as web:
        assert names(find_stores(f"{web.url}/b.zarr")) == ["."]


def test_a_card_gives_the_title_and_an_unfinished_part_is_not_sealed(tmp_path: Path) -> None:
    store = create_store(tmp_path / "a.zarr", inputs=stores.some_inputs(8), num_classes=2, card=CARD)
    begin_store(tmp_path / "b.zarr", num_rows=8, num_classes=2)
    (one, two) = find_stores(tmp_path)
    assert (one.title, one.sealed, two.title, two.sealed, two.bytes) == ("Strokes", True, None, False, 0)
    with pytest.raises(KeyboardInterrupt), store.capture("wide", provenance={}) as capture:
        capture.write(next(iter(capture.missing_blocks())), stores.some_logits(1, 8, 2)[0])
        raise KeyboardInterrupt
    assert not find_stores(tmp_path)[0].sealed


def test_a_damaged_store_is_listed_with_the_reason_beside_the_rest(shelf: Path, tmp_path: Path) -> None:
    copy_store(shelf / "b.zarr", tmp_path / "bad.zarr")
    copy_store(shelf / "b.zarr", tmp_path / "good.zarr")
    copy_store(shelf / "b.zarr", tmp_path / "worse.zarr")
    (tmp_path / "bad.zarr/teachers/wide/__logitstore__/seal.bin").write_bytes(b"x")
    (tmp_path / "worse.zarr/zarr.json").write_bytes(b"x")
    bad, good, worse = find_stores(tmp_path)
    assert good.problem is None
    assert isinstance(bad.problem, ManifestInvalid) and bad.num_rows == 20
    assert isinstance(worse.problem, ManifestInvalid) and worse.num_rows is None
    assert exit_code([bad, good, worse]) == 65


# Requests


def test_a_bucket_is_listed_without_a_shard_and_by_few_requests(shelf: Path, bucket: Web) -> None:
    found = find_stores("s3://bucket")
    assert [(one.name, one.digest) for one in found] == [(one.name, one.digest) for one in find_stores(shelf)]
    assert [str(one.path) for one in found] == [f"s3://bucket/{one.name}" for one in found]
    asked = bucket.requests
    assert not [line for line in asked if "/c." in line or "commits" in line]
    listings = [line for line in asked if line.startswith("GET /bucket") and len(line.split("/")) == 2]
    # The top, b.zarr, plain.zarr, .. team, team/run, its store and models: seven folders; then of each store its log,
    # its teachers and its clusterings.
    assert len(listings) <= 8 + 3 * len(found), listings
    gets = [line for line in asked if line.startswith("GET") and line not in listings]
    parts = sum(1 + len(one.teachers) for one in found)
    records = sum(len(open_store(shelf / one.name).root.records) for one in found)
    assert len(gets) <= 9 * len(found) + records + 3 * parts


def test_requests_run_at_the_same_time(shelf: Path) -> None:
    """Eight stores take hardly longer than one, where each answer takes time."""
    import threading
    import time

    class Slow(Bucket):
        running, most, lock = 0, 0, threading.Lock()

        def sub(self, name: str) -> "Slow":
            return Slow(self.contents, (*self._inside, *name.split("/")))

        def read(self, key: str, most: int = 1 << 20) -> bytes:
            with Slow.lock:
                Slow.running += 1
                Slow.most = max(Slow.most, Slow.running)
            time.sleep(0.002)
            with Slow.lock:
                Slow.running -= 1
            return super().read(key, most)

    place = Slow()
    for number in range(8):
        copy_store(shelf / "team/run/store.zarr", place.sub(f"store{number}.zarr"))
    Slow.most = 0
    assert len(find_stores(place, in_flight=4)) == 8
    assert 2 <= Slow.most <= 4


# Wrong prefixes


def test_a_prefix_without_stores_is_an_empty_list(tmp_path: Path) -> None:
    assert find_stores(tmp_path) == []


@pytest.mark.parametrize("kind", ["nothing", "a file"])
def test_a_prefix_that_is_no_folder_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "there"
    if kind == "a file":
        path.write_text("mine")
    with pytest.raises(ConfigError, match=f"expected a folder, or a URL that lists its files, found {kind}"):
        find_stores(path)


def test_a_web_server_that_does_not_list_is_one_line(shelf: Path) -> None:
    with serving(shelf) as web, pytest.raises(ConfigError, match="name the URL of a store"):
        find_stores(web.url)


def test_a_bucket_that_refuses_the_listing_is_an_error_and_no_empty_list(shelf: Path, bucket: Web) -> None:
    bucket.answers["/bucket"] = 403
    with pytest.raises((StorageRefused, LogitStoreError)):
        find_stores("s3://bucket")


def test_no_more_folders_are_looked_into_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "MOST_FOLDERS", 5)
    for number in range(4):
        (tmp_path / str(number)).mkdir()
    assert find_stores(tmp_path) == []
    (tmp_path / "4").mkdir()
    with pytest.raises(LimitExceeded, match="expected at most 5 folders, found 6 down to level 1"):
        find_stores(tmp_path)


def test_links_to_folders_are_not_followed(shelf: Path, tmp_path: Path) -> None:
    os.symlink(shelf, tmp_path / "loop")
    assert find_stores(tmp_path) == []


def test_a_negative_depth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="depth: expected 0 or more"):
        find_stores(tmp_path, depth=-1)
