"""Reports of `verify`: every fault of a store, and no other.

Thousands of flipped bits are tried in faults/test_flip.py.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import stores
from support.stores import Made, Teacher

from logitstore.storage.api import Store, open_store
from logitstore.storage.backends.local import Folder
from logitstore.storage.errors import (
    LogitStoreError,
    ManifestInvalid,
    NotAStoreError,
    ShardCorrupt,
    ShardMissing,
    StoreCorrupt,
    StoreIncomplete,
    TransientIOError,
)
from logitstore.storage.integrity.verify import (
    CLEAN,
    CORRUPT,
    INCOMPLETE,
    IO_ERROR,
    UNTRUSTED,
    Report,
    verify,
)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A small store with all kinds of parts."""
    teachers = {"wide": Teacher(views=2), "deep": Teacher(encoding="float32")}
    made = stores.make(tmp_path / "store.zarr", rows=11, block_rows=4, teachers=teachers)
    stores.add_clustering(made.store)
    return made


def problems(path: Path, *, deep: bool = True) -> list[LogitStoreError]:
    return verify(path, deep=deep).problems


def test_a_whole_store_is_clean(made: Made) -> None:
    for deep in (False, True):
        report = verify(made.path, deep=deep)
        assert (report.exit_code, report.problems, report.unsealed) == (CLEAN, [], [])
        assert report.digest == made.store.digest
    shards = [key for key in stores.files_of(made.path) if "/c." in key and "__logitstore__" not in key]
    small = ("classes/", "class_name/", "clusters/")
    sizes = [(made.path / key).stat().st_size for key in shards if not any(s in key for s in small)]
    assert report.bytes == sum(sizes)


READS: dict[str, Callable[[Store], Any]] = {
    "samples/label/c.1": lambda store: store.samples.labels,
    "samples/input/c.2.0.0": lambda store: store.samples.inputs[9],  # type: ignore[index]
    "samples/id/c.0.0": lambda store: store.samples.ids,
    "samples/class_name/c.0.0": lambda store: store.class_names,
    "samples/digest/zarr.json": lambda store: store.samples.digests,
    "samples/__logitstore__/seal.json": lambda store: store.samples,
    "samples/__logitstore__/seal.bin": lambda store: store.samples.labels,
    "teachers/wide/logits/c.1.2.0": lambda store: store.teachers["wide"].read([10], view=1),
    "teachers/wide/peak/c.0.0": lambda store: store.teachers["wide"].peak(slice(0, 1)),
    "teachers/wide/seen/c.1.1": lambda store: store.teachers["wide"].seen([4, 5], view=1),
    "teachers/wide/classes/c.0": lambda store: store.teachers["wide"].classes,
    "teachers/wide/zarr.json": lambda store: store.teachers["wide"],
    "teachers/wide/__logitstore__/spec.json": lambda store: store.teachers["wide"],
    "clusters/wide-2x2/covariance/c.0.0": lambda store: store.clustering("wide-2x2").small("covariance"),
    "clusters/zarr.json": lambda store: store,
    "__logitstore__/log/1.json": lambda store: store,
}


@pytest.mark.parametrize("key", READS)
def test_a_read_of_a_damaged_file_raises(made: Made, key: str) -> None:
    READS[key](open_store(made.path))
    size = (made.path / key).stat().st_size * 8
    for bit in (7, size // 5):  # of a shard: in its first chunk, since its index is not what reads go by
        stores.flip(made.path / key, bit)
        with pytest.raises((StoreCorrupt, NotAStoreError)):
            READS[key](open_store(made.path))
        assert problems(made.path)
        stores.flip(made.path / key, bit)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "longer"])
def test_shards_of_another_size(made: Made, damage: str) -> None:
    key = "teachers/wide/logits/c.1.1.0"
    file = made.path / key
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"cut": data[:-1], "empty": b"", "longer": data + b"\0"}[damage])
    error = ShardMissing if damage == "missing" else ShardCorrupt
    where = f"{file} (rows 4 to 7)"
    found = {"missing": "no file", "cut": str(len(data) - 1), "empty": "0", "longer": str(len(data) + 1)}[
        damage
    ]
    expected = f"a shard of {len(data)} bytes" if damage == "missing" else f"{len(data)} bytes"
    with pytest.raises(error) as caught:
        open_store(made.path).teachers["wide"].read([5], view=1)
    assert str(caught.value) == (
        f"{where}: expected {expected}, found {found}; "
        "run `logitstore repair`, then the command that wrote it; or restore the file from a copy"
    )
    assert open_store(made.path).teachers["wide"].read([5], view=0).shape == (1, 5)  # the rest can be read
    for deep in (False, True):  # sizes are compared without --deep, too
        (problem,) = problems(made.path, deep=deep)
        assert isinstance(problem, error)
        assert problem.where == str(file)


