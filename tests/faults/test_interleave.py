"""Two writers make the same block with different bytes, in every order of their steps.

A GPU is not deterministic: both are right, and one must win. The real `PartWriter.commit` runs in two threads on the
modelled disk; each stops before each of eight steps (stage and write, fsync, link, fsync of the directory; for the shard
and for the record), and all C(16, 8) = 12,870 orders of these are run. The part has one array, so that these are all steps.
"""

import errno
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from math import comb
from typing import Any, Final
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

from faults.baton import Crew, crew
from faults.disk import STORE, Disk, Named, Node, Said, Synced, Written
from faults.tally import Tally, scale
from faults.traces import begin, everything, record, unchecked
from logitstore.storage.api import create_store, open_store
from logitstore.storage.backends import local as files
from logitstore.storage.backends.local import Folder, NewObject
from logitstore.storage.errors import LogitStoreError, TransientIOError, UnsafeFileSystem
from logitstore.storage.format.constants import SEAL
from logitstore.storage.format.layouts import block_array
from logitstore.storage.format.shard import decode_shard
from logitstore.storage.parts.journal import Commit, Seal, read_table
from logitstore.storage.parts.part_writer import PartWriter
from logitstore.storage.parts.recovery import stored_shard

pytestmark = pytest.mark.timeout(3600)

STEPS: Final = 8
CLASSES: Final = 2
PART: Final = "teachers/wide"
SHARD: Final = f"{STORE.name}/{PART}/logits/c.0"
RECORD: Final = f"{STORE.name}/{PART}/__logitstore__/commits/0-"
CALLS: Final = ("create", "fsync", "link")
"""The calls before which a writer waits for its turn; a fsync is that of a file, and later that of a directory."""


