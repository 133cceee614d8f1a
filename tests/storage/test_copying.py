"""Copies of stores: identical, verified on arrival, resumed, merged; and never into another store."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import stores
from support.memory_bucket import Bucket, Contents
from support.stores import Teacher
from support.web import serving

import logitstore
from logitstore.storage.api import Store, open_store
from logitstore.storage.backends.local import Folder
from logitstore.storage.backends.place import Place
from logitstore.storage.errors import (
    ConfigError,
    LogitStoreError,
    ManifestInvalid,
    NameTaken,
    NotAStoreError,
    PartNotFound,
    ShardCorrupt,
    ShardMissing,
    StorageError,
    StorageFull,
    StoreCorrupt,
    StoreIncomplete,
    WrongStore,
)
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.log import log_key
from logitstore.storage.sharing import part_copy
from logitstore.storage.sharing.copying import Copied, copy_store
from logitstore.storage.sharing.in_flight import InFlight

TEACHERS = {"wide": Teacher(views=2), "small": Teacher(encoding={"transform": {"max_kl": 1e-2}})}
MORE = {"exact": Teacher(encoding={"max_kl": 1e-2}), "top": Teacher(encoding={"top_k": 2})}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two captures of two blocks, with a clustering; it is not changed."""
    path = tmp_path_factory.mktemp("whole") / "store.zarr"
    logging.getLogger("logitstore").setLevel(logging.ERROR)
    stores.add_clustering(stores.make(path, rows=14, teachers=TEACHERS).store)
    return path


@pytest.fixture(autouse=True)
def quick(without_fsync: None) -> None:
    """A copy is checked for its bytes here, not for power cuts."""


def copied(source: Any, path: Any, **choice: Any) -> Copied:
    return copy_store(source, path, **choice)


def grown(path: Path, source: Path, name: str, seed: int = 3) -> Store:
    """Copy a store, and add a capture to the copy, as a team does."""
    copied(source, path)
    store = open_store(path)
    logits = stores.some_logits(1, store.num_rows, store.num_classes, seed=seed)
    stores.write_capture(store, name, logits, Teacher(), stores.some_inputs(store.num_rows))
    return store


def objects_of(path: Path) -> dict[str, bytes]:
    return {key: data for key, data in stores.tree(path).items() if not key.endswith("/")}


def in_one_line(error: BaseException) -> str:
    assert isinstance(error, LogitStoreError)
    assert "\n" not in str(error) and len(str(error)) < 600
    return str(error)


# Whole copies


def test_a_copy_is_byte_identical_and_has_the_same_digest(tmp_path: Path) -> None:
    whole = tmp_path / "store.zarr"
    stores.add_clustering(stores.make(whole, teachers={**TEACHERS, **MORE}).store)
    done = copied(whole, tmp_path / "new" / "store.zarr")
    assert stores.tree(tmp_path / "new" / "store.zarr") == stores.tree(whole)
    assert done.digest == open_store(whole).digest
    assert [plan.part for plan in done.parts] == [record.part for record in open_store(whole).root.records]
    assert done.bytes == done.missing == done.sent
    again = copied(whole, tmp_path / "new" / "store.zarr")
    assert (again.sent, again.parts, again.digest) == (0, (), done.digest)
    assert logitstore.copy_store is copy_store


