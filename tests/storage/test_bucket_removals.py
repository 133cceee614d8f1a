"""Removals in buckets, and stores that are concatenated from and to them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import stores
from support.buckets import Bucket, MemoryS3, serving_bucket
from support.stores import Teacher

from logitstore.storage.api import open_store
from logitstore.storage.backends import conditional
from logitstore.storage.backends.object_folder import ObjectFolder
from logitstore.storage.errors import PartNotFound, ShardMissing, StorageRefused, StoreIncomplete
from logitstore.storage.format.constants import CARD_FILE
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.log import log_key
from logitstore.storage.sharing.concatenating import concat_stores
from logitstore.storage.sharing.copying import copy_store
from logitstore.storage.sharing.removing import remove_parts

URL = "s3://bucket/a/store.zarr"


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch, without_fsync: None) -> None:
    """Writers wait for milliseconds."""
    monkeypatch.setattr(conditional, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(conditional, "_LONGEST_WAIT_S", 0.05)


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


def objects_in(bucket: Bucket, prefix: str = "a/store.zarr/") -> dict[str, bytes]:
    assert isinstance(bucket.serve, MemoryS3)
    objects = [(key, data) for key, data in bucket.serve.objects.items() if not key.endswith(CARD_FILE)]
    return {key.removeprefix(prefix): data for key, data in objects if key.startswith(prefix)}


def test_a_removal_in_a_bucket_leaves_the_objects_of_one_on_a_disk(
    whole: Path, bucket: Bucket, tmp_path: Path
) -> None:
    copy_store(whole, URL)
    copy_store(whole, tmp_path / "store.zarr")
    before, opened = objects_in(bucket), open_store(URL, cache=False)
    capture = opened.teachers["wide"]
    capture.read(range(1))
    planned = remove_parts(URL, teachers=["wide"], dry_run=True)
    assert objects_in(bucket) == before
    done, local = (
        remove_parts(URL, teachers=["wide"]),
        remove_parts(tmp_path / "store.zarr", teachers=["wide"]),
    )
    assert objects_in(bucket) == stores.tree(tmp_path / "store.zarr")
    assert planned.digest == done.digest == local.digest == open_store(URL).digest
    assert (done.bytes, done.parts[0].files) == (local.bytes, local.parts[0].files)
    assert verify(open_store(URL).root.folder, deep=True).exit_code == 0
    with pytest.raises(ShardMissing, match="`logitstore rm` has removed this part"):
        capture.read(slice(8, 14))
    with pytest.raises(PartNotFound):
        open_store(URL).teachers["wide"]


def test_a_removal_in_a_bucket_that_ended_early_is_completed(
    whole: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_store(whole, URL)
    delete, left = ObjectFolder.delete, [5]

    def failing(folder: ObjectFolder, key: str) -> None:
        left[0] -= 1
        if left[0] < 0 and "tmp" not in key:
            raise KeyboardInterrupt
        delete(folder, key)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ObjectFolder, "delete", failing)
        remove_parts(URL, teachers=["wide"])
    assert log_key(4) in objects_in(bucket)
    report = verify(open_store(URL).root.folder)
    assert (report.problems, report.leftovers, report.exit_code) == ([], ["teachers/wide"], 0)
    assert list(open_store(URL).teachers) == ["deep"]
    remove_parts(URL, teachers=["wide"])
    assert not [key for key in objects_in(bucket) if key.startswith("teachers/wide")]


def test_an_unfinished_part_in_a_bucket_is_refused(whole: Path, bucket: Bucket) -> None:
    copy_store(whole, URL)
    with open_store(URL).capture("begun", provenance={}) as capture:
        rows = next(capture.missing_blocks())
        capture.write(rows, stores.some_logits(1, len(rows), 5)[0])
    before = objects_in(bucket)
    with pytest.raises(
        StoreIncomplete, match=r"delete the objects under s3://bucket/a/store\.zarr/teachers/begun"
    ):
        remove_parts(URL, teachers=["begun"])
    assert objects_in(bucket) == before


def test_stores_are_concatenated_in_a_bucket_as_on_a_disk(bucket: Bucket, tmp_path: Path) -> None:
    teachers = {"wide": Teacher(), "top": Teacher(encoding={"top_k": 2})}
    for number in range(2):
        stores.make(tmp_path / f"{number}.zarr", rows=9 + number, teachers=teachers, names=False)
    copy_store(tmp_path / "0.zarr", "s3://bucket/0.zarr")
    concat_stores([tmp_path / "0.zarr", tmp_path / "1.zarr"], tmp_path / "both.zarr")
    concat_stores(["s3://bucket/0.zarr", tmp_path / "1.zarr"], URL)
    assert objects_in(bucket) == stores.tree(tmp_path / "both.zarr")


def test_a_removal_without_the_right_to_delete_leaves_the_part_readable(whole: Path, bucket: Bucket) -> None:
    copy_store(whole, URL)
    before, serve = objects_in(bucket), bucket.serve
    assert isinstance(serve, MemoryS3)
    bucket.serve = lambda method, path, *rest: (
        (403, {}, b"<Error><Code>AccessDenied</Code></Error>")
        if method in ("DELETE", "POST")
        else serve(method, path, *rest)
    )
    with pytest.raises(StorageRefused, match="expected permission to delete the object") as caught:
        remove_parts(URL, teachers=["wide"])
    assert "\n" not in str(caught.value)
    bucket.serve = serve
    after = {key: data for key, data in objects_in(bucket).items() if "/tmp/" not in key}
    assert after == before and "wide" in open_store(URL).teachers