class Arena:
    """Writers that are about to commit the same block, and a disk to go back to."""

    def __init__(self, world: int) -> None:
        self.disk = Disk()
        self.world = world
        self.block = world
        # Each writer has committed a block of its own, so that every directory is there and durable for it.
        with self.disk.mounted():
            create_store(
                STORE,
                num_classes=CLASSES,
                num_rows=world + 1,
                digests=np.arange(world + 1, dtype=np.uint64),
                block_rows=1,
            )
            self.writers = [self.writer() for _ in range(world)]
            for rank, writer in enumerate(self.writers):
                writer.commit(0, rank, self.arrays(rank))
        self.saved = self.disk.save()
        self.shard, self.record = f"{SHARD}.{self.block}.0", f"{RECORD}{self.block}.json"
        self._judged: dict[tuple[bytes, bytes], list[str]] = {}

    @staticmethod
    def writer() -> PartWriter:
        """A writer of a part with one array."""
        root = open_store(STORE).root
        layout = block_array(
            "capture", "logits", "float16", root.grid, views=1, row_shape=(CLASSES,), where=PART
        )
        return PartWriter(root, PART, views=1, identity={}, notes={}, layouts=[layout], small={})

    @staticmethod
    def arrays(rank: int) -> Callable[[slice], dict[str, NDArray[Any]]]:
        """The block arrays of a writer: no two alike."""
        return lambda rows: {"logits": np.array([[0, -rank - 1]], dtype=np.float16)[rows]}

    def run(self, team: Crew, order: Sequence[int]) -> Iterator[str]:
        """Commit the block by all writers, their steps in this order; what is wrong."""
        self.disk.restore(self.saved)
        taken, calls = [0], [0] * self.world

        def choose(me: int | None, working: Sequence[int]) -> int:
            wanted = order[taken[0]] if taken[0] < len(order) else working[0]
            return wanted if wanted in working else working[0]

        def gate(call: str, node: Node | None) -> None:
            if call in CALLS:
                me = team.running
                team.turn()
                taken[0] += 1
                calls[me] += 1

        def job(rank: int) -> Callable[[], None]:
            def commit() -> None:
                self.writers[rank]._committed.discard((0, self.block))
                self.writers[rank].commit(0, self.block, self.arrays(rank))
                self.disk.say("acknowledged", rank)

            return commit

        self.disk.before = gate
        results = team.run([job(rank) for rank in range(self.world)], choose)
        self.disk.before = None
        yield from (f"{order}: writer {n}: {error!r}" for n, error in enumerate(results) if error)
        if taken[0] != len(order) or calls != [STEPS] * self.world:
            yield f"{order}: {taken[0]} steps were taken, of {calls} calls"
        yield from (f"{order}: {what}" for what in [*self._durability(), *self._content()])

    def _durability(self) -> Iterator[str]:
        """Did a writer acknowledge what a power loss could take back?"""
        unsynced, pending, durable = set[int](), set[tuple[int, str]](), set[str]()
        for step in self.disk.trace[self.saved.steps :]:
            match step:
                case Written(node):
                    unsynced.add(node)
                case Synced(node):
                    unsynced.discard(node)
                    durable |= {name for directory, name in pending if directory == node}
                case Named(directory, name, node) if node is not None:
                    pending.add((directory, name))
                    durable.discard(name)
                    if node in unsynced and "." in name:
                        yield f"{name} was named before it was synced"
                case Said(what):
                    missing = {f"c.0.{self.block}.0", f"0-{self.block}.json"} - durable
                    if missing:
                        yield f"{what} before {sorted(missing)} were durable"

    def _content(self) -> list[str]:
        """Does the record describe the shard that is there; does the part seal and read?"""
        tree = self.disk.files()
        found = tree.get(self.shard, b""), tree.get(self.record, b"")
        if found not in self._judged:
            self._judged[found] = list(self._judge(tree, *found))
        return self._judged[found]

    def _judge(self, tree: dict[str, bytes], shard: bytes, commit: bytes) -> Iterator[str]:
        try:
            described = Commit.from_bytes(commit, self.record).objects["logits"]
        except LogitStoreError as error:
            yield str(error)
            return
        if (described.size, described.sha256) != (len(shard), sha256(shard).hexdigest()):
            yield "the record describes another shard than the one that is there"
        copy = Disk()
        for path, data in tree.items():
            copy.put(path, None if path.endswith("/") else data)
        try:
            with copy.mounted():
                writer = self.writer()
                writer.seal()
                yield from self._read(writer)
        except LogitStoreError as error:
            yield f"seal: {error}"

    def _read(self, writer: PartWriter) -> Iterator[str]:
        """Does each shard agree with the seal, and is it one that a writer made?"""
        layout, folder = writer.layouts["logits"], writer.folder
        table = read_table(folder, Seal.from_bytes(folder.read(SEAL), SEAL))
        for block in range(self.world + 1):
            if stored_shard(folder, layout, 0, block, 1) != table.shard("logits", 0, block):
                yield f"block {block} is not what was sealed"
            read = decode_shard(layout, folder.read(layout.shard_key(0, block)), 1, PART).tobytes()
            made = [self.arrays(rank)(slice(None))["logits"].tobytes() for rank in range(self.world)]
            if read not in (made[block : block + 1] or made):
                yield f"block {block} reads as {read!r}"


@contextmanager
def arena(world: int) -> Iterator[tuple[Arena, Crew]]:
    """Writers and their threads; the writers let go at the end."""
    with unchecked():
        made = Arena(world)
        with made.disk.mounted(), crew(world) as team:
            yield made, team
            made.disk.restore(made.saved)
            for writer in made.writers:
                writer.close()
        assert made.disk.num_open == 0


def orders(share: int, shares: int) -> Iterator[tuple[int, ...]]:
    """Every order of the steps of two writers, or a share of them."""
    for first in itertools.islice(itertools.combinations(range(2 * STEPS), STEPS), share, None, shares):
        yield tuple(0 if step in first else 1 for step in range(2 * STEPS))


