"""Repairs, file by file: rebuilt from other files, removed if torn, left alone if intact.

Torn shards by the hundred, and orders of events by the thousand, are tried in faults/test_torn.py and
faults/test_machine.py.
"""

import contextlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner
from faults.damage import Case
from support import stores

from logitstore.cli.main import cli
from logitstore.storage.api import open_store
from logitstore.storage.backends.lease import Lease
from logitstore.storage.backends.local import Folder
from logitstore.storage.errors import NotAStoreError, TransientIOError, UntrustedStoreError, WriterBusy
from logitstore.storage.integrity.repair import BEYOND, DONE, Repairs, repair
from logitstore.storage.integrity.verify import CLEAN, INCOMPLETE, verify

pytestmark = pytest.mark.usefixtures("without_fsync")


def what(done: Repairs) -> dict[str, Any]:
    """What is not empty in a report."""
    found = {key: value for key, value in vars(done).items() if value and key != "beyond"}
    return {**found, **({"beyond": [problem.where for problem in done.beyond]} if done.beyond else {})}


def test_a_whole_store_is_left_alone(case: Case) -> None:
    for dry_run in (True, False):
        done = repair(case.path, dry_run=dry_run)
        assert (what(done), done.exit_code) == ({"dry_run": True} if dry_run else {}, DONE)
    assert stores.tree(case.path) == case.whole


REBUILT = [
    "zarr.json",
    "teachers/zarr.json",
    "__logitstore__/log/0.json",
    "__logitstore__/log/1.json",
    "__logitstore__/log/2.json",
    "samples/zarr.json",
    "samples/__logitstore__/seal.bin",
    "teachers/wide/__logitstore__/commits/1-0.json",
    "teachers/wide/__logitstore__/seal.bin",
    "clusters/wide-2x2/zarr.json",
]


@pytest.mark.parametrize("key", REBUILT)
def test_what_other_files_tell_is_rebuilt(case: Case, key: str) -> None:
    if REBUILT.index(key) % 2:
        (case.path / key).unlink()
    else:
        stores.flip(case.path / key, 155)
    done = repair(case.path, dry_run=True)
    assert (what(done), done.exit_code) == ({"dry_run": True, "rebuilt": [key]}, DONE)
    assert stores.tree(case.path) != case.whole
    done = repair(case.path)
    assert (what(done), done.exit_code) == ({"rebuilt": [key]}, DONE)
    assert stores.tree(case.path) == case.whole


REMADE = [
    "samples/input/zarr.json",
    "samples/id/zarr.json",
    "samples/class_name/zarr.json",
    "teachers/wide/logits/zarr.json",
    "teachers/wide/classes/c.0",
    "clusters/wide-2x2/sets/zarr.json",
]


@pytest.mark.parametrize("key", REMADE)
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_metadata_of_arrays_are_put_back_by_their_writer(case: Case, key: str, damage: str) -> None:
    if damage == "missing":
        (case.path / key).unlink()
    else:
        stores.flip(case.path / key, 155)
    removed = {} if damage == "missing" else {"removed": [key]}
    done = repair(case.path, dry_run=True)
    assert (what(done), done.exit_code) == ({"dry_run": True, **removed, "missing": [key]}, DONE)
    done = repair(case.path)
    assert (what(done), done.exit_code) == ({**removed, "missing": [key]}, DONE)
    assert not open_store(case.path).root.is_whole("/".join(key.split("/")[:-2]))
    case.write()
    assert stores.tree(case.path) == case.whole


def test_torn_shards_of_an_array_without_metadata_are_found(case: Case) -> None:
    """Their names on the disk give their keys: only the metadata have the number of dimensions."""
    (case.path / "samples/input/zarr.json").unlink()
    torn = "samples/input/c.1.0.0"
    stores.flip(case.path / torn, 3)
    done = repair(case.path)
    assert (done.removed, done.missing, done.blocks) == (
        [torn],
        ["samples/input/zarr.json"],
        {"samples": 1},
    )
    case.write()
    assert stores.tree(case.path) == case.whole