@pytest.mark.parametrize("can_list", [True, False])
def test_a_copy_in_a_bucket_is_identical_and_its_log_comes_last(whole: Path, can_list: bool) -> None:
    bucket = Bucket(can_list=can_list)
    copied(whole, bucket)
    assert bucket.contents.objects == objects_of(whole)
    assert bucket.contents.wasted == []
    last = [number for number, key in enumerate(bucket.contents.puts) if "/log/" not in key][-1]
    assert [key for key in bucket.contents.puts[last + 1 :]] == [log_key(number) for number in range(1, 5)]


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_copy_from_a_server_asks_for_each_shard_once_and_lists_no_files(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with serving(whole.parent) as web:
        url = f"{web.url}/store.zarr"
        if kind == "s3":
            url = "s3://bucket/store.zarr"
            settings = {"ENDPOINT": web.url, "ALLOW_HTTP": "true", "SKIP_SIGNATURE": "true", "REGION": "x"}
            for key, value in settings.items():
                monkeypatch.setenv(f"AWS_{key}", value)
        copied(url, tmp_path / "store.zarr")
        shards = [line for line in web.requests if line.startswith("GET") and "/c." in line]
    assert stores.tree(tmp_path / "store.zarr") == stores.tree(whole)
    block = [line for line in shards if "wide/logits/c.1.1.0" in line]
    assert len(block) == 1
    assert not [line for line in web.requests if "commits" in line]


def test_a_copy_of_a_capture_has_the_samples_and_it_alone(whole: Path, tmp_path: Path) -> None:
    done = copied(whole, tmp_path / "store.zarr", teachers=["small"])
    store = open_store(tmp_path / "store.zarr")
    assert list(store.teachers) == ["small"] and store.clusterings == []
    assert verify(tmp_path / "store.zarr", deep=True).exit_code == 0
    assert done.digest == store.digest != open_store(whole).digest
    for key, data in objects_of(tmp_path / "store.zarr").items():
        assert key.startswith("__logitstore__/log") or objects_of(whole)[key] == data
    copied(whole, tmp_path / "store.zarr", teachers=["wide", "small"])
    assert list(open_store(tmp_path / "store.zarr").teachers) == ["small", "wide"]


def test_a_copy_as_of_a_former_digest(whole: Path, tmp_path: Path) -> None:
    former = open_store(whole).root.records[1].digest
    assert copied(whole, tmp_path / "a.zarr", expect=former).digest == former
    assert list(open_store(tmp_path / "a.zarr").teachers) == ["wide"]
    with pytest.raises(WrongStore):
        copied(whole, tmp_path / "b.zarr", expect=f"sha256:{'0' * 64}")
    assert not (tmp_path / "b.zarr").exists()


def test_a_dry_run_counts_and_writes_nothing(whole: Path, tmp_path: Path) -> None:
    from logitstore.storage.describe import store_bytes

    planned = copied(whole, tmp_path / "store.zarr", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert planned.bytes == planned.missing == store_bytes(open_store(whole)) and planned.sent == 0
    done = copied(whole, tmp_path / "store.zarr")
    assert (planned.digest, planned.parts) == (done.digest, done.parts)


def test_progress_counts_bytes_up_to_all_of_them(whole: Path, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int, str]] = []
    done = copied(whole, tmp_path / "store.zarr", progress=lambda *report, **_: reports.append(report))
    assert {(task, total, unit) for task, _, total, unit in reports} == {("copy", done.bytes, "bytes")}
    counts = [count for _, count, _, _ in reports]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == done.bytes


def test_unfinished_parts_are_named_and_not_copied(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path / "a.zarr")
    store = open_store(tmp_path / "a.zarr")
    with pytest.raises(KeyboardInterrupt), store.capture("begun", provenance={}) as capture:
        capture.write(next(iter(capture.missing_blocks())), store.teachers["wide"].read(slice(0, 8)))
        raise KeyboardInterrupt
    done = copied(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert done.unsealed == ("teachers/begun",)
    assert stores.tree(tmp_path / "b.zarr") == stores.tree(whole)
    with pytest.raises(StoreIncomplete):
        copied(tmp_path / "a.zarr", tmp_path / "c.zarr", teachers=["begun"])
    with pytest.raises(PartNotFound):
        copied(whole, tmp_path / "c.zarr", teachers=["nobody"])
    with pytest.raises(ConfigError, match="a list of names"):
        copied(whole, tmp_path / "c.zarr", teachers="wide")
    assert not (tmp_path / "c.zarr").exists()


# Resuming


def test_a_copy_that_fails_at_any_put_resumes_and_sends_nothing_twice(whole: Path) -> None:
    total = Bucket()
    copied(whole, total, in_flight=1)
    puts = len(total.contents.puts)
    for at in range(0, puts, puts // 12):
        bucket = Bucket()

        def fail(key: str, at: int = at, bucket: Bucket = bucket) -> None:
            if len(bucket.contents.puts) == at:
                raise StorageError(key, expected="a", found="b", remedy="c")

        bucket.contents.before_put = fail
        with pytest.raises(StorageError):
            copied(whole, bucket, in_flight=1)
        bucket.contents.before_put = lambda key: None
        done = copied(whole, bucket)
        assert bucket.contents.objects == objects_of(whole)
        assert bucket.contents.wasted == []
        assert len(bucket.contents.puts) == len(set(bucket.contents.puts))
        assert done.digest == open_store(whole).digest


def test_what_had_arrived_counts_as_there(whole: Path) -> None:
    bucket = Bucket()
    copied(whole, bucket)
    for key in [key for key in bucket.contents.objects if key.startswith("__logitstore__/log")][2:]:
        del bucket.contents.objects[key]
    key = next(key for key in bucket.contents.objects if key.startswith("teachers/small/codes/c."))
    size = len(bucket.contents.objects.pop(key))
    for name in ("seal.json", "commits/0-0.json"):
        bucket.contents.objects.pop(f"teachers/small/__logitstore__/{name}")
    done = copied(whole, bucket)
    assert {plan.part: plan.missing for plan in done.parts if plan.missing}.keys() == {"teachers/small"}
    assert done.sent == done.missing >= size
    assert bucket.contents.objects == objects_of(whole)


def test_a_shard_that_is_there_without_its_record_is_compared(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "teachers/wide/logits/c.0.0.0"

    def begun() -> Bucket:
        """A part of which a shard has other bytes of the same number."""
        bucket = Bucket()
        copied(whole, bucket, teachers=[])
        for name in ("__logitstore__/spec.json", "logits/c.0.0.0"):
            bucket.contents.objects[f"teachers/wide/{name}"] = (whole / "teachers/wide" / name).read_bytes()
        bucket.contents.objects[key] = bytes(len(bucket.contents.objects[key]))
        return bucket

    bucket = begun()
    with pytest.raises(
        NameTaken, match=r"logits/c\.0\.0\.0: expected .* as the store that is copied"
    ) as caught:
        copied(whole, bucket)
    in_one_line(caught.value)
    assert list(open_store_in(bucket).teachers) == []
    # Control: without the comparison the part is sealed, and damaged.
    monkeypatch.setattr(part_copy, "check_sealed", lambda *_: None)
    bucket = begun()
    copied(whole, bucket)
    assert isinstance(verify(bucket, deep=True).problems[0], ShardCorrupt)


def open_store_in(place: Place) -> Store:
    return open_store(place)  # type: ignore[arg-type]


# Damaged sources


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("teachers/wide/logits/c.1.1.0", ShardCorrupt),
        ("teachers/small/__logitstore__/seal.bin", ManifestInvalid),
        ("teachers/small/basis/c.0.0", ManifestInvalid),
        ("samples/label/zarr.json", StoreCorrupt),
    ],
)
def test_a_flipped_bit_does_not_arrive(whole: Path, tmp_path: Path, key: str, error: type[Exception]) -> None:
    copied(whole, tmp_path / "bad.zarr")
    stores.flip(tmp_path / "bad.zarr" / key, 77)
    with pytest.raises(error) as caught:
        copied(tmp_path / "bad.zarr", tmp_path / "new.zarr")
    in_one_line(caught.value)
    arrived = stores.tree(tmp_path / "new.zarr") if (tmp_path / "new.zarr").exists() else {}
    assert key not in arrived and log_key(1) not in arrived
    # The rest arrived intact: with a mended source the copy is completed.
    (tmp_path / "bad.zarr" / key).write_bytes((whole / key).read_bytes())
    copied(tmp_path / "bad.zarr", tmp_path / "new.zarr")
    assert stores.tree(tmp_path / "new.zarr") == stores.tree(whole)


def test_a_missing_or_exchanged_shard_is_named(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path / "bad.zarr")
    first, second = (tmp_path / "bad.zarr/teachers/wide/logits" / name for name in ("c.0.0.0", "c.0.1.0"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(ShardCorrupt, match=r"c\.0\.0\.0 \(rows 0 to 7\)"):
        copied(tmp_path / "bad.zarr", tmp_path / "new.zarr")
    first.unlink()
    with pytest.raises(ShardMissing, match=r"c\.0\.0\.0 \(rows 0 to 7\)"):
        copied(tmp_path / "bad.zarr", tmp_path / "new.zarr")


def test_control_without_the_comparison_damage_arrives(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(whole, tmp_path / "bad.zarr")
    key = "teachers/wide/logits/c.1.1.0"
    stores.flip(tmp_path / "bad.zarr" / key, 77)
    monkeypatch.setattr(
        part_copy.PartCopy, "_read", lambda self, key, *_: self._part.folder.read_range(key, 0, 1 << 20)[0]
    )
    copied(tmp_path / "bad.zarr", tmp_path / "new.zarr")
    assert (tmp_path / "new.zarr" / key).read_bytes() != (whole / key).read_bytes()


def test_no_store_at_the_source(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="expected a store, found nothing"):
        copied(tmp_path / "nothing", tmp_path / "new.zarr")
    assert not (tmp_path / "new.zarr").exists()


# Merging


def test_two_teams_that_copy_back_are_both_kept(whole: Path, tmp_path: Path) -> None:
    shared = Bucket()
    copied(whole, shared)
    grown(tmp_path / "b.zarr", whole, "bee", seed=3)
    grown(tmp_path / "c.zarr", whole, "cat", seed=4)
    copied(tmp_path / "b.zarr", shared)
    done = copied(tmp_path / "c.zarr", shared)
    store = open_store_in(shared)
    assert list(store.teachers) == [*TEACHERS, "bee", "cat"]
    assert done.digest == store.digest
    assert verify(shared, deep=True).exit_code == 0
    for name in ("b.zarr", "c.zarr"):
        copied(shared, tmp_path / name)
    assert verify(tmp_path / "b.zarr", deep=True).exit_code == 0
    assert set(open_store(tmp_path / "b.zarr").teachers) == set(open_store(tmp_path / "c.zarr").teachers)


def test_a_lost_race_for_a_record_is_tried_on_the_next_number(whole: Path, tmp_path: Path) -> None:
    grown(tmp_path / "b.zarr", whole, "bee", seed=3)
    grown(tmp_path / "c.zarr", whole, "cat", seed=4)
    shared = Bucket()
    copied(whole, shared)

    def other_team(key: str) -> None:
        if key == log_key(5):
            shared.contents.before_put = lambda key: None
            copied(tmp_path / "c.zarr", shared)

    shared.contents.before_put = other_team
    copied(tmp_path / "b.zarr", shared)
    assert list(open_store_in(shared).teachers)[-2:] == ["cat", "bee"]
    assert shared.contents.wasted == [log_key(5)]
    assert verify(shared, deep=True).exit_code == 0


def test_control_a_bucket_that_replaces_records_loses_a_team(whole: Path, tmp_path: Path) -> None:
    class Careless(Bucket):
        def put_new(self, key: str, data: bytes) -> bool:
            self.contents.before_put(key)
            self.contents.objects[self._key(key)] = data
            return True

        def sub(self, name: str) -> "Careless":
            return Careless(self.contents, (*self._inside, *name.split("/")))

    grown(tmp_path / "b.zarr", whole, "bee", seed=3)
    grown(tmp_path / "c.zarr", whole, "cat", seed=4)
    shared = Careless(Contents())
    copied(whole, shared)

    def other_team(key: str) -> None:
        if key == log_key(5):
            shared.contents.before_put = lambda key: None
            copied(tmp_path / "c.zarr", shared)

    shared.contents.before_put = other_team
    copied(tmp_path / "b.zarr", shared)
    assert "cat" not in open_store_in(shared).teachers


def test_many_teams_at_once_are_all_kept(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path / "shared.zarr")
    names = [f"team{number}" for number in range(4)]
    for number, name in enumerate(names):
        grown(tmp_path / name, whole, name, seed=number)
    errors: list[BaseException] = []

    def merge(name: str) -> None:
        try:
            copied(tmp_path / name, tmp_path / "shared.zarr", merge=True)
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=merge, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(open_store(tmp_path / "shared.zarr").teachers) == {*TEACHERS, *names}
    assert verify(tmp_path / "shared.zarr", deep=True).exit_code == 0
    assert not [key for key in stores.tree(tmp_path / "shared.zarr") if "/tmp" in key or key.endswith("lock")]


def test_a_merge_needs_a_store_at_the_destination(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="logitstore copy") as caught:
        copied(whole, tmp_path / "nothing.zarr", merge=True)
    in_one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


# Destinations that hold other things


def _other_sizes(path: Path, whole: Path) -> None:
    stores.make(path, rows=20)


def _other_samples(path: Path, whole: Path) -> None:
    stores.make(path, rows=14, teachers={}, names=False)


def _other_samples_begun(path: Path, whole: Path) -> None:
    stores.make(path, rows=14, teachers={}, names=False)
    (path / log_key(1)).unlink()


def _fewer_arrays_begun(path: Path, whole: Path) -> None:
    """Samples of the same spec, without ids: their records differ."""
    _other_samples_begun(path, whole)
    for name in ("seal.json", "seal.bin"):
        (path / "samples/__logitstore__" / name).unlink()


def _more_arrays_begun(path: Path, whole: Path) -> None:
    copied(whole, path, teachers=[])
    (path / "teachers/wide/another").mkdir(parents=True)
    (path / "teachers/wide/another/zarr.json").write_text("{}")
    (path / "teachers/wide/__logitstore__").mkdir()
    spec = "teachers/wide/__logitstore__/spec.json"
    (path / spec).write_bytes((whole / spec).read_bytes())


def _empty_store_of_other_sizes(path: Path, whole: Path) -> None:
    from logitstore.storage.api import begin_store

    begin_store(path, num_rows=3, num_classes=2)


def _other_things(path: Path, whole: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def _a_group(path: Path, whole: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{}\n")


def _a_file(path: Path, whole: Path) -> None:
    path.write_text("mine")


def _another_capture(path: Path, whole: Path) -> None:
    copied(whole, path, teachers=["small"])
    store = open_store(path)
    logits = stores.some_logits(2, store.num_rows, store.num_classes, seed=9)
    stores.write_capture(store, "wide", logits, Teacher(views=2), stores.some_inputs(store.num_rows))


def _another_capture_begun(path: Path, whole: Path) -> None:
    copied(whole, path, teachers=["small"])
    store = open_store(path)
    with pytest.raises(KeyboardInterrupt), store.capture("wide", provenance={"x": 1}) as capture:
        capture.write(next(iter(capture.missing_blocks())), store.teachers["small"].read(slice(0, 8)))
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("lay", "found"),
    [
        (_other_sizes, "a store of other sizes"),
        (_other_samples, "a store of the samples sha256:"),
        (_other_samples_begun, "a store of other samples, which is being made"),
        (_fewer_arrays_begun, "as the store that is copied has them"),
        (_more_arrays_begun, "expected the arrays .* alone, found another"),
        (_empty_store_of_other_sizes, "a store of other sizes"),
        (_other_things, "a folder with other things in it"),
        (_a_group, "another Zarr group"),
        (_a_file, "a file"),
        (_another_capture, "another part of this name"),
        (_another_capture_begun, "an unfinished part of another identity"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else None,
)
def test_a_destination_that_holds_something_else_is_left_as_it_is(
    whole: Path, tmp_path: Path, lay: Callable[[Path, Path], None], found: str
) -> None:
    path = tmp_path / "there"
    lay(path, whole)
    before = path.read_bytes() if path.is_file() else stores.tree(path)
    for dry_run in (True, False):
        with pytest.raises(NameTaken, match=found) as caught:
            copied(whole, path, dry_run=dry_run)
        in_one_line(caught.value)
        assert (path.read_bytes() if path.is_file() else stores.tree(path)) == before


def test_a_web_server_is_no_destination(whole: Path) -> None:
    with serving(whole.parent) as web:
        with pytest.raises(ConfigError, match="expected a store that can be written to") as caught:
            copied(whole, f"{web.url}/new.zarr")
        in_one_line(caught.value)
        assert web.requests == []


def test_a_disk_without_room_is_refused_before_anything_is_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "free_bytes", lambda self: 100)
    with pytest.raises(StorageFull, match="found 100 free bytes") as caught:
        copied(whole, tmp_path / "new.zarr")
    in_one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_is_moved_away_meanwhile_is_not_begun_anew(whole: Path, tmp_path: Path) -> None:
    original = part_copy.PartCopy._block
    path, moved = tmp_path / "new.zarr", tmp_path / "moved.zarr"

    def moving(self: part_copy.PartCopy, commit: Any) -> int:
        if path.exists():
            path.rename(moved)
        return original(self, commit)

    with (
        mock.patch.object(part_copy.PartCopy, "_block", moving),
        pytest.raises(WrongStore, match="it was moved"),
    ):
        copied(whole, path, in_flight=1)
    assert not path.exists()
    assert list(open_store(moved).root.records) == []


# Transfers in flight


def test_transfers_are_bounded_in_number_and_in_bytes() -> None:
    lock, now = threading.Lock(), {"number": 0, "bytes": 0}
    most = dict(now)
    release = threading.Semaphore(0)

    def task(size: int) -> Callable[[], int]:
        def go() -> int:
            with lock:
                now["number"] += 1
                now["bytes"] += size
                most.update({key: max(most[key], now[key]) for key in now})
            release.acquire(timeout=0.02)
            with lock:
                now["number"] -= 1
                now["bytes"] -= size
            return size

        return go

    results: list[int] = []
    with InFlight(3, most_bytes=100) as flight:
        flight.run(((size, task(size)) for size in [10] * 6 + [60] * 4 + [500] + [10] * 3), results.append)
    assert sum(results) == 60 + 240 + 500 + 30
    assert most == {"number": 3, "bytes": 500}


def test_an_error_is_raised_once_nothing_runs_any_more() -> None:
    ended: list[int] = []
    started = threading.Event()

    def slow() -> int:
        started.set()
        threading.Event().wait(0.05)
        ended.append(1)
        return 0

    def fails() -> int:
        started.wait(5)
        raise ValueError("no")

    with InFlight(2) as flight, pytest.raises(ValueError, match="no"):
        flight.run([(1, slow), (1, fails), *[(1, slow)] * 50], lambda count: None)
    assert 1 <= len(ended) < 10


def test_a_part_that_another_copy_has_just_added_is_not_added_twice(whole: Path) -> None:
    shared = Bucket()
    copied(whole, shared, teachers=[])

    def other(key: str) -> None:
        if key == log_key(2):
            shared.contents.before_put = lambda key: None
            copied(whole, shared, teachers=["wide"])

    shared.contents.before_put = other
    copied(whole, shared, teachers=["wide"])
    assert list(open_store_in(shared).teachers) == ["wide"]
    assert log_key(3) not in shared.contents.objects