def test_exchanged_shards(made: Made) -> None:
    """Each is a good shard, in the wrong place: only the seal knows."""
    for one, other in (("c.0.0.0", "c.0.1.0"), ("c.0.1.0", "c.1.1.0")):
        first, second = (made.path / "teachers/wide/logits" / key for key in (one, other))
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
        assert not problems(made.path, deep=False)
        assert {type(p) for p in problems(made.path)} == {ShardCorrupt}
        with pytest.raises(ShardCorrupt, match="chunk 0: expected crc32c"):
            open_store(made.path).teachers["wide"].read([4])
        second.write_bytes(first.read_bytes())
        first.write_bytes(data)
    assert not problems(made.path)


def test_a_part_of_another_store_is_noticed(made: Made, tmp_path: Path) -> None:
    other = stores.make(
        tmp_path / "other.zarr", rows=11, block_rows=4, teachers={"wide": Teacher(views=2)}, seed=9
    )
    shutil.rmtree(made.path / "teachers/wide")
    shutil.copytree(other.path / "teachers/wide", made.path / "teachers/wide")
    (problem,) = problems(made.path, deep=False)
    assert isinstance(problem, ManifestInvalid)
    assert problem.where.endswith("teachers/wide/__logitstore__/seal.json")
    with pytest.raises(ManifestInvalid, match="restore the file from a copy"):
        _ = open_store(made.path).teachers["wide"]
    assert open_store(made.path).teachers["deep"].read([0]).shape == (1, 5)


def test_all_problems_are_in_one_report(made: Made) -> None:
    (made.path / "teachers/wide/logits/c.0.0.0").unlink()
    stores.flip(made.path / "samples/label/c.1", 5)
    stores.flip(made.path / "teachers/deep/__logitstore__/commits/0-1.json", 50)
    report = verify(made.path, deep=True)
    assert report.exit_code == CORRUPT
    assert [type(p) for p in report.problems] == [ShardCorrupt, ShardMissing, ManifestInvalid]


def test_a_log_with_a_hole_or_another_chain(made: Made) -> None:
    log = made.path / "__logitstore__/log"
    second = (log / "2.json").read_bytes()
    (log / "2.json").unlink()
    with pytest.raises(ManifestInvalid, match=r"2\.json: expected record 2 of the log, found no file"):
        open_store(made.path)
    (log / "2.json").write_bytes((log / "3.json").read_bytes())
    with pytest.raises(
        ManifestInvalid, match=r"2\.json: expected a record that holds the sha256 of record 1"
    ):
        open_store(made.path)
    assert verify(made.path).exit_code == CORRUPT
    (log / "2.json").write_bytes(second)
    assert verify(made.path).exit_code == CLEAN


def test_a_damaged_record_of_the_log_is_named_and_not_its_successor(made: Made) -> None:
    """Opening finds that record 2 does not follow record 1; the parts' seals tell that record 1 was changed."""
    record = made.path / "__logitstore__/log/1.json"
    data = record.read_bytes()
    place = data.index(b'"seal":"') + 8
    record.write_bytes(data[:place] + (b"1" if data[place] == ord("0") else b"0") + data[place + 1 :])
    (problem,) = problems(made.path)
    assert (problem.where, problem.remedy) == (str(record), "run `logitstore repair`, which rebuilds it")


def test_every_damaged_file_of_the_root_is_told(made: Made) -> None:
    keys = ["clusters/zarr.json", "teachers/zarr.json", "zarr.json"]
    for key in keys:
        stores.flip(made.path / key, 77)
    assert [problem.where for problem in problems(made.path)] == [str(made.path / key) for key in keys]


