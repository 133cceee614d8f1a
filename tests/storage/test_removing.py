"""Parts that are removed: first the log, then the bytes; what was made from them stays, and the name is not used again."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import stores
from support.stores import Teacher

import logitstore
from logitstore.pipeline.compress.stage import compress
from logitstore.storage.api import Store, open_store
from logitstore.storage.backends.lease import Lease
from logitstore.storage.backends.local import Folder
from logitstore.storage.describe import describe
from logitstore.storage.errors import (
    ConfigError,
    LogitStoreError,
    ManifestInvalid,
    NameTaken,
    PartNotFound,
    ShardMissing,
    StorageError,
    WriterBusy,
    WrongStore,
)
from logitstore.storage.format.documents import canonical_json, sha256_hex
from logitstore.storage.integrity.repair import repair
from logitstore.storage.integrity.verify import CLEAN, CORRUPT, INCOMPLETE, verify
from logitstore.storage.parts.log import append_log, log_key, read_log
from logitstore.storage.sharing import copying
from logitstore.storage.sharing.catalog import find_stores
from logitstore.storage.sharing.copying import copy_store
from logitstore.storage.sharing.removing import Removed, remove_parts

ROWS = 14


@pytest.fixture(autouse=True)
def quick(without_fsync: None) -> None:
    """What is removed is looked at here, not power cuts."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of two captures of two blocks, and a clustering of `wide`."""
    path = tmp_path / "store.zarr"
    teachers = {"wide": Teacher(views=2), "deep": Teacher(encoding={"transform": {"max_kl": 1e-2}})}
    logging.getLogger("logitstore").setLevel(logging.ERROR)
    stores.add_clustering(stores.make(path, rows=ROWS, teachers=teachers).store)
    return path


def remove(path: Any, *teachers: str, **more: Any) -> Removed:
    return remove_parts(path, teachers=teachers, **more)


def files(path: Path, part: str = "") -> dict[str, bytes]:
    return {key: data for key, data in stores.tree(path).items() if key.startswith(part)}


def in_one_line(error: BaseException) -> str:
    assert isinstance(error, LogitStoreError)
    assert "\n" not in str(error) and len(str(error)) < 700
    return str(error)


def write(store: Store, name: str) -> None:
    logits = stores.some_logits(1, ROWS, 5, seed=3)
    stores.write_capture(store, name, logits, Teacher(), stores.some_inputs(ROWS))


# Removal


def test_a_removed_capture_is_gone_and_nothing_else_changes(path: Path) -> None:
    before, digest = stores.tree(path), open_store(path).digest
    planned = remove(path, "wide", dry_run=True)
    assert stores.tree(path) == before
    done = remove(path, "wide")
    after, store = stores.tree(path), open_store(path)
    assert list(store.teachers) == ["deep"] and store.clusterings == ["wide-2x2"]
    assert planned.digest == done.digest == store.digest != digest
    gone = [key for key in before if key.startswith("teachers/wide/")]
    assert after == {key: data for key, data in before.items() if key not in gone} | {
        log_key(5): after[log_key(5)]
    }
    assert not (path / "teachers/wide").exists()
    (part,) = done.parts
    assert (part.part, part.state, part.files, part.derived) == (
        "teachers/wide",
        "sealed",
        len(gone),
        ("clusters/wide-2x2",),
    )
    sizes = {key: len(before[key]) for key in gone}
    assert done.bytes == sum(size for key, size in sizes.items() if "/commits/" not in key)
    assert verify(path, deep=True).exit_code == CLEAN
    assert describe(path)[0]["removed"] == ["teachers/wide"]
    (found,) = find_stores(path)
    assert (found.sealed, found.digest, found.teachers) == (True, done.digest, (("deep", "transform"),))
    assert logitstore.remove_parts is remove_parts


def test_a_second_removal_changes_nothing(path: Path) -> None:
    first = remove(path, "wide")
    before = stores.tree(path)
    again = remove(path, "wide")
    assert stores.tree(path) == before
    assert (again.digest, again.bytes, again.parts[0].state) == (first.digest, 0, "gone")


def test_several_parts_are_removed_in_one_call(path: Path) -> None:
    planned = remove_parts(path, teachers=["wide", "deep"], clusterings=["wide-2x2"], dry_run=True)
    done = remove_parts(path, teachers=["wide", "deep"], clusterings=["wide-2x2"])
    assert planned.digest == done.digest == open_store(path).digest
    assert sorted(key.split("/")[0] for key in stores.tree(path)) == sorted(
        key.split("/")[0] for key in stores.tree(path) if not key.startswith(("teachers/w", "teachers/d"))
    )
    assert list(open_store(path).teachers) == [] and verify(path, deep=True).exit_code == CLEAN


