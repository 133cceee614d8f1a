"""Writers whose teachers differ in the last bit: a block is of one of them, with all its arrays, or is not there."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from numpy.typing import NDArray
from obstore.store import MemoryStore
from support import stores
from support.encoded import ENCODINGS
from zarr.storage import ObjectStore

from logitstore.storage.api import create_store, open_store
from logitstore.storage.backends import object_folder
from logitstore.storage.errors import StoreCorrupt
from logitstore.storage.parts import recovery

pytestmark = pytest.mark.usefixtures("without_fsync")

ROWS, CLASSES = 16, 40
LOGITS = stores.some_logits(1, ROWS, CLASSES)[0]
OTHER = LOGITS * np.float32(1.01)
"""The logits of another writer, in whose bytes all arrays but `seen` differ."""
NAME = "codes"


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a moment alone for a record."""
    monkeypatch.setattr(recovery, "RECORD_S", 0.2)
    monkeypatch.setattr(recovery, "_POLL_S", 0.01)


def write(location: Any, logits: NDArray[np.float32]) -> None:
    store = create_store(
        location, num_classes=CLASSES, digests=np.arange(ROWS, dtype=np.uint64), exist_ok=True
    )
    with store.capture("t", provenance={}, encoding=ENCODINGS[NAME]) as capture:
        for rows in capture.missing_blocks():
            capture.write(rows, logits[rows.start : rows.stop])


def in_memory() -> "ObjectStore[MemoryStore]":
    return ObjectStore(MemoryStore())


def keys(memory: "ObjectStore[MemoryStore]") -> list[str]:
    return [one["path"] for page in obstore.list(memory.store) for one in page]


def unrecorded(arrays: "set[str] | None") -> "ObjectStore[MemoryStore]":
    """Return a store in which a killed writer of OTHER left these arrays of a block (None for all), and no record."""
    memory = in_memory()
    write(memory, OTHER)
    for key in keys(memory):
        name = key.removeprefix("teachers/t/").partition("/")[0]
        is_record = key.startswith("teachers/t/") and key.endswith(("/0-0.json", "/seal.json", "/seal.bin"))
        is_other = key.startswith("teachers/t/") and key.endswith(("/c.0.0.0", "/c.0.0"))
        if (
            is_record
            or key.endswith("/log/2.json")
            or (is_other and arrays is not None and name not in arrays)
        ):
            obstore.delete(memory.store, key)
    return memory


@pytest.mark.parametrize("left", ["logits", "peak", None])
def test_shards_of_a_killed_writer_are_never_recorded_beside_others(left: str | None) -> None:
    memory = unrecorded(None if left is None else {left})
    with pytest.raises(StoreCorrupt, match=r"no record within.*end all writers, delete .*c\.0\.0") as caught:
        write(memory, LOGITS)
    assert "\n" not in str(caught.value)
    assert not [key for key in keys(memory) if "teachers/t" in key and key.endswith("0-0.json")]
    for key in str(caught.value).partition("delete ")[2].partition(" there")[0].split(", "):
        obstore.delete(memory.store, f"teachers/t/{key}")
    write(memory, LOGITS)
    alone = in_memory()
    write(alone, LOGITS)
    assert open_store(memory).digest == open_store(alone).digest


def test_of_two_writers_at_once_one_writes_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "RECORD_S", 20.0)
    wanted = set()
    for logits in (LOGITS, OTHER):
        alone = in_memory()
        write(alone, logits)
        wanted.add(open_store(alone).digest)
    assert len(wanted) == 2
    publish = object_folder.NewRemoteObject.publish
    barrier = threading.Barrier(2)
    turns = threading.local()

    def together(self: Any) -> bool:
        if "teachers/t" in str(self._folder.path) and not hasattr(turns, "done"):
            turns.done = True
            barrier.wait(20)
        return publish(self)

    memory = in_memory()
    write_samples(memory)
    monkeypatch.setattr(object_folder.NewRemoteObject, "publish", together)
    errors: list[Exception] = []

    def run(logits: NDArray[np.float32]) -> None:
        try:
            write(ObjectStore(memory.store), logits)
        except Exception as error:  # noqa: BLE001 - of the thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(logits,)) for logits in (LOGITS, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert open_store(memory).digest in wanted


def write_samples(location: Any) -> None:
    create_store(location, num_classes=CLASSES, digests=np.arange(ROWS, dtype=np.uint64))


@pytest.mark.parametrize("left", ["logits", "peak"])
def test_shards_of_an_incomplete_block_on_a_disk_are_made_again(tmp_path: Path, left: str) -> None:
    write(tmp_path / "s", OTHER)
    part = tmp_path / "s/teachers/t"
    for path in part.glob("*/c.0.0*"):
        if path.parent.name != left:
            path.unlink()
    for name in ("seal.json", "seal.bin", "commits/0-0.json"):
        (part / "__logitstore__" / name).unlink(missing_ok=True)
    (tmp_path / "s/__logitstore__/log/2.json").unlink()
    assert list(part.glob(f"{left}/c.0.0*"))
    write(tmp_path / "s", LOGITS)
    write(tmp_path / "alone", LOGITS)
    assert stores.tree(tmp_path / "s") == stores.tree(tmp_path / "alone")