def test_a_digit_of_the_log_that_changed_is_found_in_the_right_record(case: Case) -> None:
    """Both of two records may be what was changed where they do not follow each other."""
    log = case.path / "__logitstore__/log"
    whole = {number: (log / f"{number}.json").read_bytes() for number in (1, 2, 3)}
    for number, key in ((1, b'"seal":"'), (2, b'"seal":"'), (2, b'"previous":"')):
        place = whole[number].index(key) + len(key)
        digit = b"1" if whole[number][place : place + 1] == b"0" else b"0"
        (log / f"{number}.json").write_bytes(whole[number][:place] + digit + whole[number][place + 1 :])
        assert what(repair(case.path)) == {"rebuilt": [f"__logitstore__/log/{number}.json"]}
        assert stores.tree(case.path) == case.whole
    # Nothing vouches for the last one; the one before it agrees with its part.
    place = whole[3].index(b'"previous":"') + 12
    digit = b"1" if whole[3][place : place + 1] == b"0" else b"0"
    (log / "3.json").write_bytes(whole[3][:place] + digit + whole[3][place + 1 :])
    assert what(repair(case.path)) == {"beyond": [str(log / "3.json")]}
    # Where a record and the seal of its part are gone, a copy of that record alone would do; of which, nothing tells.
    (log / "3.json").write_bytes(whole[3])
    (log / "2.json").unlink()
    (case.path / "teachers/wide/__logitstore__/seal.json").unlink()
    assert what(repair(case.path))["beyond"] == [str(log / "2.json"), str(log / "3.json")]


def test_a_seal_table_is_rebuilt_from_shards_where_a_record_is_lost(case: Case) -> None:
    part = case.path / "teachers/wide/__logitstore__"
    (part / "seal.bin").write_bytes(b"")
    (part / "commits/0-1.json").write_bytes(b"{}")
    assert repair(case.path).exit_code == DONE
    assert stores.tree(case.path) == case.whole
    # Where the shard is lost, too, nothing tells its digest any more.
    (part / "seal.bin").write_bytes(b"")
    (part / "commits/0-1.json").write_bytes(b"{}")
    (case.path / "teachers/wide/peak/c.0.1").write_bytes(b"")
    done = repair(case.path)
    assert what(done) == {"beyond": [str(part / "seal.bin")]}
    assert done.exit_code == BEYOND


def test_a_seal_table_of_an_exchanged_shard_is_not_put(case: Case) -> None:
    """The shard is whole in itself and its record is lost: only the sha256 in the seal tells that it is another's."""
    part = case.path / "teachers/wide/__logitstore__"
    (part / "seal.bin").write_bytes(b"")
    (part / "commits/0-1.json").write_bytes(b"{}")
    (case.path / "teachers/wide/peak/c.0.1").write_bytes(case.whole["teachers/wide/peak/c.0.0"])
    before = stores.tree(case.path)
    assert what(repair(case.path)) == {"beyond": [str(part / "seal.bin")]}
    assert stores.tree(case.path) == before


def test_what_can_be_made_again_is_thrown_away(case: Case) -> None:
    torn = ["teachers/wide/logits/c.1.2.0", "teachers/wide/peak/c.1.2", "teachers/wide/seen/c.0.0"]
    for key in torn:
        (case.path / key).write_bytes(case.whole[key][:-1])
    small = "clusters/wide-2x2/sets/c.0.0"
    stores.flip(case.path / small, 3)
    (case.path / "samples/label/c.1").unlink()
    done = repair(case.path)
    left = {"missing": [small], "blocks": {"samples": 1, "teachers/wide": 2}}
    assert {**what(done), "removed": set(done.removed)} == {**left, "removed": {*torn, small}}
    assert done.exit_code == DONE
    assert what(repair(case.path)) == left  # nothing more to throw away, and still to be made again
    case.write()
    assert stores.tree(case.path) == case.whole