def test_another_files_in_the_folder_stay_and_are_named(path: Path) -> None:
    (path / "teachers/wide/notes.txt").write_text("mine")
    done = remove(path, "wide")
    assert done.parts[0].strays == ("notes.txt",)
    assert files(path, "teachers/wide") == {"teachers/wide/notes.txt": b"mine"}
    report = verify(path)
    assert (report.strays, report.leftovers, report.exit_code) == (["teachers/wide/notes.txt"], [], CLEAN)


def test_a_capture_that_is_damaged_can_be_removed(path: Path) -> None:
    (path / "teachers/wide/__logitstore__/seal.json").write_bytes(b"?")
    assert verify(path).exit_code == CORRUPT
    remove(path, "wide")
    assert verify(path, deep=True).exit_code == CLEAN


# What is derived


def test_what_was_made_from_it_stays_and_is_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(path)
    compress(store, "wide", "wide-small", {"max_kl": 1e-2})
    former = store.teachers["wide-small"].read(slice(None))
    done = remove(path, "wide")
    assert done.parts[0].derived == ("clusters/wide-2x2", "teachers/wide-small")
    store = open_store(path)
    assert np.array_equal(store.teachers["wide-small"].read(slice(None)), former)
    described, errors = describe(store)
    assert errors == [] and described["captures"][1]["divergence"] is not None
    assert verify(path, deep=True).exit_code == CLEAN
    # Without its source, it is the teacher that a stream takes.
    assert [list(batch.logits) for batch in store.stream(batch_size=ROWS, inputs=False)] == [
        ["deep", "wide-small"]
    ]
    with pytest.raises(PartNotFound, match="'wide', which `logitstore rm` has removed"):
        compress(store, "wide", "wide-small", {"max_kl": 1e-2})
    with pytest.raises(ConfigError, match="compress wide, which it was made from, where it is still there"):
        compress(store, "wide-small", "smaller", {"top_k": 2})


# Names


def test_the_name_is_not_used_again(path: Path) -> None:
    remove(path, "wide", "deep")
    store = open_store(path)
    for name in ("wide", "deep"):
        with pytest.raises(NameTaken, match="expected a name that no part of this store has had") as caught:
            write(store, name)
        assert in_one_line(caught.value).startswith(f"{path}: teachers/{name}: ")
    with pytest.raises(NameTaken):
        store.identity_of("teachers/wide")
    write(store, "another")
    assert list(open_store(path).teachers) == ["another"]


def test_a_writer_that_is_at_work_when_its_name_is_removed_seals_nothing(path: Path) -> None:
    store = open_store(path)
    remove(path, "wide")
    with pytest.raises(NameTaken):
        append_log(Folder(path), "teachers/wide", sha256_hex(b"another"))
    assert store.teachers["deep"] is not None
    write(store, "another")  # opened before the removal: its log goes on
    assert list(open_store(path).teachers) == ["deep", "another"]


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        (
            {"teachers": ["nobody"]},
            PartNotFound,
            r"one of the sealed parts of this store under teachers \(wide, deep\)",
        ),
        ({"teachers": ["samples"]}, PartNotFound, "found 'samples'"),
        ({"teachers": ["../samples"]}, ConfigError, "teachers"),
        ({"clusterings": ["wide"]}, PartNotFound, "under clusters"),
        ({"teachers": "wide"}, ConfigError, r"pass \['wide'\]"),
        ({}, ConfigError, "name at least one capture or clustering"),
    ],
)
def test_a_wrong_name_is_one_line_and_changes_nothing(
    path: Path, names: Any, error: type[Exception], said: str
) -> None:
    before = stores.tree(path)
    with pytest.raises(error, match=said) as caught:
        remove_parts(path, **names)
    in_one_line(caught.value)
    assert stores.tree(path) == before


# Digests


def test_a_former_digest_says_what_happened(path: Path) -> None:
    digests = [record.digest for record in open_store(path).root.log]
    done = remove(path, "wide")
    write(open_store(path), "another")
    for digest in digests[1:]:
        with pytest.raises(
            WrongStore, match="without teachers/wide, which `logitstore rm` has removed since"
        ) as caught:
            open_store(path, expect=digest)
        assert open_store(path).digest in in_one_line(caught.value)
    assert list(open_store(path, expect=digests[0]).teachers) == []  # before it was sealed
    assert list(open_store(path, expect=done.digest).teachers) == ["deep"]
    assert verify(path, expect=digests[1]).exit_code == 3


# Readers


