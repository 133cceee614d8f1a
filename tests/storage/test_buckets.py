"""Stores that are written in buckets: every answer of the server, and none, ends in the store of a local disk."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import torch
from click.testing import CliRunner
from obstore.store import MemoryStore
from support import small_experiment
from support.bucket_stores import BLOCKS, CLASSES, ROWS, Writers, golden, write
from support.buckets import AFTER, BEFORE, Bucket, Fault, MemoryS3, serving_bucket
from support.json_schema import problems
from support.torchrun import torchrun
from support.tree import ROOT
from zarr.storage import ObjectStore

import logitstore
from logitstore.cli.main import cli
from logitstore.storage.api import begin_store, create_store, open_store
from logitstore.storage.backends import conditional
from logitstore.storage.backends.lease import Lease, Unleased, lease_on
from logitstore.storage.backends.local import Folder
from logitstore.storage.backends.object_folder import ObjectFolder
from logitstore.storage.backends.remote import folder_to_write
from logitstore.storage.backends.writable import Writable
from logitstore.storage.errors import (
    CommitStateUnknown,
    ConfigError,
    NameTaken,
    RowMismatch,
    StorageRefused,
    TransientIOError,
    UnsafeFileSystem,
    WrongStore,
)
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.part_writer import PartWriter
from logitstore.storage.parts.writer import SamplesWriter


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers wait for milliseconds."""
    monkeypatch.setattr(conditional, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(conditional, "_LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(conditional, "PATIENCE_S", 20.0)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """A bucket in memory."""
    with serving_bucket() as found:
        yield found


@pytest.fixture
def at_url(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL in the bucket; the environment leads there."""
    settings = {"ENDPOINT": bucket.url, "REGION": "us-east-1", "ALLOW_HTTP": "true", "TIMEOUT": "5s"}
    for name, value in {**settings, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return "s3://bucket/store.zarr"


def in_memory() -> "ObjectStore[MemoryStore]":
    return ObjectStore(MemoryStore())


def objects_of(memory: "ObjectStore[MemoryStore]") -> dict[str, bytes]:
    inner = memory.store
    return {
        one["path"]: bytes(obstore.get(inner, one["path"]).bytes())
        for page in obstore.list(inner)
        for one in page
    }


def objects_in(bucket: Bucket, prefix: str = "store.zarr/") -> dict[str, bytes]:
    assert isinstance(bucket.serve, MemoryS3)
    return {
        key.removeprefix(prefix): data for key, data in bucket.serve.objects.items() if key.startswith(prefix)
    }


def folder_of(bucket: Bucket) -> ObjectFolder:
    folder = folder_to_write(bucket.store())
    assert isinstance(folder, ObjectFolder)
    return folder


# The same bytes as on a disk


def test_a_store_in_a_bucket_has_the_objects_of_one_on_a_disk() -> None:
    memory = in_memory()
    made = write(memory)
    assert objects_of(memory) == golden()
    again = write(memory)  # nothing is missing
    assert again.digest == made.digest and objects_of(memory) == golden()
    assert np.isfinite(open_store(memory).teachers["wide"].read(slice(None))).all()


def test_a_store_at_a_url_is_written_read_and_verified(bucket: Bucket, at_url: str) -> None:
    made = write(at_url)
    assert str(made.path) == at_url
    assert objects_in(bucket) == golden()
    assert open_store(at_url).digest == made.digest
    assert verify(made.root.folder, deep=True).exit_code == 0


def test_both_kinds_of_folder_are_places_to_write_to(tmp_path: Path) -> None:
    for folder in (Folder(tmp_path), folder_to_write(in_memory())):
        assert isinstance(folder, Writable)
    assert isinstance(lease_on(Folder(tmp_path)), Lease)
    assert isinstance(lease_on(folder_to_write(in_memory())), Unleased)


def test_a_bucket_that_was_opened_to_read_is_not_written_to() -> None:
    memory = in_memory()
    write(memory)
    store = open_store(ObjectStore(memory.store, read_only=True))
    with pytest.raises(ConfigError, match="expected a store that can be written to"):
        store.capture("new", provenance={})


# Answers that leave doubt


@pytest.mark.parametrize("kind", [kind for kind in BEFORE + AFTER if kind != "403"])
def test_an_object_is_there_once_whatever_the_answer(bucket: Bucket, kind: str) -> None:
    bucket.faults = [Fault(kind, first=0, times=1 if kind == "hang after" else 3)]
    folder = folder_of(bucket)
    assert folder.put_new("key", b"bytes") is True
    assert objects_in(bucket) == {"key": b"bytes"}
    assert bucket.stored == ["store.zarr/key"]


@pytest.mark.parametrize("kind", [kind for kind in BEFORE + AFTER if kind not in ("403", "hang after")])
def test_a_name_that_has_other_bytes_is_taken_whatever_the_answer(bucket: Bucket, kind: str) -> None:
    folder = folder_of(bucket)
    assert folder.put_new("key", b"first")
    bucket.faults = [Fault(kind, first=1, times=2)]
    assert folder.put_new("key", b"other") is False
    assert objects_in(bucket) == {"key": b"first"}


def test_the_same_bytes_of_another_writer_are_ours() -> None:
    folder = folder_to_write(in_memory())
    assert folder.put_new("key", b"bytes") and folder.put_new("key", b"bytes")
    assert not folder.put_new("key", b"byte") and not folder.put_new("key", b"bytes and more")


def test_without_the_comparison_our_own_object_would_count_as_anothers(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: what the server's word alone would say."""
    bucket.faults = [Fault("reset after", first=0)]
    monkeypatch.setattr(conditional, "_holds", lambda *_: False)
    assert folder_of(bucket).put_new("key", b"bytes") is False


def test_a_refusal_is_said_at_once_with_the_code_of_the_server(bucket: Bucket) -> None:
    bucket.faults = [Fault("403", first=0, times=1000)]
    with pytest.raises(StorageRefused, match="ExpiredToken") as caught:
        folder_of(bucket).put_new("key", b"bytes")
    assert "\n" not in str(caught.value) and bucket.puts == 1


def test_a_server_that_stays_away_is_given_up(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditional, "PATIENCE_S", 0.3)
    bucket.faults = [Fault("503", first=0, times=1000)]
    with pytest.raises(TransientIOError, match="stored within 0 s"):
        folder_of(bucket).put_new("key", b"bytes")


def test_what_can_be_neither_put_nor_read_is_unknown(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditional, "PATIENCE_S", 0.3)
    bucket.faults = [Fault("500 after", first=0, times=1000)]
    serve = bucket.serve
    bucket.serve = lambda method, *rest: serve(method, *rest) if method == "PUT" else (503, {}, b"")
    with pytest.raises(CommitStateUnknown, match="run the same command again: it looks for the object"):
        folder_of(bucket).put_new("key", b"bytes")


@pytest.mark.parametrize("kind", ["503", "409", "500 after", "reset after"])
@pytest.mark.parametrize("writers", [1, 3])
def test_faults_leave_one_whole_store(bucket: Bucket, kind: str, writers: int) -> None:
    golden()
    bucket.faults = [Fault(kind, first, times=4) for first in (1, 12, 25)]
    crew = Writers([bucket.store() for _ in range(writers)])
    crew.run()
    assert crew.errors == []
    assert objects_in(bucket) == golden()
    assert bucket.stored_twice() == set()


# Buckets that cannot keep writers apart


def test_a_bucket_that_replaces_objects_is_refused_before_anything_is_written(bucket: Bucket) -> None:
    assert isinstance(bucket.serve, MemoryS3)
    bucket.serve.is_conditional = False
    with pytest.raises(UnsafeFileSystem, match="a second object replaced the first") as caught:
        begin_store(bucket.store(), num_rows=3, num_classes=2)
    assert "\n" not in str(caught.value) and objects_in(bucket) == {}


def test_a_bucket_without_conditional_puts_is_refused(bucket: Bucket) -> None:
    bucket.faults = [Fault("501", first=0, times=1000)]
    with pytest.raises(UnsafeFileSystem, match="NotImplemented"):
        begin_store(bucket.store(), num_rows=3, num_classes=2)
    assert objects_in(bucket) == {}


def test_a_bucket_is_tested_once_and_keeps_no_trace(bucket: Bucket) -> None:
    folder = folder_of(bucket)
    folder.prove_exclusive()
    assert bucket.puts == 2 and objects_in(bucket) == {}
    folder.sub("teachers").prove_exclusive()
    assert bucket.puts == 2


@pytest.mark.parametrize("kind", ["503", "500 after", "reset after", "412", "409"])
def test_a_good_bucket_is_not_blamed_for_its_faults(bucket: Bucket, kind: str) -> None:
    bucket.faults = [Fault(kind, first=0, times=3)]
    folder_of(bucket).prove_exclusive()


def test_the_probe_of_a_killed_writer_is_taken_away() -> None:
    memory = in_memory()
    obstore.put(memory.store, "__logitstore__/tmp/0123", b"first")
    write(memory)
    assert objects_of(memory) == golden()


# What takes the place of the lease


def test_an_object_that_was_missing_ahead_is_asked_for_again() -> None:
    folder = folder_to_write(ObjectStore(MemoryStore()))
    assert folder.put_new("there.json", b"{}")
    with folder.read_ahead(["there.json", "later.json", "never.json"]):
        assert folder.put_new("later.json", b"[]")  # as another writer does
        assert folder.read("there.json") == b"{}" and folder.read("later.json") == b"[]"
        with folder.read_ahead(["later.json"]):
            assert folder.read("later.json") == b"[]"
        with pytest.raises(FileNotFoundError):
            folder.read("never.json")


def test_a_writer_in_a_bucket_removes_nothing(bucket: Bucket) -> None:
    write(bucket.store())
    deleted = [request for request in bucket.requests if request.startswith(("DELETE", "POST"))]
    assert len(deleted) == 1 and "delete" in deleted[0]  # its own probe
    assert sum(key.startswith("store.zarr/__logitstore__/tmp/") for key in bucket.stored) == 1


def test_whole_blocks_without_a_record_are_found_by_the_next_writer() -> None:
    memory = in_memory()
    write(memory)
    lost = [
        key for key in golden() if "/commits/" in key or key.endswith(("seal.json", "seal.bin", "log/2.json"))
    ]
    lost = [key for key in lost if not key.startswith("samples/")]
    assert len(lost) == BLOCKS + 3
    for key in lost:
        obstore.delete(memory.store, key)
    write(memory)
    assert objects_of(memory) == golden()


def test_blocks_of_other_rows_are_refused_and_not_removed() -> None:
    """Somebody deleted the store and began it anew while a writer of the old one was at work."""
    memory = in_memory()
    rows = {"num_classes": CLASSES, "labels": np.arange(ROWS) % CLASSES, "block_rows": 8, "exist_ok": True}
    old = create_store(memory, digests=np.arange(ROWS, dtype=np.uint64) + 7, **rows)  # type: ignore[arg-type]
    with old.capture("wide", provenance={"teacher": {"name": "wide"}}, views=2) as capture:
        capture.write(range(8), np.zeros((8, CLASSES), np.float32))
    kept = {
        key: data
        for key, data in objects_of(memory).items()
        if key.startswith("teachers/wide/") and "/c." in key
    }
    assert kept
    for key in objects_of(memory).keys() - kept.keys():
        obstore.delete(memory.store, key)
    with pytest.raises(RowMismatch, match="end all writers, delete"):
        write(memory)
    assert kept.items() <= objects_of(memory).items()


def test_a_writer_of_a_store_that_was_replaced_stops(caplog: pytest.LogCaptureFixture) -> None:
    memory = in_memory()
    store = create_store(
        memory, num_classes=CLASSES, labels=np.zeros(ROWS, int), digests=np.arange(ROWS, dtype=np.uint64)
    )
    capture = store.capture("wide", provenance={})
    for key in objects_of(memory):
        obstore.delete(memory.store, key)
    begin_store(memory, num_rows=ROWS, num_classes=CLASSES)
    before = objects_of(memory)
    with pytest.raises(WrongStore):
        capture.write(range(ROWS), np.zeros((ROWS, CLASSES), np.float32))
    assert objects_of(memory) == before


def test_no_record_gets_into_a_store_that_took_the_place_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = in_memory()
    labels, digests = np.zeros(ROWS, int), np.arange(ROWS, dtype=np.uint64)
    store = create_store(memory, num_classes=CLASSES, labels=labels, digests=digests)
    put_shards = PartWriter._put_shards

    def exchanged(self: PartWriter, *arguments: Any) -> Any:
        objects = put_shards(self, *arguments)
        for key in objects_of(memory):
            obstore.delete(memory.store, key)
        create_store(ObjectStore(memory.store), num_classes=CLASSES, labels=labels, digests=digests + 1)
        return objects

    capture = store.capture("wide", provenance={})
    monkeypatch.setattr(PartWriter, "_put_shards", exchanged)
    with pytest.raises(WrongStore), monkeypatch.context() as within:
        within.setattr(SamplesWriter, "_put_shards", put_shards)
        capture.write(range(ROWS), np.zeros((ROWS, CLASSES), np.float32))
    assert not [key for key in objects_of(memory) if key.startswith("teachers/wide")]


def test_a_writer_that_slept_while_others_sealed_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    memory = in_memory()
    write(memory)
    sleeper = in_memory()
    store = create_store(
        sleeper,
        num_classes=CLASSES,
        labels=np.arange(ROWS) % CLASSES,
        digests=np.arange(ROWS, dtype=np.uint64),
        block_rows=8,
    )
    with (
        caplog.at_level(logging.WARNING),
        store.capture("wide", provenance={"teacher": {"name": "wide"}}, views=2) as capture,
    ):
        write(sleeper)
        capture.write(range(8), np.ones((8, CLASSES), np.float32))
    assert "another writer sealed" in caplog.text
    assert objects_of(sleeper) == golden()


# Places


def test_a_prefix_with_other_things_in_it_is_not_a_free_place() -> None:
    memory = in_memory()
    obstore.put(memory.store, "notes.txt", b"mine")
    with pytest.raises(NameTaken, match=r"notes\.txt"):
        begin_store(memory, num_rows=3, num_classes=2)
    assert objects_of(memory) == {"notes.txt": b"mine"}


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket) -> None:
    bucket.serve = lambda *_: (404, {}, b"<Error><Code>NoSuchBucket</Code></Error>")
    with pytest.raises(StorageRefused, match="NoSuchBucket"):
        folder_of(bucket).prove_exclusive()


# The doctor


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments)


def test_the_doctor_finds_a_good_bucket_safe_and_leaves_it_as_it_was(bucket: Bucket, at_url: str) -> None:
    done = call("doctor", at_url, "--rounds", "60")
    assert done.exit_code == 0, done.output
    assert f"{at_url}: safe for several writers" in done.output
    assert objects_in(bucket) == {}


def test_the_doctor_finds_a_bucket_unsafe_that_replaces_objects(bucket: Bucket, at_url: str) -> None:
    assert isinstance(bucket.serve, MemoryS3)
    bucket.serve.is_conditional = False
    done = call("doctor", at_url, "--rounds", "60")
    assert done.exit_code == 1
    assert f"{at_url}: not safe" in done.output and "the second is accepted" in done.output
    assert objects_in(bucket) == {}


def test_the_doctors_json_has_the_keys_and_types_of_its_schema(bucket: Bucket, at_url: str) -> None:
    schema = json.loads((ROOT / "docs" / "reference" / "schemas" / "doctor.json").read_text())
    done = call("doctor", at_url, "--rounds", "20", "--json")
    assert problems(json.loads(done.output), schema) == []


def test_the_doctor_says_that_nothing_can_be_put(bucket: Bucket, at_url: str) -> None:
    bucket.faults = [Fault("403", first=0, times=1000)]
    done = call("doctor", at_url)
    assert done.exit_code == 4 and "ExpiredToken" in done.output


# The commands


def test_a_capture_is_compressed_in_a_bucket(bucket: Bucket, at_url: str) -> None:
    write(at_url)
    done = call("compress", at_url, "--teacher", "wide", "--max-kl", "1e-2", "--name", "small")
    assert done.exit_code == 0, done.output
    store = open_store(at_url)
    assert list(store.teachers) == ["wide", "small"]
    assert verify(store.root.folder, deep=True).exit_code == 0


@pytest.mark.deep
def test_a_capture_is_clustered_in_a_bucket(bucket: Bucket, at_url: str) -> None:
    write(at_url)
    done = call("cluster", at_url, "--teacher", "wide", "--clusters", "2", "--classes-per-cluster", "2")
    assert done.exit_code == 0, done.output
    store = open_store(at_url)
    assert len(store.clusterings) == 1
    assert verify(store.root.folder, deep=True).exit_code == 0


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment with one teacher, which has weights."""
    return small_experiment.lay_out(tmp_path / "experiment")


def test_stage_one_writes_the_same_objects_in_a_bucket(
    bucket: Bucket, at_url: str, experiment: Path, tmp_path: Path
) -> None:
    local = tmp_path / "store.zarr"
    done = call("cache", str(experiment), str(local))
    assert done.exit_code == 0, done.output
    done = call("cache", str(experiment), at_url, "--models", str(tmp_path / "models"))
    assert done.exit_code == 0, done.output
    assert objects_in(bucket) == small_experiment.files(local)
    done = call("cache", str(experiment), at_url, "--models", str(tmp_path / "models"))
    assert done.exit_code == 0 and "nothing to do" in done.output


@pytest.mark.deep
def test_several_ranks_write_the_same_objects_in_a_bucket(
    bucket: Bucket, at_url: str, experiment: Path, tmp_path: Path
) -> None:
    local = tmp_path / "store.zarr"
    assert call("cache", str(experiment), str(local)).exit_code == 0
    command = ("-m", "logitstore", "cache", experiment, at_url, "--models", tmp_path / "models")
    done = torchrun(2, *command)
    assert done.returncode == 0, done.stderr
    assert objects_in(bucket) == small_experiment.files(local)


def test_a_cache_in_a_bucket_needs_a_local_folder_of_models(
    bucket: Bucket, at_url: str, experiment: Path
) -> None:
    done = call("cache", str(experiment), at_url)
    assert done.exit_code == 64, done.output
    assert (
        "expected a local folder for the trained networks" in done.output
        and "add --models DIR" in done.output
    )
    assert bucket.requests == []


def test_a_bucket_that_replaces_objects_is_refused_before_a_teacher_runs(
    bucket: Bucket, at_url: str, experiment: Path, tmp_path: Path
) -> None:
    assert isinstance(bucket.serve, MemoryS3)
    bucket.serve.is_conditional = False
    done = call("cache", str(experiment), at_url, "--models", str(tmp_path / "models"))
    assert done.exit_code == 75
    assert "a second object replaced the first" in done.output
    assert objects_in(bucket) == {}


@pytest.mark.parametrize("option", ["--models", "--cache"])
def test_a_folder_is_not_made_for_a_url(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("run", str(experiment), option, "s3://bucket/runs")
    assert done.exit_code == 64 and "expected a local folder, found a URL" in done.output
    assert not (tmp_path / "s3:").exists()


def test_networks_in_hand_are_cached_in_a_bucket(bucket: Bucket, at_url: str) -> None:
    inputs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    teachers = {"line": torch.nn.Linear(4, 3)}
    store = logitstore.cache(at_url, teachers, (inputs, np.arange(20) % 3), progress=False)
    assert str(store.path) == at_url and list(store.teachers) == ["line"]
    with pytest.raises(ConfigError, match="beside which the scores are kept"):
        logitstore.cache(at_url, teachers, inputs, evaluation=(inputs, np.arange(20) % 3))