def test_shards_are_compared_beside_damaged_metadata(made: Made) -> None:
    damaged = ["teachers/wide/logits/zarr.json", "teachers/wide/logits/c.1.1.0", "teachers/wide/peak/c.0.1"]
    for key in damaged:
        stores.flip(made.path / key, 77)
    assert [problem.where for problem in problems(made.path)] == [
        str(made.path / key) for key in (damaged[0], damaged[2], damaged[1])
    ]


def test_what_was_expected(made: Made) -> None:
    wanted = made.store.digest
    assert verify(made.path, expect=wanted).exit_code == CLEAN
    (problem,) = verify(made.path, expect=f"sha256:{'0' * 64}").problems
    assert str(problem) == (
        f"{made.path}: expected the store sha256:{'0' * 64}, found {wanted}, which never was that one; "
        "ask where the store came from, or open it without expecting a digest"
    )
    assert verify(made.path, expect=f"sha256:{'0' * 64}").exit_code == UNTRUSTED


def test_as_of_an_earlier_digest_later_parts_are_neither_checked_nor_missing(made: Made) -> None:
    earlier = made.store.digest
    with made.store.capture("late", provenance={}) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, stores.some_logits(1, len(rows), 5)[0])
    report = verify(made.path, deep=True, expect=earlier)
    assert (report.exit_code, report.unsealed, report.later) == (CLEAN, [], ["teachers/late"])


def test_unsealed_parts_are_incomplete_and_not_corrupt(made: Made) -> None:
    made.store.capture("half", provenance={}).write(range(4), stores.some_logits(1, 4, 5)[0])
    report = verify(made.path, deep=True)
    assert (report.exit_code, report.unsealed, report.problems) == (INCOMPLETE, ["teachers/half"], [])
    with pytest.raises(StoreIncomplete):
        _ = open_store(made.path).teachers["half"]


def test_a_root_that_was_damaged_is_reported_and_a_folder_without_a_store_is_not(
    made: Made, tmp_path: Path
) -> None:
    """A flip that makes version 1 of it version 3 is damage, not another format: the log knows the digest."""
    data = (made.path / "zarr.json").read_bytes()
    (made.path / "zarr.json").write_bytes(data.replace(b'"1.0"', b'"3.0"'))
    report = verify(made.path)
    assert report.exit_code == CORRUPT
    assert f"{made.path / 'zarr.json'}: expected sha256" in str(report.problems[0])
    with pytest.raises(NotAStoreError, match="expected a store, found nothing"):
        verify(tmp_path / "nowhere")


