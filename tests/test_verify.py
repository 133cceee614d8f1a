"""Is every flipped bit found, wherever it is, and is nothing found where nothing is wrong?

Hundreds of flips over every file of a small store: `verify(deep=True)` must see each, and a read that uses
the file must raise the typed error, never give other numbers.
"""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stores
from stores import Made, Teacher

from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import (
    LogitStoreError,
    ManifestInvalid,
    NotAStoreError,
    ShardCorrupt,
    ShardMissing,
    StoreCorrupt,
    StoreIncomplete,
)
from logitstore.storage.verify import CLEAN, CORRUPT, INCOMPLETE, IO_ERROR, UNTRUSTED, Report, verify


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


def test_every_flipped_bit_is_found(made: Made) -> None:
    """Every file at three places; in a process of its own, where no checks of types slow hundreds of runs."""
    before = stores.tree_digest(made.path)
    command = [sys.executable, "-c", "import stores, sys; print(stores.flip_everywhere(sys.argv[1]))"]
    done = subprocess.run(
        [*command, str(made.path)], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    flips, silent = ast.literal_eval(done.stdout)
    assert silent == []
    assert flips > 250
    assert stores.tree_digest(made.path) == before
    assert problems(made.path) == []


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
        "restore the file from a copy, or capture this part again under another name"
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
    with pytest.raises(ManifestInvalid, match=r"2\.json: expected a log without gaps, found no such record"):
        open_store(made.path)
    (log / "2.json").write_bytes((log / "3.json").read_bytes())
    with pytest.raises(
        ManifestInvalid, match="expected a record that follows the one before, found one of another"
    ):
        open_store(made.path)
    assert verify(made.path).exit_code == CORRUPT
    (log / "2.json").write_bytes(second)
    assert verify(made.path).exit_code == CLEAN


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
    assert "format version '3.0'" in str(report.problems[0])
    with pytest.raises(NotAStoreError, match="expected a store, found nothing"):
        verify(tmp_path / "nowhere")


def test_a_disk_that_fails_is_not_called_corrupt(made: Made) -> None:
    file = made.path / "teachers/wide/peak/c.0.0"
    file.unlink()
    file.mkdir()  # reading it is an error of the file system, whoever runs this test
    report = verify(made.path, deep=True)
    assert report.exit_code == IO_ERROR
    assert "expected a path that can be read and written" in str(report.problems[0])


def test_a_verifier_that_looks_away_is_noticed(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without its look at the shards, verification finds nothing."""
    stores.flip(made.path / "teachers/wide/logits/c.0.0.0", 9)
    assert problems(made.path)
    monkeypatch.setattr("logitstore.storage.verify._verify_shard", lambda *_: None)
    assert problems(made.path) == []


def test_progress_counts_blocks(made: Made) -> None:
    told: list[tuple[str, int, int]] = []

    def progress(task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        told.append((task, done, total))

    report: Report = verify(made.path, deep=True, progress=progress)
    assert report.exit_code == CLEAN
    assert [t for t in told if t[0] == "verifying teachers/wide"] == [
        ("verifying teachers/wide", done, 6) for done in range(1, 7)
    ]