def drawn(count: int, world: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Orders of the steps of several writers, drawn."""
    rng, steps = random.Random(seed), [rank for rank in range(world) for _ in range(STEPS)]
    for _ in range(count):
        rng.shuffle(steps)
        yield tuple(steps)


def run_all(world: int, chosen: Iterable[tuple[int, ...]], enough: int = 10**9) -> tuple[int, list[str]]:
    """(orders that were run, what is wrong); stops when that is `enough`."""
    tried, harm = 0, list[str]()
    with arena(world) as (made, team):
        for order in chosen:
            tried += 1
            harm += made.run(team, order)
            if len(harm) >= enough:
                break
    return tried, harm


SHARES: Final = 6


@pytest.mark.parametrize("share", range(SHARES), ids="part {}".format)
def test_one_of_two_writers_wins_in_every_order(share: int, tally: Tally) -> None:
    tried, harm = run_all(2, orders(share, SHARES))
    tally.reached("interleave", tried, "orders", harm)


def test_the_shares_are_all_orders() -> None:
    found = {order for share in range(SHARES) for order in orders(share, SHARES)}
    assert len(found) == comb(2 * STEPS, STEPS) == 12_870


def test_one_of_three_writers_wins_in_orders_that_are_drawn(tally: Tally) -> None:
    tried, harm = run_all(3, drawn(scale(100, 20_000), 3, seed=1))
    tally.reached("interleave", 0, "orders", harm, orders_of_three_writers=tried)


@pytest.mark.parametrize("checks_first", [False, True], ids=["rename", "exists, then rename"])
def test_names_that_can_be_taken_twice_are_seen(checks_first: bool, tally: Tally) -> None:
    def link(self: Any, final: int) -> bool:
        disk: Any = files.os
        taken = checks_first and self._folder.exists("/".join([*self._within, self._name]))
        disk.wait("link")
        if taken:
            self._unlink()
            return False
        disk.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=final)
        self._is_staged = False
        return True

    with (
        mock.patch.object(NewObject, "_link", link),
        mock.patch.object(Folder, "prove_exclusive", lambda self: None),
    ):
        _, harm = run_all(2, drawn(300, 2, seed=2), enough=1)
    name = "exists, then rename" if checks_first else "a rename that replaces"
    tally.control("interleave", name, any("another shard" in what or "sealed" in what for what in harm))


def test_an_acknowledgement_before_the_names_are_durable_is_seen(tally: Tally) -> None:
    with arena(2) as (made, team):
        made.disk.deaf = lambda node: node.parts is not None
        harm = [what for order in drawn(20, 2, seed=4) for what in made.run(team, order)]
    tally.control("interleave", "fsync of the directory", any("were durable" in what for what in harm))


# Answers that are lost, and file systems without hard links.


class Deaf(Disk):
    """A network file system that makes a link and then says that it did not."""

    error = 0
    """What it says."""
    really = True
    """Whether the link was made."""

    def link(self, source: str, target: str, **where: Any) -> None:
        """linkat(2), and its answer lost."""
        if self.really:
            super().link(source, target, **where)
        raise OSError(self.error, "the answer is lost")


@pytest.mark.parametrize("error", [errno.EEXIST, errno.EIO, errno.ETIMEDOUT], ids=errno.errorcode.get)
def test_a_link_whose_answer_is_lost_is_known_by_its_number_of_names(error: int) -> None:
    disk = Deaf()
    disk.error = error
    assert record(everything, disk).files() == record().files()
    # And who comes second is told so, by the name that is taken.
    with disk.mounted():
        folder = Folder(STORE)
        assert folder.put_new("first", b"1") is True
        disk.really = False
        if error == errno.EEXIST:
            assert folder.put_new("first", b"2") is False
        else:
            with pytest.raises(TransientIOError):
                folder.put_new("first", b"2")
        assert folder.read("first") == b"1"
    assert not [path for path in disk.files() if "/tmp/" in path and not path.endswith("/")]


def test_without_hard_links_a_rename_that_replaces_nothing_stands_in(tally: Tally) -> None:
    disk = Disk()
    disk.links = False
    assert record(everything, disk).files() == record().files()

    def rename_for_link(self: Arena, team: Crew, order: Sequence[int]) -> Iterator[str]:
        self.disk.links = False
        return real(self, team, order)

    real = Arena.run
    with mock.patch.object(Arena, "run", rename_for_link):
        tried, harm = run_all(2, drawn(scale(100, 12_870), 2, seed=3))
    tally.reached("interleave", 0, "orders", harm, orders_without_hard_links=tried)


def test_a_disk_with_neither_is_refused() -> None:
    disk = Disk()
    disk.links = disk.renames = False
    with disk.mounted(), pytest.raises(UnsafeFileSystem):
        begin()
    assert not [path for path in disk.files() if not path.endswith("/")]


def test_a_disk_that_gives_a_name_twice_is_refused() -> None:
    class Careless(Disk):
        def link(self, source: str, target: str, **where: Any) -> None:
            node, name = self._place(target, where["dst_dir_fd"])
            if node.parts is not None and name in node.parts:
                del node.parts[name]
            super().link(source, target, **where)

    with Careless().mounted(), pytest.raises(UnsafeFileSystem, match="a second file replaced the first"):
        begin()
