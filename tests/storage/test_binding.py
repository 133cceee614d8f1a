"""A writer is bound to the store and the part that it opened: nothing of it gets into others, and none of theirs into it.

A zombie is a writer that outlived its store. The specs of both captures here are the same bytes, and so are those of
both samples: nothing but the binding, and the digests of the inputs, tells them apart.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from support import stores

from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.backends.lease import Lease
from logitstore.storage.backends.local import Folder
from logitstore.storage.backends.staged import NewObject
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import (
    ConfigError,
    LogitStoreError,
    ManifestInvalid,
    NotAStoreError,
    RowMismatch,
    WriterBusy,
    WrongStore,
)
from logitstore.storage.format.documents import sha256_hex
from logitstore.storage.integrity.repair import repair
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.binding import Binding
from logitstore.storage.parts.journal import Commit
from logitstore.storage.parts.log import log_key, part_record
from logitstore.storage.parts.part_writer import PartWriter
from logitstore.storage.parts.root import Root
from logitstore.storage.parts.writer import CaptureWriter

pytestmark = pytest.mark.usefixtures("without_fsync")

ROWS, CLASSES, BLOCK_ROWS = 20, 3, 8
OLD, NEW = (stores.some_inputs(ROWS, shape=(2,)) + number for number in (np.uint8(0), np.uint8(100)))
WEIGHTS = np.array([[1, 2, 3], [4, 5, 7]], np.float32) / 8


def begin(path: Path, inputs: NDArray[np.uint8], **others: Any) -> Store:
    return create_store(path, num_classes=CLASSES, inputs=inputs, block_rows=BLOCK_ROWS, **others)


def capture(store: Store) -> CaptureWriter:
    return store.capture("t", provenance={"model": "the same"})


def write(writer: CaptureWriter, inputs: NDArray[np.uint8], block: int) -> None:
    rows = writer.root.grid.rows(block)
    shown = inputs[rows.start : rows.stop]
    writer.write(rows, shown @ WEIGHTS, seen=digest_rows(shown))


def tree(path: Path) -> dict[str, bytes]:
    """Every file but those of leases."""
    return {
        key: data
        for key, data in stores.tree(path).items()
        if not key.endswith(("__logitstore__/lock", "__logitstore__/tmp/"))
    }


def begun_anew(path: Path) -> None:
    """Begin the other store at a path, with one block of its capture."""
    with capture(begin(path, NEW)) as writer:
        write(writer, NEW, 0)


def deleted(path: Path) -> None:
    shutil.rmtree(path)


def deleted_and_begun_anew(path: Path) -> None:
    shutil.rmtree(path)
    begun_anew(path)


def emptied_and_begun_anew(path: Path) -> None:
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    begun_anew(path)


def moved_away(path: Path) -> None:
    path.rename(path.with_name("moved"))


def replaced_by_a_rename(path: Path) -> None:
    begun_anew(path.with_name("new"))
    path.rename(path.with_name("moved"))
    path.with_name("new").rename(path)


def replaced_file_by_file(path: Path) -> None:
    """What `rsync --delete` does: the folders stay, and every file in them is another."""
    begun_anew(path.with_name("new"))
    for file in [file for file in path.rglob("*") if file.is_file() and file.name != "lock"]:
        file.unlink()
    shutil.copytree(path.with_name("new"), path, dirs_exist_ok=True)
    shutil.rmtree(path.with_name("new"))


def part_begun_anew(path: Path) -> None:
    shutil.rmtree(path / "teachers/t")
    with capture(open_store(path)) as writer:
        write(writer, OLD, 0)


def part_begun_anew_in_its_folder(path: Path) -> None:
    for entry in (path / "teachers/t").iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    with open_store(path).capture("t", provenance={"model": "another"}) as writer:
        write(writer, OLD, 0)


WAYS: tuple[Callable[[Path], None], ...] = (
    deleted,
    deleted_and_begun_anew,
    emptied_and_begun_anew,
    moved_away,
    replaced_by_a_rename,
    replaced_file_by_file,
    part_begun_anew,
    part_begun_anew_in_its_folder,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_writer_whose_store_is_another_writes_nothing_into_it(
    tmp_path: Path, way: Callable[[Path], None]
) -> None:
    path = tmp_path / "store"
    zombie = capture(begin(path, OLD))
    write(zombie, OLD, 0)
    way(path)
    before = tree(tmp_path)
    for block in (1, 2):
        with pytest.raises(WrongStore, match=r"begun anew|another one is at this path"):
            write(zombie, OLD, block)
    with contextlib.suppress(WrongStore, NotAStoreError):
        assert not zombie.seal()
    zombie.close()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("way", WAYS[:6], ids=lambda way: way.__name__)
def test_a_writer_that_has_written_nothing_is_bound_as_well(
    tmp_path: Path, way: Callable[[Path], None]
) -> None:
    path = tmp_path / "store"
    zombie, store = capture(begin(path, OLD)), open_store(path)
    way(path)
    before = tree(tmp_path)
    with pytest.raises((WrongStore, NotAStoreError)):
        write(zombie, OLD, 1)
    # A store that was opened before, and begins to write now: refused before a teacher runs for an hour.
    with pytest.raises(LogitStoreError):
        store.capture("u", provenance={})
    with pytest.raises(LogitStoreError) as caught:
        capture(store)
    assert isinstance(caught.value, WrongStore) or not path.exists()
    with pytest.raises((WrongStore, NotAStoreError)):
        store.refresh()
    zombie.close()
    assert tree(tmp_path) == before


def test_a_link_that_is_switched_leads_no_writer_into_another_store(tmp_path: Path) -> None:
    begin(tmp_path / "one", OLD)
    begin(tmp_path / "two", NEW)
    path = tmp_path / "current"
    path.symlink_to("one")
    zombie = capture(open_store(path))
    write(zombie, OLD, 0)
    path.unlink()
    path.symlink_to("two")
    before = stores.tree(tmp_path / "two")
    with pytest.raises(WrongStore, match="found no folder: it was moved"):
        write(zombie, OLD, 1)
    zombie.close()
    assert stores.tree(tmp_path / "two") == before
    # The same store by another path is the same store.
    path.unlink()
    path.symlink_to(tmp_path / "one")
    with capture(open_store(path)) as writer:
        assert list(writer.missing_blocks()) == [range(8, 16), range(16, 20)]
        write(writer, OLD, 1)


PUTS = 5
"""Objects of a block: three shards of a capture and its record, and one that the seal would follow with."""


def replaced_at(put: int, path: Path) -> Any:
    """Replace the store when a writer is about to publish its n-th object from now on."""
    left, genuine = [put], NewObject.publish

    def publish(self: NewObject) -> bool:
        left[0] -= 1
        if left[0] == 0:
            replaced_by_a_rename(path)
        return genuine(self)

    return mock.patch.object(NewObject, "publish", publish)


@pytest.mark.parametrize("put", range(1, PUTS))
def test_a_store_that_is_replaced_in_the_middle_of_a_block_gets_nothing_of_it(
    tmp_path: Path, put: int
) -> None:
    path = tmp_path / "store"
    zombie = capture(begin(path, OLD))
    write(zombie, OLD, 0)
    begun_anew(tmp_path / "like")
    with replaced_at(put, path), pytest.raises(WrongStore) if put < PUTS - 1 else mock.MagicMock():
        write(zombie, OLD, 1)
    zombie.close()
    assert stores.tree(path) == stores.tree(tmp_path / "like")


def test_a_writer_that_walks_by_path_is_seen(tmp_path: Path) -> None:
    """Negative control of the test above: the shards of the block get into the other store."""
    path = tmp_path / "store"
    with (
        mock.patch.object(Folder, "hold", lambda self, make=False: self),
        mock.patch.object(Folder, "check_in_place", lambda self: None),
    ):
        zombie = capture(begin(path, OLD))
        write(zombie, OLD, 0)
        with replaced_at(4, path):
            write(zombie, OLD, 1)
        zombie.close()
    assert (path / "teachers/t/__logitstore__/commits/0-1.json").exists()


def test_samples_are_bound_as_well(tmp_path: Path) -> None:
    """No digest tells two half-written samples apart: their specs and the log are the same bytes."""
    path, labels = tmp_path / "store", np.arange(ROWS) % CLASSES
    written: list[int] = []
    genuine = PartWriter.commit

    def commit(self: PartWriter, view: int, block: int, arrays_of: Any) -> None:
        if block == 1 and not written:
            written.append(block)
            shutil.rmtree(path)
            begin(path, OLD, labels=(labels + 1) % CLASSES)
        genuine(self, view, block, arrays_of)

    with (
        mock.patch.object(PartWriter, "commit", commit),
        pytest.raises(WrongStore, match="another folder in its place"),
    ):
        begin(path, OLD, labels=labels)
    assert open_store(path).samples.labels.tolist() == ((labels + 1) % CLASSES).tolist()


def test_a_writer_that_was_closed_and_writes_again_is_bound_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writer = capture(begin(path, OLD))
    write(writer, OLD, 0)
    writer.close()
    write(writer, OLD, 1)
    writer.close()
    deleted_and_begun_anew(path)
    before = stores.tree(path)
    with pytest.raises(WrongStore, match="another one is at this path by now"):
        write(writer, OLD, 2)
    assert stores.tree(path) == before


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def number() -> int:
        return len(os.listdir("/proc/self/fd"))

    path = tmp_path / "store"
    store = begin(path, OLD)
    before = number()
    for block in range(3):
        with capture(store) as writer:
            write(writer, OLD, block)
        assert number() == before
    with pytest.raises(LogitStoreError):
        store.capture("t", provenance={"model": "another"})
    assert number() == before
    writer = store.capture("u", provenance={})
    write(writer, OLD, 0)
    assert number() > before
    del writer  # forgotten
    assert number() == before


# A forked child


def in_a_child(work: Callable[[], None]) -> int:
    """Run in a fork that ends as sys.exit does, finalizers and all; return its status."""
    if (pid := os.fork()) == 0:
        try:
            work()
            sys.exit(0)
        except SystemExit:
            # What the interpreter does at its end, without the rest of pytest.
            import weakref

            weakref.finalize._exitfunc()  # type: ignore[attr-defined]
            os._exit(0)
        except BaseException:  # noqa: BLE001 - it must not get into pytest's code
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_held(path: Path) -> bool:
    try:
        repair(path)
    except WriterBusy:
        return True
    return False


def test_a_forked_child_that_exits_keeps_the_lease_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writer = capture(begin(path, OLD))
    write(writer, OLD, 0)
    assert in_a_child(lambda: None) == 0
    assert in_a_child(writer.close) == 0
    assert is_held(path)
    write(writer, OLD, 1)
    writer.close()
    assert not is_held(path)


def test_a_lease_that_a_child_may_release_is_seen(tmp_path: Path) -> None:
    """Negative control."""
    path = tmp_path / "store"
    writer = capture(begin(path, OLD))
    write(writer, OLD, 0)
    with mock.patch.object(Lease, "held", property(lambda self: self._handle >= 0)):
        assert in_a_child(lambda: None) == 0
        assert not is_held(path)
        writer.close()


def test_a_forked_child_that_writes_on_takes_a_lease_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writer = capture(begin(path, OLD))
    write(writer, OLD, 0)

    def work() -> None:
        write(writer, OLD, 1)
        assert writer._binding.lease.held
        writer.close()

    assert in_a_child(work) == 0
    assert is_held(path)
    write(writer, OLD, 2)
    assert writer.seal()
    assert verify(path, deep=True).exit_code == 0


def test_a_child_that_exits_in_the_middle_of_a_block_leaves_it_to_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = begin(path, OLD)
    statuses: list[int] = []
    with store.root.folder.sub("x").stage("y") as (new,):  # type: ignore[attr-defined]
        new.write(b"1")
        statuses.append(in_a_child(lambda: new.__exit__(None, None, None)))
        new.write(b"2")
        assert new.publish()
    assert statuses == [0]
    assert store.root.folder.sub("x").read("y") == b"12"


# Blocks of others that are there: recovery, sealing, opening, verify


def foreign(path: Path, *, spec: str | None = None, inputs: NDArray[np.uint8] = NEW) -> Path:
    """Put a block of another part into a part, as a writer without a binding has left it; return its record.

    spec: that of its record; None for the part's own. inputs: of its rows; the logits are of another teacher.
    """
    other = path.with_name("other")
    with capture(begin(other, inputs)) as writer:
        shown = inputs[8:16]
        writer.write(range(8, 16), shown @ -WEIGHTS, seen=digest_rows(shown))
    part = path / "teachers/t"
    for key in ("logits/c.0.1.0", "peak/c.0.1", "seen/c.0.1"):
        shutil.copy(other / "teachers/t" / key, part / key)
    record = "__logitstore__/commits/0-1.json"
    commit = Commit.from_bytes((other / "teachers/t" / record).read_bytes(), record)
    if spec is not None:
        commit = Commit(commit.view, commit.block, commit.rows, spec, commit.objects)
    (part / record).write_bytes(commit.to_bytes())
    shutil.rmtree(other)
    return part / record


def resumed(path: Path) -> None:
    """Resume the capture, seal it, and compare it with what it should be."""
    with capture(open_store(path)) as writer:
        for rows in writer.missing_blocks():
            write(writer, OLD, rows.start // BLOCK_ROWS)
    whole = path.with_name("whole")
    with capture(begin(whole, OLD)) as writer:
        for block in range(3):
            write(writer, OLD, block)
    assert stores.tree(path) == stores.tree(whole)


@pytest.mark.parametrize(
    ("spec", "inputs"),
    [("a" * 64, NEW), (None, NEW), ("a" * 64, OLD)],
    ids=["of another spec", "of other rows", "of another teacher"],
)
@pytest.mark.parametrize("repaired", [False, True])
def test_a_block_of_another_store_is_torn_and_never_adopted(
    tmp_path: Path, spec: str | None, inputs: NDArray[np.uint8], repaired: bool
) -> None:
    path = tmp_path / "store"
    with capture(begin(path, OLD)) as writer:
        write(writer, OLD, 0)
    foreign(path, spec=spec, inputs=inputs)
    if repaired:
        repair(path)
    resumed(path)


def test_shards_of_another_store_without_a_record_are_not_adopted(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with capture(begin(path, OLD)) as writer:
        write(writer, OLD, 0)
    foreign(path).unlink()
    resumed(path)


def test_a_recovery_that_is_killed_in_between_adopts_nothing(tmp_path: Path) -> None:
    """The shards go before the record: it is what tells whose they are."""
    path = tmp_path / "store"
    with capture(begin(path, OLD)) as writer:
        write(writer, OLD, 0)
    foreign(path, spec="a" * 64)
    genuine = Folder.remove
    for removals in (1, 1, 1):
        left = [removals]

        def remove(self: Folder, key: str, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            genuine(self, key)

        with mock.patch.object(Folder, "remove", remove), pytest.raises(KeyboardInterrupt):
            capture(open_store(path))
    resumed(path)


def test_sealing_refuses_a_mix_and_names_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writer = capture(begin(path, OLD))
    for block in (0, 2):
        write(writer, OLD, block)
    foreign(path)
    with pytest.raises(RowMismatch) as caught:
        writer.seal()
    assert "teachers/t, view 0, row 8: expected the input of the samples, with digest " in str(caught.value)
    assert "another input was seen (8 rows from 8 to 15 differ); end all writers" in str(caught.value)
    writer.close()
    assert "t" not in open_store(path).teachers
    resumed(path)


def test_a_mix_that_is_sealed_unchecked_is_found_by_verify(tmp_path: Path) -> None:
    """Negative control of the test above, and what a store of an earlier version may hold."""
    path = tmp_path / "store"
    writer = capture(begin(path, OLD))
    for block in (0, 2):
        write(writer, OLD, block)
    foreign(path)
    with mock.patch.object(CaptureWriter, "check_rows", lambda self, view, block: None):
        assert writer.seal()
    assert verify(path).exit_code == 0
    found = verify(path, deep=True)
    assert found.exit_code == 1
    (problem,) = found.problems
    assert isinstance(problem, RowMismatch) and "row 8" in problem.where
    assert repair(path).exit_code == 1


def test_rows_that_the_teacher_did_not_see_are_refused_at_once(tmp_path: Path) -> None:
    with capture(begin(tmp_path / "store", OLD)) as writer:
        with pytest.raises(
            RowMismatch, match=r"teachers/t, view 0, row 3: expected the input of the samples"
        ):
            shown = OLD[:8].copy()
            shown[3] += 1
            writer.write(range(8), shown @ WEIGHTS, seen=digest_rows(shown))
        assert writer.num_missing == 3


def test_an_augmentation_that_no_reader_understands_is_refused(tmp_path: Path) -> None:
    store = begin(tmp_path / "store", OLD)
    for wrong in ("flip", {"first_view": -1}, {"first_view": "1"}, {"first_view": True}):
        with pytest.raises(ConfigError, match="expected a table, whose first_view"):
            store.capture("t", provenance={"augmentation": wrong})


def test_a_part_of_other_samples_is_refused_on_opening_and_by_verify(tmp_path: Path) -> None:
    """A sealed part that was copied in from another store, log and all."""
    path, other = tmp_path / "store", tmp_path / "other"
    for where, inputs in ((path, OLD), (other, NEW)):
        with capture(begin(where, inputs)) as writer:
            for block in range(3):
                write(writer, inputs, block)
    shutil.rmtree(path / "teachers/t")
    shutil.copytree(other / "teachers/t", path / "teachers/t")
    previous = sha256_hex((path / log_key(1)).read_bytes())
    seal = sha256_hex((path / "teachers/t/__logitstore__/seal.json").read_bytes())
    (path / log_key(2)).write_bytes(part_record("teachers/t", previous, seal))
    store = open_store(path)
    with pytest.raises(
        ManifestInvalid, match=r"seal.json: expected a part of the samples [0-9a-f]{12}…, found"
    ):
        _ = store.teachers["t"]
    assert verify(path).exit_code == 1
    with mock.patch.object(Root, "_check_samples", lambda self, part: None):  # negative control
        assert open_store(path).teachers["t"].read(slice(0, 1)).shape == (1, CLASSES)
        assert verify(path).exit_code == 0


def test_the_check_of_a_binding_is_cheap(tmp_path: Path) -> None:
    """It opens a few folders and reads two small files: far fewer calls than the commit of a block makes."""
    writer = capture(begin(tmp_path / "store", OLD))
    write(writer, OLD, 0)
    calls = [0]
    genuine = os.open

    def counted(*arguments: Any, **others: Any) -> int:
        calls[0] += 1
        return genuine(*arguments, **others)

    with mock.patch.object(os, "open", counted):
        Binding.check(writer._binding, writer._files["__logitstore__/spec.json"])
        checked, calls[0] = calls[0], 0
        write(writer, OLD, 1)
    assert checked <= 12 < calls[0] - checked
    writer.close()
