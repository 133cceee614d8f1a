"""Records, seals and the log: they read back, and one changed bit shows."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.storage.backends.local import Folder
from logitstore.storage.errors import ManifestInvalid, StoreCorrupt
from logitstore.storage.format.documents import canonical_json, sha256_hex
from logitstore.storage.format.metadata import RootAttributes
from logitstore.storage.parts.journal import (
    Commit,
    Seal,
    SealTable,
    StoredShard,
    committed_blocks,
    put_same,
    read_checked,
)
from logitstore.storage.parts.log import append_log, is_part, read_log
from logitstore.storage.parts.root import create_root

HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)


def stored(size: int, digest: str, sums: tuple[int, ...]) -> StoredShard:
    return StoredShard(size, digest, sums)


SHARDS = st.tuples(
    st.integers(0, 2**40), HASHES, st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2).map(tuple)
)


@st.composite
def commits(draw: st.DrawFn) -> dict[str, Any]:
    """What a `Commit` is made from."""
    block = draw(st.integers(0, 9))
    return {
        "view": draw(st.integers(0, 3)),
        "block": block,
        "rows": range(8 * block, 8 * block + draw(st.integers(1, 8))),
        "spec": draw(HASHES),
        "objects": {name: draw(SHARDS) for name in ("logits", "peak")},
    }


def commit_of(arguments: dict[str, Any]) -> Commit:
    objects = {name: stored(*shard) for name, shard in arguments["objects"].items()}
    return Commit(**arguments | {"objects": objects})


@given(commits())
def test_a_record_reads_back(arguments: dict[str, Any]) -> None:
    commit = commit_of(arguments)
    assert Commit.from_bytes(commit.to_bytes(), "x") == commit
    assert commit.key == f"__logitstore__/commits/{commit.view}-{commit.block}.json"


def test_every_byte_of_a_record_counts() -> None:
    shard = StoredShard(1234, sha256_hex(b"x"), (1, 2))
    data = Commit(1, 2, range(16, 20), sha256_hex(b"spec"), {"logits": shard}).to_bytes()
    for bit in range(0, 8 * len(data), 5):  # every byte, and every place in a byte
        torn = bytearray(data)
        torn[bit // 8] ^= 1 << bit % 8
        try:
            read = Commit.from_bytes(bytes(torn), "1-2.json")
        except ManifestInvalid:
            continue
        assert read.to_bytes() == data  # white space at its end, or a digit spelt in another way
    with pytest.raises(ManifestInvalid) as caught:
        Commit.from_bytes(data.replace(b"1234", b"1235"), "1-2.json")
    error = caught.value
    assert (error.where, error.found) == ("1-2.json", "a record that was changed")
    assert "logitstore verify" in error.remedy


@given(st.lists(commits(), min_size=1, max_size=6))
def test_the_table_holds_every_commit(many: list[dict[str, Any]]) -> None:
    table = SealTable((("logits", 2), ("peak", 2)), 4, 10)
    unique = {(c.view, c.block): c for c in map(commit_of, many)}
    for commit in unique.values():
        table.record(commit)
    again = SealTable(table.arrays, 4, 10, table.to_bytes())
    assert len(table.to_bytes()) == 40 * again.record_bytes == 40 * 2 * (8 + 32 + 8)
    for (view, block), commit in unique.items():
        for name, shard in commit.objects.items():
            assert again.shard(name, view, block) == shard
            assert again.size(name, view, block) == shard.size
            assert again.checksums(name, view, block).tolist() == list(shard.crc32c)
    total = sum(shard.size for commit in unique.values() for shard in commit.objects.values())
    assert again.total_bytes() == total


@given(HASHES, HASHES, st.booleans())
def test_a_seal_reads_back(one: str, other: str, clustering: bool) -> None:
    arrays = () if clustering else (("logits", 2), ("peak", 1))
    views, table, size = (0, None, 0) if clustering else (2, one, 99)
    seal = Seal(arrays, views, views, table, size, {"zarr.json": other}, other)
    assert Seal.from_bytes(seal.to_bytes(), "x") == seal


@pytest.mark.parametrize(
    "change",
    [
        {"views": -1},
        {"seal_bin": 5},
        {"files": {"a": "short"}},
        {"arrays": [["logits", 0]]},
        {"samples": "x"},
    ],
    ids=["views", "table", "digest", "chunks", "samples"],
)
def test_a_seal_that_is_none_is_refused(change: dict[str, Any]) -> None:
    good = json.loads(Seal((("logits", 2),), 1, 1, sha256_hex(b""), 9, {}, None).to_bytes())
    with pytest.raises(ManifestInvalid):
        Seal.from_bytes(canonical_json(good | change), "seal.json")
    with pytest.raises(ManifestInvalid, match="expected a seal, found other JSON"):
        Seal.from_bytes(b"{}\n", "seal.json")


def test_commits_by_name(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for key in ("0-0.json", "1-12.json", "x.json", "1-2.json.tmp"):
        folder.put_new(f"__logitstore__/commits/{key}", b"")
    assert committed_blocks(folder) == {(0, 0), (1, 12)}


def test_put_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    put_same(folder, "x", b"settled")
    put_same(folder, "x", b"settled")
    with pytest.raises(StoreCorrupt) as caught:
        put_same(folder, "x", b"others")
    assert caught.value.expected == f"the bytes of these settings, sha256 {sha256_hex(b'others')[:12]}…"
    assert caught.value.found == "other bytes"


def test_read_checked(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    digest = sha256_hex(b"data")
    with pytest.raises(ManifestInvalid, match=f"expected a file of sha256 {digest[:12]}…, found no file"):
        read_checked(folder, "x", digest)
    folder.put_new("x", b"data")
    assert read_checked(folder, "x", digest) == b"data"
    with pytest.raises(ManifestInvalid, match=rf"found {digest[:12]}… \(4 bytes\)"):
        read_checked(folder, "x", sha256_hex(b"other"))


# The log


def test_the_log_is_a_chain(tmp_path: Path) -> None:
    folder = create_root(tmp_path / "store", RootAttributes(9, 2, 4)).folder
    empty, records = read_log(folder)
    assert records == []
    digests = [empty]
    for number, part in enumerate(("samples", "teachers/wide", "clusters/wide")):
        append_log(folder, part, sha256_hex(bytes([number])))
        append_log(folder, part, sha256_hex(bytes([number])))  # again, which changes nothing
        digests.append(read_log(folder)[1][-1].digest)
    assert len(set(digests)) == 4
    assert [record.part for record in read_log(folder)[1]] == ["samples", "teachers/wide", "clusters/wide"]
    with pytest.raises(StoreCorrupt, match="teachers/wide: expected the seal of the log"):
        append_log(folder, "teachers/wide", sha256_hex(b"another"))


def test_parts_sealed_at_once_are_all_in_the_log(tmp_path: Path) -> None:
    folder = create_root(tmp_path / "store", RootAttributes(9, 2, 4)).folder
    names = [f"teachers/t{number}" for number in range(8)]
    barrier = threading.Barrier(len(names))

    def append(name: str) -> None:
        barrier.wait()
        append_log(folder, name, sha256_hex(name.encode()))  # an error in a thread fails the test

    threads = [threading.Thread(target=append, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.part for record in read_log(folder)[1]) == names


def test_a_part_twice_is_refused(tmp_path: Path) -> None:
    folder = create_root(tmp_path / "store", RootAttributes(9, 2, 4)).folder
    append_log(folder, "samples", sha256_hex(b"1"))
    last = read_log(folder)[1][-1].digest.removeprefix("sha256:")
    record = canonical_json({"part": "samples", "previous": last, "seal": sha256_hex(b"2")})
    folder.put_new("__logitstore__/log/2.json", record)
    with pytest.raises(ManifestInvalid, match="expected each part once, found samples twice"):
        read_log(folder)


@pytest.mark.parametrize(
    "name",
    ["", "teachers", "teachers/", "teachers/../x", "samples/x", "other/x", "teachers/W"],
    ids=["empty", "group", "slash", "dots", "samples", "other group", "upper case"],
)
def test_other_names_are_no_parts(name: str) -> None:
    assert not is_part(name)
    assert np.all([is_part(good) for good in ("samples", "teachers/w-1.2_3", "clusters/0")])
