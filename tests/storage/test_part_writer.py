"""Guards of a writer that meets the work of another one, or damage, while it commits, recovers or seals.

Each holds where every other check has passed: the names are there, the sizes are right, the rows are the same.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from faults.disk import STORE, Disk, Named, Synced
from faults.traces import begin as begin_on_disk
from numpy.typing import NDArray
from support import stores

from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.backends.staged import NewObject
from logitstore.storage.errors import ManifestInvalid, ShardCorrupt, SpecMismatch
from logitstore.storage.format.shard import CRC_BYTES, crc32c, decode_shard, index_bytes
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.journal import Commit, commit_key
from logitstore.storage.parts.writer import CaptureWriter

ROWS, CLASSES, BLOCK_ROWS = 20, 3, 8
LOGITS = stores.some_logits(1, ROWS, CLASSES)[0]


def begin(path: Path) -> Store:
    digests = np.arange(ROWS, dtype=np.uint64)
    return create_store(path, num_classes=CLASSES, digests=digests, block_rows=BLOCK_ROWS, exist_ok=True)


def capture(path: Path) -> CaptureWriter:
    return begin(path).capture("t", provenance={})


def write(writer: CaptureWriter, *blocks: int, logits: NDArray[np.float32] = LOGITS) -> None:
    for block in blocks:
        rows = writer.root.grid.rows(block)
        writer.write(rows, logits[rows.start : rows.stop])


def whole(path: Path) -> Path:
    with capture(path) as writer:
        write(writer, 0, 1, 2)
    return path


@pytest.mark.parametrize("array", ["logits", "peak", "seen"])
@pytest.mark.parametrize("change", ["lost", "cut", "longer"])
def test_a_part_is_not_sealed_without_its_shards(tmp_path: Path, array: str, change: str) -> None:
    """A record vouches for shards that a disk, or somebody, has taken away since."""
    writer = capture(tmp_path / "store")
    write(writer, 0, 1, 2)
    (shard,) = (tmp_path / "store/teachers/t" / array).glob("c.0.1*")
    data = shard.read_bytes()
    shard.unlink()
    if change != "lost":
        shard.write_bytes(data[:-1] if change == "cut" else data + b"\0")
    with pytest.raises(
        ShardCorrupt, match="expected the shards that were committed, found other files, or none"
    ):
        writer.seal()
    assert list(open_store(tmp_path / "store").teachers) == []
    writer.close()
    # The next writer that is alone makes the block again.
    with capture(tmp_path / "store") as again:
        assert list(again.missing_blocks()) == [range(8, 16)]
        write(again, 1)
    assert stores.tree(tmp_path / "store") == stores.tree(whole(tmp_path / "whole"))


def test_a_sealed_part_never_gets_other_bytes_not_even_under_a_free_name(tmp_path: Path) -> None:
    """The bytes are compared before they are published: nobody could tell afterwards whose they are."""
    path = whole(tmp_path / "store")
    (path / "teachers/t/logits/c.0.1.0").unlink()
    before = stores.tree(path)
    writer = capture(path)
    with pytest.raises(SpecMismatch, match="expected the sealed bytes, found other bytes"):
        write(writer, 1, logits=LOGITS + np.float32(0.5) * np.arange(CLASSES, dtype=np.float32))
    writer.close()
    assert stores.tree(path) == before
    with capture(path) as again:
        write(again, 1)
    assert verify(path, deep=True).exit_code == 0


@pytest.mark.parametrize("wrong", ["of another spec", "damaged"])
def test_a_block_whose_record_is_another_is_not_acknowledged(tmp_path: Path, wrong: str) -> None:
    """Another writer's record came first: it must be one of this part, or the block counts for nobody."""
    path = tmp_path / "store"
    writer = capture(path)
    write(writer, 0)
    genuine = NewObject.publish

    def publish(self: NewObject) -> bool:
        if self._name == "0-1.json":
            mine = Commit.from_bytes((path / "teachers/t" / commit_key(0, 0)).read_bytes(), "")
            other = Commit(0, 1, range(8, 16), "a" * 64, mine.objects).to_bytes()
            (path / "teachers/t" / commit_key(0, 1)).write_bytes(
                other if wrong == "of another spec" else b"{}"
            )
        return genuine(self)

    with mock.patch.object(NewObject, "publish", publish), pytest.raises(ManifestInvalid):
        write(writer, 1)
    assert not writer.has_block(0, 1)
    writer.close()
    with capture(path) as again:
        write(again, *(rows.start // BLOCK_ROWS for rows in again.missing_blocks()))
    assert stores.tree(path) == stores.tree(whole(tmp_path / "whole"))


def test_a_shard_of_the_same_rows_with_other_bytes_is_not_adopted(tmp_path: Path) -> None:
    """Rows beyond the last fill its chunk. A shard that has anything there decodes to the same rows all the same."""
    path = tmp_path / "store"
    with capture(path) as writer:
        write(writer, 0, 2)
        layout = writer.layouts["logits"]
    (path / "teachers/t" / commit_key(0, 2)).unlink()
    shard = path / "teachers/t/logits/c.0.2.0"
    data = bytearray(shard.read_bytes())
    payload = len(data) - index_bytes(layout) - CRC_BYTES
    data[payload - 1] ^= 1
    data[payload : payload + CRC_BYTES] = crc32c(bytes(data[:payload])).to_bytes(CRC_BYTES, "little")
    assert np.array_equal(
        decode_shard(layout, bytes(data), 4, "x"), decode_shard(layout, shard.read_bytes(), 4, "x")
    )
    shard.write_bytes(bytes(data))
    with capture(path) as again:
        assert [rows.start for rows in again.missing_blocks()] == [8, 16]
        write(again, 1, 2)
    assert stores.tree(path) == stores.tree(whole(tmp_path / "whole"))


def test_a_removal_is_durable_before_the_next_one() -> None:
    """Recovery removes the shards of a block of another part, then the record that tells whose they are.

    If a power loss took the removal of a shard back, and not that of the record, the shard would be adopted.
    """
    disk = Disk()
    with disk.mounted():
        folder = begin_on_disk().root.folder
        for key in ("x/shard", "y/record"):
            folder.put_new(key, b"1")  # type: ignore[attr-defined]
        first = len(disk.trace)
        for key in ("x/shard", "y/record"):
            folder.remove(key)  # type: ignore[attr-defined]
    steps: list[Any] = [step for step in disk.trace[first:] if isinstance(step, Named | Synced)]
    assert [type(step) for step in steps] == [Named, Synced, Named, Synced]
    assert [step.directory for step in steps[::2]] == [step.node for step in steps[1::2]]
    assert str(STORE) == str(folder.path)