@pytest.mark.parametrize(
    "key",
    [
        "samples/__logitstore__/spec.json",
        "teachers/wide/__logitstore__/seal.json",
        "__logitstore__/log/3.json",
    ],
)
def test_what_nothing_else_tells_is_beyond_repair(case: Case, key: str) -> None:
    stores.flip(case.path / key, 99)
    before = stores.tree(case.path)
    done = repair(case.path)
    assert done.exit_code == BEYOND
    assert str(case.path / key) in [problem.where for problem in done.beyond]
    assert stores.tree(case.path) == before
    (case.path / key).write_bytes(case.whole[key])
    assert repair(case.path).exit_code == DONE


def test_strays_are_named_and_stay(case: Case) -> None:
    (case.path / "notes.txt").write_bytes(b"mine")
    done = repair(case.path)
    assert (what(done), done.exit_code) == ({"strays": ["notes.txt"]}, DONE)
    extra = case.path / "teachers/wide/peak/c.0.9"
    extra.write_bytes(b"?")
    done = repair(case.path)
    assert (what(done), done.exit_code) == ({"strays": ["notes.txt"], "beyond": [str(extra)]}, BEYOND)
    assert extra.is_file()


def test_what_killed_writers_staged_is_swept(case: Case) -> None:
    for folder in (case.path, case.path / "samples"):
        (folder / "__logitstore__/tmp").mkdir()
        (folder / "__logitstore__/tmp/0123456789abcdef").write_bytes(b"half")
    (case.path / "teachers/wide/__logitstore__/lock").write_bytes(b"")
    assert what(repair(case.path)) == {}
    assert stores.tree(case.path) == case.whole


def begin_half(case: Case) -> Any:
    """A writer that has written two blocks of three."""
    writer = open_store(case.path).capture("half", provenance={})
    logits = stores.some_logits(1, 8, 5)[0]
    for rows in (range(4), range(4, 8)):
        writer.write(rows, logits[rows.start : rows.stop])
    return writer


def test_a_part_at_which_a_writer_is_at_work_is_not_touched(case: Case) -> None:
    writer = begin_half(case)
    stores.flip(case.path / "teachers/half/peak/c.0.0", 3)
    before = stores.tree(case.path)
    with pytest.raises(WriterBusy, match="no other writer at work on this part"):
        repair(case.path)
    there = stores.tree(case.path)
    assert {key: data for key, data in before.items() if not key.endswith("/")} == there
    writer.close()
    assert repair(case.path).removed


def test_a_part_that_is_not_sealed_is_mended_by_its_records(case: Case) -> None:
    begin_half(case).close()
    half = case.path / "teachers" / "half"
    whole = stores.tree(half)
    commits = "__logitstore__/commits"
    stores.flip(half / "peak/c.0.1", 3)  # a size that is right: only the digest of the record tells
    stores.flip(half / f"{commits}/0-0.json", 99)  # a record that is lost, of shards that are whole
    (half / "logits/c.0.2.0").write_bytes(b"torn, and without a record")
    done = repair(case.path)
    assert (set(done.removed), done.adopted, done.exit_code) == (
        {
            f"teachers/half/{key}"
            for key in (
                f"{commits}/0-0.json",
                f"{commits}/0-1.json",
                "peak/c.0.1",
                "logits/c.0.1.0",
                "seen/c.0.1",
                "logits/c.0.2.0",
            )
        },
        [f"teachers/half/{commits}/0-0.json"],
        DONE,
    )
    there = stores.tree(half)
    assert set(whole) - set(there) == {"logits/c.0.1.0", "peak/c.0.1", "seen/c.0.1", f"{commits}/0-1.json"}
    assert there == {key: whole[key] for key in there}
    assert verify(case.path, deep=True).exit_code == INCOMPLETE
    begin_half(case).close()
    assert stores.tree(half) == whole


def test_a_dry_run_changes_no_file_of_an_unfinished_part(case: Case) -> None:
    begin_half(case).close()
    half = case.path / "teachers" / "half"
    (half / "__logitstore__/commits/0-0.json").unlink()  # of whole shards, to be adopted
    (half / "logits/c.0.2.0").write_bytes(b"torn, and without a record")
    stores.flip(half / "peak/c.0.1", 3)
    before = stores.tree(case.path)
    assert repair(case.path, dry_run=True).removed == [
        "teachers/half/peak/c.0.1",
        "teachers/half/__logitstore__/commits/0-1.json",
    ]
    assert stores.tree(case.path) == before
    done = repair(case.path)
    assert done.adopted == ["teachers/half/__logitstore__/commits/0-0.json"]
    assert "teachers/half/logits/c.0.2.0" in done.removed