def test_an_open_reader_gets_an_error_and_never_a_number(path: Path) -> None:
    store, late, open_before = open_store(path), open_store(path), open_store(path)
    capture, begun = store.teachers["wide"], late.teachers["wide"]
    capture.read(range(1))
    stream = iter(store.stream(batch_size=2, teachers=["wide"], views=0, inputs=False, window=2))
    remove(path, "wide")
    with pytest.raises(ShardMissing, match="no file: `logitstore rm` has removed this part"):
        capture.read(slice(None))
    with pytest.raises(PartNotFound, match="a part that `logitstore rm` has removed"):
        begun.read(slice(None))
    with pytest.raises((PartNotFound, ShardMissing), match="`logitstore rm` has removed"):
        list(stream)
    with pytest.raises(PartNotFound, match="a part that `logitstore rm` has removed") as caught:
        open_before.teachers["wide"]
    in_one_line(caught.value)
    store.refresh()
    with pytest.raises(PartNotFound):
        store.teachers["wide"]
    assert list(store.teachers) == ["deep"]


# Kills


def test_a_removal_that_is_killed_anywhere_is_completed(path: Path, tmp_path: Path) -> None:
    part, begun = path / "teachers/wide", tmp_path / "begun.zarr"
    shutil.copytree(path, begun)
    remove(path, "wide")
    done, digest = stores.tree(path), open_store(path).digest
    for number in range(0, 60, 4):  # of the files, those before which the removal ends
        shutil.rmtree(path)
        shutil.copytree(begun, path)
        if not _killed_at(path, number):
            break
        report = verify(path)
        assert (report.problems, report.unsealed, report.leftovers) == ([], [], ["teachers/wide"])
        assert (report.digest, report.exit_code, report.strays) == (digest, CLEAN, [])
        assert list(open_store(path).teachers) == ["deep"]
        if number % 8:
            assert repair(path).freed == ["teachers/wide"]
        else:
            assert remove(path, "wide").parts[0].state == "gone"
        assert stores.tree(path) == done and not part.exists()
    assert 20 < number < 60


class Killed(BaseException):
    """Raised in the place of a kill."""


