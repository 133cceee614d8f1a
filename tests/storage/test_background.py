"""Threads that write and check a block: kept for the next one, and idle before its files are closed."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import logitstore
from logitstore.storage.backends.background import Background, Crew, Crews
from logitstore.storage.backends.local import Folder
from logitstore.storage.errors import ShardCorrupt
from logitstore.storage.format.shard import ShardEncoder

PIECE = memoryview(bytes(256 << 10))


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("logitstore")}


def test_the_threads_of_a_block_write_the_next_and_end_with_the_writer(tmp_path: Path) -> None:
    rows, classes = 4096, 512
    store = logitstore.create_store(
        tmp_path / "store", num_classes=classes, digests=np.zeros(rows, np.uint64), block_rows=1024
    )
    writers: list[int] = []
    genuine = ShardEncoder.check

    def check(encoder: ShardEncoder) -> None:
        writers.append(threading.get_ident())
        genuine(encoder)

    with pytest.MonkeyPatch.context() as patch, store.capture("t", provenance={}) as capture:
        patch.setattr(ShardEncoder, "check", check)
        for block in capture.missing_blocks():
            capture.write(block, np.zeros((len(block), classes), np.float32))
        assert names_of_threads()
    assert len(set(writers)) == 1
    assert writers[0] != threading.get_ident()
    assert not names_of_threads()


def test_a_block_that_fails_writes_nothing_more_once_it_is_left(tmp_path: Path) -> None:
    folder, crews, called = Folder(tmp_path), Crews(), []

    def slow() -> None:
        time.sleep(0.2)
        called.append("first")

    with folder.stage("a") as (new,):
        with pytest.raises(KeyError), Background(crews) as background:
            background.write(new, [PIECE], slow)
            background.write(new, [PIECE], lambda: called.append("second"))
            raise KeyError
        assert "second" not in called  # neither now nor later: the only thread has no work left
        assert crews.take().writing.submit(lambda: list(called)).result() == ["first"]
    assert folder.names() == ["__logitstore__"]


def test_a_check_that_fails_in_a_thread_stops_the_block(tmp_path: Path) -> None:
    folder, crews = Folder(tmp_path), Crews()

    def failing() -> None:
        raise ShardCorrupt("a shard", expected="one checksum", found="another", remedy="test the memory")

    with folder.stage("a") as (new,), pytest.raises(ShardCorrupt), Background(crews) as background:
        background.write(new, [PIECE], failing)
        background.wait()
        background.publish({"a": new})
    assert not folder.exists("a")
    crews.end()


def test_two_blocks_at_once_have_threads_of_their_own() -> None:
    crews = Crews()
    first, second = crews.take(), crews.take()
    assert first is not second
    crews.give_back(first)
    assert crews.take() is first


def test_a_forked_child_takes_no_threads_of_its_parent() -> None:
    crews, parents = Crews(), Crew()
    parents.process -= 1
    crews.give_back(parents)
    assert crews.take() is not parents


def test_a_crew_that_another_thread_takes_first_is_not_missed() -> None:
    """The list is full when it is looked at, and empty when a crew is taken."""

    class Emptied(list[Crew]):
        def __bool__(self) -> bool:
            return True

        def __len__(self) -> int:
            return 1

    crews = Crews()
    crews._idle = Emptied()
    assert isinstance(crews.take(), Crew)
    crews.end()