def test_records_that_agree_are_believed_rather_than_a_spec_or_metadata_that_have_changed(case: Case) -> None:
    """Otherwise one flipped bit would have every block thrown away."""
    begin_half(case).close()
    half = case.path / "teachers" / "half"
    before = stores.tree(half)
    spec = half / "__logitstore__/spec.json"
    spec.write_bytes(before["__logitstore__/spec.json"].replace(b'"notes":{}', b'"nodes":{}'))
    done = repair(case.path)
    assert what(done) == {"unsealed": ["teachers/half"], "beyond": [str(spec)]}
    spec.write_bytes(before["__logitstore__/spec.json"])
    key = "logits/zarr.json"
    (half / key).write_bytes(before[key].replace(b"5]", b"7]").replace(b",5,", b",7,"))
    done = repair(case.path)
    assert what(done) == {"unsealed": ["teachers/half"], "removed": [f"teachers/half/{key}"]}
    assert stores.tree(half) == {other: data for other, data in before.items() if other != key}


def test_metadata_of_an_unsealed_part_that_no_reader_follows_are_removed(case: Case) -> None:
    """One flipped bit makes metadata ask for a dtype that is in no list of allowed ones."""
    begin_half(case).close()
    half = case.path / "teachers" / "half"
    whole = stores.tree(half)
    metadata = half / "logits/zarr.json"
    metadata.write_bytes(metadata.read_bytes().replace(b'"data_type":"float16"', b'"data_type":"float17"'))
    (problem,) = verify(case.path).problems
    assert (type(problem), problem.where) == (UntrustedStoreError, str(metadata))
    done = repair(case.path)
    assert what(done) == {"removed": ["teachers/half/logits/zarr.json"], "unsealed": ["teachers/half"]}
    with begin_half(case) as writer:
        writer.write(range(8, 11), stores.some_logits(1, 3, 5)[0])
    assert metadata.read_bytes() == whole["logits/zarr.json"]
    assert verify(case.path, deep=True).exit_code == CLEAN