def _killed_at(path: Path, number: int) -> bool:
    """Remove `wide`, and end before the file of that number; return whether there was one."""
    left, unlink = [number], os.unlink

    def counted(name: Any, **more: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        unlink(name, **more)

    # Whoever is killed does not tidy up either.
    tidy = mock.patch("logitstore.storage.parts.removal.remove_empty_folders")
    with mock.patch("logitstore.storage.backends.emptying._remove", counted):
        try:
            with tidy:
                remove(path, "wide")
        except Killed:
            return True
    return False


def test_a_record_that_another_process_put_first_is_not_put_twice(path: Path) -> None:
    put_new = Folder.put_new

    def slow(folder: Folder, key: str, data: bytes) -> bool:
        if key == log_key(5) and not (path / key).exists():
            with mock.patch.object(Folder, "put_new", put_new):
                append_log(Folder(path), "teachers/another", sha256_hex(b"its seal"))
        return put_new(folder, key, data)

    with mock.patch.object(Folder, "put_new", slow):
        remove(path, "wide")
    assert [record.removes for record in open_store(path).root.log] == [False] * 5 + [True]
    assert list(open_store(path).teachers) == ["deep", "another"] and not (path / "teachers/wide").exists()


# Writers at work


def test_a_part_that_a_writer_holds_is_not_removed(path: Path) -> None:
    before = open_store(path).digest
    lease = Lease(Folder(path).sub("teachers/wide"))
    lease.take()
    lease.share()
    with pytest.raises(WriterBusy, match="expected no other writer at work on this part"):
        remove(path, "wide")
    lease.release()
    assert open_store(path).digest == before and verify(path, deep=True).exit_code == CLEAN


def test_an_unfinished_part_is_removed_without_a_record_and_its_name_is_free(path: Path) -> None:
    store, digest = open_store(path), open_store(path).digest
    before = stores.tree(path)
    logits = stores.some_logits(1, ROWS, 5, seed=3)
    with store.capture("begun", provenance={"teacher": {"name": "begun"}}) as capture:
        rows = next(capture.missing_blocks())
        capture.write(rows, logits[0, rows.start : rows.stop])
        with pytest.raises(WriterBusy):
            remove(path, "begun")
    assert verify(path).exit_code == INCOMPLETE
    done = remove(path, "begun")
    assert (done.parts[0].state, done.digest) == ("unfinished", digest)
    assert stores.tree(path) == before
    write(open_store(path), "begun")


# Copies


def test_a_copy_of_a_store_lacks_what_was_removed_and_a_removal_is_not_copied(
    path: Path, tmp_path: Path
) -> None:
    copy_store(path, tmp_path / "old.zarr")
    remove(path, "wide")
    copied = copy_store(path, tmp_path / "new.zarr")
    assert list(open_store(tmp_path / "new.zarr").teachers) == ["deep"]
    assert verify(tmp_path / "new.zarr", deep=True).exit_code == CLEAN
    assert copied.digest == open_store(tmp_path / "new.zarr").digest != open_store(path).digest
    copy_store(path, tmp_path / "old.zarr")
    assert list(open_store(tmp_path / "old.zarr").teachers) == ["wide", "deep"]


def test_a_destination_does_not_get_again_what_was_removed_there(path: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.zarr"
    copy_store(path, old)
    write(open_store(old), "another")
    remove(path, "wide")
    for merge in (False, True):
        done = copy_store(old, path, merge=merge)
        assert done.gone == ("teachers/wide",) and "teachers/wide" not in done.there
    assert list(open_store(path).teachers) == ["deep", "another"]
    with pytest.raises(NameTaken, match="removed"):  # asked for by name, it would seem to be there
        copy_store(old, path, teachers=["wide"])
    assert not (path / "teachers/wide").exists()


def test_a_capture_that_is_removed_while_it_is_copied_there_does_not_come_back(
    path: Path, tmp_path: Path
) -> None:
    shared, add_to_log = tmp_path / "shared.zarr", copying.add_to_log
    copy_store(path, shared, teachers=["deep"])

    def meanwhile(*arguments: Any) -> str:
        with mock.patch.object(copying, "add_to_log", add_to_log):
            copy_store(path, shared, teachers=["wide"])
        remove(shared, "wide")
        return add_to_log(*arguments)

    with (
        mock.patch.object(copying, "add_to_log", meanwhile),
        pytest.raises(StorageError, match="removed meanwhile"),
    ):
        copy_store(path, shared, teachers=["wide"])
    assert list(open_store(shared).teachers) == ["deep"]
    assert verify(shared).leftovers == []
    with pytest.raises(NameTaken):
        copy_store(path, shared, teachers=["wide"])


# Damage


def _record(path: Path, number: int, **changes: Any) -> None:
    """Forge a record of a removal behind the log."""
    last = read_log(Folder(path))[1][-1]
    record = {
        "part": "teachers/wide",
        "previous": last.digest.removeprefix("sha256:"),
        "removed": "0" * 64,
    } | changes
    (path / log_key(number)).write_bytes(canonical_json({k: v for k, v in record.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "expected the removal of a part that is there, teachers/wide of seal"),
        ({"part": "samples"}, "expected the removal of a capture or a clustering, found samples"),
        ({"part": "teachers/nobody"}, "teachers/nobody of seal none"),
        ({"removed": True}, "expected a sha256"),
        ({"removed": None}, "expected one of the keys seal and removed, found neither"),
        ({"seal": "0" * 64}, "expected one of the keys seal and removed, found seal, removed"),
        ({"previous": "0" * 64}, "expected a record that holds the sha256 of record 4"),
    ],
)
def test_a_forged_removal_is_refused(path: Path, changes: dict[str, Any], said: str) -> None:
    if changes.get("part") == "samples":
        changes = changes | {"removed": open_store(path).digest_of("samples").removeprefix("sha256:")}
    _record(path, 5, **changes)
    with pytest.raises(ManifestInvalid, match=said) as caught:
        open_store(path)
    in_one_line(caught.value)
    before = stores.tree(path)
    assert verify(path).exit_code == CORRUPT
    assert repair(path).exit_code == 1
    assert {key: data for key, data in stores.tree(path).items() if "log" not in key} == {
        key: data for key, data in before.items() if "log" not in key
    }


def test_a_removal_twice_is_refused(path: Path) -> None:
    seal = open_store(path).digest_of("teachers/wide").removeprefix("sha256:")
    remove(path, "wide")
    _record(path, 6, removed=seal)
    with pytest.raises(ManifestInvalid, match="found teachers/wide a second time"):
        open_store(path)


@pytest.mark.parametrize("lost", [1, 2, 5])
@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_a_lost_record_is_found_again_by_its_successor(path: Path, lost: int, how: str) -> None:
    remove(path, "wide")
    write(open_store(path), "another")
    whole = stores.tree(path)
    if how == "missing":
        (path / log_key(lost)).unlink()
    else:
        stores.flip(path / log_key(lost), 8 * 30)
    assert verify(path).exit_code == CORRUPT
    repair(path)
    assert stores.tree(path) == whole


def test_a_part_that_is_removed_while_it_is_verified_is_no_damage(path: Path) -> None:
    names = Folder.names

    def meanwhile(folder: Folder, prefix: str = "") -> list[str]:
        if folder.path == path / "teachers/wide" and not (path / log_key(5)).exists():
            with mock.patch.object(Folder, "names", names):
                remove(path, "wide")
        return names(folder, prefix)

    with mock.patch.object(Folder, "names", meanwhile):
        report = verify(path, deep=True)
    assert (path / log_key(5)).exists()
    assert (report.problems, report.exit_code) == ([], CLEAN)