def test_a_disk_that_fails_is_not_called_corrupt(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    read_range = Folder.read_range

    def failing(self: Folder, key: str, offset: int, length: int) -> tuple[bytes, int]:
        if key == "peak/c.0.0":
            raise TransientIOError(key, expected="a working file system", found="EIO", remedy="run it again")
        return read_range(self, key, offset, length)

    monkeypatch.setattr(Folder, "read_range", failing)
    report = verify(made.path, deep=True)
    assert report.exit_code == IO_ERROR
    assert {type(problem) for problem in report.problems} == {TransientIOError}


def test_a_verifier_that_looks_away_is_noticed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without its look at the shards, verification finds nothing."""
    stores.flip(made.path / "teachers/wide/logits/c.0.0.0", 9)
    assert problems(made.path)
    monkeypatch.setattr("logitstore.storage.integrity.checks.check_shard", lambda *_, **__: None)
    assert problems(made.path) == []


def test_a_shard_is_read_in_pieces(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitstore.storage.integrity.checks.PIECE", 7)
    assert problems(made.path) == []
    stores.flip(made.path / "samples/input/c.1.0.0", 60)
    assert [type(problem) for problem in problems(made.path)] == [ShardCorrupt]


def test_every_damaged_file_of_a_part_is_told(made: Made) -> None:
    """Also where the first of them keeps the part from being opened."""
    damaged = [
        "teachers/wide/classes/c.0",
        "teachers/wide/peak/zarr.json",
        "teachers/wide/__logitstore__/spec.json",
        "clusters/wide-2x2/sets/c.0.0",
    ]
    for key in damaged:
        stores.flip(made.path / key, 77)
    assert sorted(p.where for p in problems(made.path)) == sorted(str(made.path / key) for key in damaged)


def test_the_records_of_a_sealed_part_must_be_there(made: Made) -> None:
    """Reads do not need them; whoever repairs `seal.bin` does."""
    key = "teachers/wide/__logitstore__/commits/1-2.json"
    (made.path / key).unlink()
    for deep in (False, True):
        (problem,) = problems(made.path, deep=deep)
        assert str(problem).startswith(
            f"{made.path / key}: expected the record of this block, found no file; "
        )
    assert open_store(made.path).teachers["wide"].read([10], view=1).shape == (1, 5)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """The part of a capture of which two blocks are there, in a store with nothing else but samples."""
    made = stores.make(tmp_path / "store.zarr", rows=11, block_rows=4, teachers={}, store_inputs=False)
    writer = made.store.capture("half", provenance={})
    for rows in (range(4), range(4, 8)):
        writer.write(rows, stores.some_logits(1, 4, 5)[0])
    writer.close()
    return made.path / "teachers" / "half"


@pytest.mark.parametrize(
    "key",
    [
        "__logitstore__/spec.json",
        "__logitstore__/commits/0-1.json",
        "zarr.json",
        "peak/zarr.json",
        "classes/c.0",
        "logits/c.0.1.0",
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_a_part_that_is_not_sealed_is_checked_as_far_as_its_records_go(
    half: Path, key: str, missing: bool
) -> None:
    path = half.parent.parent
    if missing:
        (half / key).unlink()
    else:
        stores.flip(half / key, 100)
    report = verify(path, deep=True)
    assert report.unsealed == ["teachers/half"]
    if missing and "commits" in key:  # a block without a record is one that is still to be written
        assert report.exit_code == INCOMPLETE
    else:
        assert report.exit_code == CORRUPT
        assert all(str(half) in problem.where for problem in report.problems)


def test_what_killed_writers_leave_is_no_problem(half: Path) -> None:
    (half / "__logitstore__/tmp").mkdir()
    (half / "__logitstore__/tmp/0123").write_bytes(b"half an object")
    (half / "__logitstore__/lock").write_bytes(b"")
    (half / "peak/c.0.2").write_bytes(b"torn, and without a record")
    report = verify(half.parent.parent, deep=True)
    assert (report.exit_code, report.problems, report.strays) == (INCOMPLETE, [], [])


STRAYS = {
    "notes.txt": False,
    "teachers/wide/logits/readme": False,
    "teachers/wide/__logitstore__/commits/0-9.json": False,
    "teachers/wide/__logitstore__/zarr.json": False,
    "__logitstore__/log/2.json.bak": False,
    "teachers/.hidden/file": False,
    "teachers/wide/logits/c.0.7.0": True,
    "teachers/wide/logits/c/0/7/0": False,
    "teachers/wide/extra/zarr.json": True,
    "clusters/wide-2x2/sets/.zarray": True,
    "extra/zarr.json": True,
    ".zmetadata": True,
}
"""A file that nobody sealed -> whether a plain reader of Zarr would take it for a part of the store."""


def test_files_that_nobody_sealed(made: Made) -> None:
    for key, is_seen in STRAYS.items():
        file = made.path / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"{}")
        report = verify(made.path)
        if is_seen:
            (problem,) = report.problems
            assert (problem.where, problem.expected) == (str(file), "a file that a seal lists")
            assert problem.remedy == "move it away; logitstore itself does not read it"
            assert (report.exit_code, report.strays) == (CORRUPT, [])
        else:
            assert (report.exit_code, report.problems, report.strays) == (CLEAN, [], [key])
        file.unlink()


def test_the_list_of_strays_has_an_end(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitstore.storage.integrity.strays.MAX_STRAYS", 3)
    for number in range(9):
        (made.path / f"stray-{number}").write_bytes(b"")
    assert verify(made.path).strays == ["stray-0", "stray-1", "stray-2"]


def test_an_error_of_size_becomes_a_report(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("logitstore.storage.integrity.checks.check_shard", exhausted)
    report = verify(made.path)
    assert report.exit_code == UNTRUSTED
    assert "expected sizes that a reader can handle, found MemoryError" in str(report.problems[0])


def test_progress_counts_blocks(made: Made) -> None:
    told: list[tuple[str, int, int]] = []

    def progress(task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        told.append((task, done, total))

    report: Report = verify(made.path, deep=True, progress=progress)
    assert report.exit_code == CLEAN
    assert [t for t in told if t[0] == "verifying teachers/wide"] == [
        ("verifying teachers/wide", done, 6) for done in range(1, 7)
    ]