def test_a_file_that_another_writer_makes_again_meanwhile_is_not_removed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is held alone only once its fault was found."""
    shard, table = "teachers/wide/peak/c.1.2", "samples/__logitstore__/seal.bin"
    genuine = Lease.take_alone

    def take_alone(self: Lease) -> None:
        for key in (shard, table):
            (case.path / key).write_bytes(case.whole[key])
        genuine(self)

    for key in (shard, table):
        (case.path / key).write_bytes(b"torn")
    monkeypatch.setattr(Lease, "take_alone", take_alone)
    done = repair(case.path)
    assert (done.removed, done.rebuilt, done.beyond) == ([], [], [])
    assert stores.tree(case.path) == case.whole


@pytest.mark.parametrize("removals", [0, 1, 2, 3, 4])
def test_a_repair_that_is_killed_in_between_adopts_no_exchanged_shard(case: Case, removals: int) -> None:
    """Shards of the other block are whole in themselves: the record alone tells that they are none of its own."""
    begin_half(case).close()
    half = case.path / "teachers" / "half"
    whole = stores.tree(half)
    exchanged = [("logits/c.0.0.0", "logits/c.0.1.0"), ("peak/c.0.0", "peak/c.0.1")]
    for other, mine in exchanged:
        assert whole[other] != whole[mine]
        (half / mine).write_bytes(whole[other])
    genuine, left = Folder.remove, [removals]

    def remove(self: Folder, key: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        genuine(self, key)

    killed = pytest.raises(KeyboardInterrupt) if removals < 4 else contextlib.nullcontext()
    with mock.patch.object(Folder, "remove", remove), killed:
        repair(case.path)
    if removals:  # a writer looks at sizes alone: with none removed, `verify` finds the block
        begin_half(case).close()
        assert stores.tree(half) == whole


@pytest.mark.parametrize("change", ["cut", "longer", "flipped"])
def test_a_damaged_small_array_of_an_unfinished_part_is_removed(case: Case, change: str) -> None:
    """Its crc32c may be right as far as it is read."""
    begin_half(case).close()
    key = "teachers/half/classes/c.0"
    data = (case.path / key).read_bytes()
    changed = {"cut": data[:-1], "longer": data + b"\0", "flipped": bytes([data[0] ^ 1]) + data[1:]}
    (case.path / key).write_bytes(changed[change])
    assert [problem.where for problem in verify(case.path).problems] == [str(case.path / key)]
    assert repair(case.path).removed == [key]
    with begin_half(case) as writer:
        writer.write(range(8, 11), stores.some_logits(1, 3, 5)[0])
    assert (case.path / key).read_bytes() == data


def test_a_link_is_not_removed(case: Case) -> None:
    """It may lead to the intact file."""
    key = "teachers/wide/peak/c.1.2"
    (case.path / key).rename(case.path.parent / "moved")
    (case.path / key).symlink_to(case.path.parent / "moved")
    assert what(repair(case.path)) == {"beyond": [str(case.path / key)]}
    assert (case.path / key).is_symlink()


def test_a_record_that_cannot_be_read_is_not_removed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails for a moment must not cost a block."""
    begin_half(case).close()
    before = stores.tree(case.path / "teachers/half")
    read = Folder.read

    def failing(self: Folder, key: str, *most: int) -> bytes:
        if key.endswith("commits/0-1.json") and "half" in str(self.path):
            raise TransientIOError(key, expected="a working disk", found="EIO", remedy="run it again")
        return read(self, key, *most)

    monkeypatch.setattr(Folder, "read", failing)
    done = repair(case.path)
    assert ([type(error) for error in done.beyond], done.removed) == ([TransientIOError], [])
    assert stores.tree(case.path / "teachers/half") == before


def test_a_folder_without_a_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match="expected a store, found nothing"):
        repair(tmp_path / "nowhere")


# The command


def call(*arguments: object) -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli, ["-q", "repair", *map(str, arguments)])
    assert result.stderr == ""
    return result.exit_code, result.stdout.splitlines()


def test_the_command_says_what_it_did_and_what_is_left_to_do(case: Case) -> None:
    path, shard = case.path, "teachers/wide/peak/c.1.2"
    assert call(path) == (0, [f"{path}: nothing to repair"])
    (path / shard).write_bytes(b"")
    (path / "samples/zarr.json").unlink()
    left = f"{path}: teachers/wide: 1 block missing; run `logitstore cache` (or `run`) again"
    verdict = f"{path}: mended, but for missing files"
    assert call(path, "--dry-run") == (
        0,
        [
            f"{path}/samples/zarr.json: would be rebuilt",
            f"{path}/{shard}: would be removed",
            left,
            verdict,
        ],
    )
    assert (path / shard).is_file()
    assert call(path) == (
        0,
        [f"{path}/samples/zarr.json: rebuilt", f"{path}/{shard}: removed", left, verdict],
    )
    assert call(path) == (0, [left, verdict])
    case.write()
    assert call(path) == (0, [f"{path}: nothing to repair"])
    assert verify(path, deep=True).exit_code == CLEAN


def test_the_command_leaves_with_1_where_something_is_beyond_repair(case: Case) -> None:
    spec = case.path / "samples/__logitstore__/spec.json"
    spec.write_bytes(b"{}")
    sealed = json.loads((spec.parent / "seal.json").read_bytes())["files"]["__logitstore__/spec.json"]
    code, lines = call(case.path)
    assert code == 1
    assert lines == [
        f"{spec}: expected sha256 {sealed[:12]}…, found 44136fa355b3… (2 bytes); restore the file from a copy",
        f"{case.path}: in part beyond repair; restore the files named above from a copy",
    ]
    code, lines = call(case.path, "--json")
    (problem,) = json.loads("\n".join(lines))["beyond"]
    assert (code, problem["code"], problem["where"]) == (1, "manifest-invalid", str(spec))
