"""A power loss at any moment of the real writer's work loses nothing that was acknowledged.

The writer runs on the modelled disk; its trace is cut off anywhere, unsynced bytes and names are there or not (`crash`),
and the state is judged: the numbers of a reader, the result of a later run of the same command, and the presence of
all acknowledged blocks.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import stores

from faults import traces
from faults.crash import Judge, Windows
from faults.disk import STORE, Disk, Named, Node
from faults.tally import Tally, scale
from faults.traces import FAMILIES, Run, everything, record, unchecked
from logitstore.storage.backends.local import Folder, NewObject
from logitstore.storage.format.constants import COMMITS, SEAL
from logitstore.storage.format.documents import sha256_hex
from logitstore.storage.format.metadata import ArrayLayout
from logitstore.storage.format.shard import ShardEncoder
from logitstore.storage.parts import journal, part_writer, recovery
from logitstore.storage.parts import root as store
from logitstore.storage.parts.journal import Commit, StoredShard
from logitstore.storage.parts.part_writer import PartWriter
from logitstore.storage.parts.writer import SamplesWriter

pytestmark = pytest.mark.timeout(3600)


def search(
    runs: Iterator[Run],
    states: int,
    seed: int,
    judge: Judge | None = None,
    until: str | tuple[str, ...] | None = None,
) -> tuple[int, int, list[str]]:
    """Judge `states` states of each run: (how many, how many of them were not alike, what is wrong).

    until: stop at the first harm of this kind, or of one of these; no other counts.
    """
    judge, tried, harm = judge or Judge(), 0, list[str]()
    rng = random.Random(seed)
    for number, (disk, first, wrong) in enumerate(runs):
        harm += [f"run {number}: {what}" for what in wrong]
        windows = Windows(disk.trace, disk.mount)
        for _ in range(states):
            prefix = rng.randint(first, len(disk.trace))
            verdict = judge(windows.sample(prefix, rng))
            found = verdict.after(windows.prefixes[prefix].said)
            tried += 1
            harm += [f"seed {seed}, run {number}, prefix {prefix}: {what}" for what in found]
            if until and any(what.startswith(until) for what in found):
                return tried, judge.num_distinct, [what for what in found if what.startswith(until)]
    return tried, judge.num_distinct, [] if until else harm


@contextmanager
def transformed() -> Iterator[None]:
    """Capture in the transform encoding, whose blocks rest on a basis."""
    with (
        mock.patch.object(traces, "ENCODING", traces.TRANSFORM),
        # Writers that take turns make all calls by their own threads, as those of plain blocks of this size do.
        mock.patch.object(part_writer, "_OVERLAP_BYTES", 1 << 30),
    ):
        yield


@pytest.mark.parametrize(
    ("family", "runs", "deep_runs"),
    [("alone", 1, 1), ("killed", 60, 400), ("stopped", 60, 400), ("together", 20, 200)],
    ids=["alone", "killed", "stopped", "together"],
)
def test_what_was_acknowledged_survives_a_power_loss(
    family: str, runs: int, deep_runs: int, tally: Tally
) -> None:
    runs = scale(runs, deep_runs)
    with unchecked():
        made = (FAMILIES[family](number) for number in range(runs))
        tried, distinct, harm = search(made, -(-scale(2_000, 500_000) // runs), seed=1)
    tally.reached("power", tried, "states", harm, states_apart=distinct, runs=runs)


@pytest.mark.parametrize(
    ("family", "runs", "deep_runs"), [("killed", 12, 200), ("together", 6, 100)], ids=["killed", "together"]
)
def test_a_record_is_not_there_without_its_basis_after_a_power_loss(
    family: str, runs: int, deep_runs: int, tally: Tally
) -> None:
    """Cut off writers whose records vouch for a basis: all of it is durable before the first record."""
    runs = scale(runs, deep_runs)
    with unchecked(), transformed():
        made = (FAMILIES[family](37 * number) for number in range(runs))
        tried, distinct, harm = search(made, -(-scale(100, 50_000) // runs), seed=6)
    tally.reached("power", tried, "states", harm, states_apart=distinct, runs=runs)


def test_the_modelled_disk_holds_what_a_real_one_does(tmp_path: Path) -> None:
    disk = record()
    with mock.patch.object(traces, "STORE", tmp_path / STORE.name):
        everything()
    assert disk.files() == stores.tree(tmp_path)


# The protocol with a guard taken out.

Mutant = Callable[[Disk], AbstractContextManager[Any]]


def named(disk: Disk, start: str) -> Callable[[Node], bool]:
    """Whether a node has a name that begins like this."""
    return lambda node: any(
        isinstance(step, Named) and step.node == node.number and step.name.startswith(start)
        for step in disk.trace
    )


def unproven() -> AbstractContextManager[Any]:
    """Without the probe that refuses to begin a store where names are not exclusive."""
    return mock.patch.object(Folder, "prove_exclusive", lambda self: None)


@contextmanager
def no_sync_of_files(disk: Disk) -> Iterator[None]:
    disk.deaf = lambda node: node.parts is None
    yield


@contextmanager
def no_sync_of_directories(disk: Disk) -> Iterator[None]:
    disk.deaf = lambda node: node.parts is not None
    yield


@contextmanager
def record_before_data(disk: Disk) -> Iterator[None]:
    def commit(self: PartWriter, view: int, block: int, arrays_of: Any) -> None:
        rows = self.root.grid.rows(block)
        self._begin()
        arrays, objects = arrays_of(slice(0, len(rows))), {}
        for name, layout in self.layouts.items():
            encoder = ShardEncoder(layout)
            encoder.append(arrays[name])
            encoder.finish()
            encoder.check()
            objects[name] = StoredShard.of(encoder)
        made = Commit(view, block, rows, self._files["__logitstore__/spec.json"], objects)
        self.folder.put_new(made.key, made.to_bytes())
        self._put_shards(view, block, [arrays])
        self._committed.add((view, block))

    with mock.patch.object(PartWriter, "commit", commit):
        yield


@contextmanager
def basis_after_its_record(disk: Disk) -> Iterator[None]:
    begin, commit = PartWriter._begin, PartWriter.commit
    late: dict[str, bytes] = {}

    def begin_without(self: PartWriter) -> None:
        late.update(
            (key, self._metadata.pop(key)) for key in list(self._metadata) if key.startswith("basis/c.")
        )
        begin(self)

    def then_basis(self: PartWriter, view: int, block: int, arrays_of: Any) -> None:
        commit(self, view, block, arrays_of)
        while late:
            key, data = late.popitem()
            journal.put_same(self.folder, key, data)
            self._files[key] = sha256_hex(data)

    with (
        mock.patch.object(PartWriter, "_begin", begin_without),
        mock.patch.object(PartWriter, "commit", then_basis),
    ):
        yield


@contextmanager
def written_in_place(disk: Disk) -> Iterator[None]:
    def begin(self: Any, folder: Folder, key: str, staging: int) -> None:
        *self._within, self._name = key.split("/")
        self._folder, self._key, self._directory, self._is_staged = folder, key, staging, False
        self._process = disk.getpid()
        with folder.directory(self._within, make=True) as final:
            flags = disk.O_CREAT | disk.O_EXCL | disk.O_WRONLY
            self._handle = disk.open(self._name, flags, dir_fd=final)

    def publish(self: Any) -> bool:
        with self._folder.directory(self._within) as final:
            disk.fsync(self._handle)
            self._close()
            disk.fsync(final)
        return True

    with (
        unproven(),
        mock.patch.object(NewObject, "__init__", begin),
        mock.patch.object(NewObject, "publish", publish),
    ):
        yield


@contextmanager
def written_in_place_without_sync(disk: Disk) -> Iterator[None]:
    with written_in_place(disk), no_sync_of_files(disk):
        yield


@contextmanager
def renamed_without_sync(disk: Disk) -> Iterator[None]:
    def link(self: Any, final: int) -> bool:
        disk.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=final)
        self._is_staged = False
        return True

    disk.deaf = lambda node: True
    with unproven(), mock.patch.object(NewObject, "_link", link):
        yield


@contextmanager
def acknowledged_before_its_record_is_durable(disk: Disk) -> Iterator[None]:
    real, is_commits, hears = PartWriter.commit, named(disk, "commits"), disk.deaf

    def commit(self: PartWriter, view: int, block: int, arrays_of: Any) -> None:
        if self.folder.exists(COMMITS):
            self.folder.sync(COMMITS)
        disk.deaf = is_commits
        try:
            real(self, view, block, arrays_of)
        finally:
            disk.deaf = hears

    with mock.patch.object(PartWriter, "commit", commit):
        yield


@contextmanager
def sealed_before_its_records_are_durable(disk: Disk) -> Iterator[None]:
    disk.deaf = named(disk, "commits")
    yield


@contextmanager
def logged_before_the_seal_is_durable(disk: Disk) -> Iterator[None]:
    real, hears = journal.put_same, disk.deaf

    def put_same(folder: Folder, key: str, data: bytes) -> None:
        disk.deaf = (lambda node: True) if key == SEAL else hears
        try:
            real(folder, key, data)
        finally:
            disk.deaf = hears

    with mock.patch.object(journal, "put_same", put_same):
        yield


MUTANTS: list[tuple[Mutant, str]] = [
    (no_sync_of_files, "torn:"),
    (no_sync_of_directories, "lost:"),
    (record_before_data, "torn: the record of"),
    (written_in_place, "torn:"),
    (written_in_place_without_sync, "torn:"),
    (renamed_without_sync, "lost:"),
    (acknowledged_before_its_record_is_durable, "lost:"),
    (sealed_before_its_records_are_durable, "tree:"),
    (logged_before_the_seal_is_durable, "reader:"),
]


def run_of(mutant: Mutant) -> Run:
    """What a writer with a guard taken out does."""
    disk = Disk()
    with mutant(disk):
        return Run(record(disk=disk))


@pytest.mark.parametrize(("mutant", "kind"), MUTANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_protocol_with_a_guard_taken_out_does_harm(mutant: Mutant, kind: str, tally: Tally) -> None:
    with unchecked():
        _, _, harm = search(iter([run_of(mutant)]), 3_000, seed=2, until=kind)
    tally.control("power", f"{mutant.__name__} ({kind})", bool(harm))


def test_a_basis_that_is_put_after_its_record_does_harm(tally: Tally) -> None:
    with unchecked(), transformed():
        judge = Judge()
        run = run_of(basis_after_its_record)
        assert judge(run.disk.files()).harm == ()  # the disk that stays on
        _, _, harm = search(iter([run]), 500, seed=7, judge=judge, until="torn: the record of")
    tally.control("power", "basis_after_its_record (torn: the record of)", bool(harm))


def test_torn_orphans_that_are_adopted_blindly_do_harm(tally: Tally) -> None:
    """Shards that were written in place and not synced are mended by recovery, as long as no record is there.

    Adopted blindly, they stop every later run: it compares the samples that are there with its own. Without this guard
    too, they are sealed.
    """

    def adopt(folder: Folder, layout: ArrayLayout, view: int, block: int, rows: int) -> StoredShard:
        data = folder.read(layout.shard_key(view, block))
        return StoredShard(len(data), sha256_hex(data), (0,) * layout.chunks_per_shard)

    disk, rng = Disk(), random.Random(3)
    disk.deaf = named(disk, "c.")
    with unchecked(), written_in_place(disk):
        record(disk=disk)
    windows = Windows(disk.trace, disk.mount)
    (end, *_) = [
        n for n, step in enumerate(disk.trace) if isinstance(step, Named) and step.name == "0-0.json"
    ]
    states = [windows.sample(rng.randint(end - 12, end), rng) for _ in range(100)]

    def kinds() -> set[str]:
        judge = Judge(
            traces.begin
        )  # samples alone: a capture would compare its rows with their digests once more
        harm = {what.partition(":")[0] for state in states for what in judge(state).harm}
        return harm - {"torn"}  # the states themselves

    with unchecked():
        assert kinds() == set()
        with mock.patch.object(recovery, "stored_shard", adopt):
            compared = kinds()
            with mock.patch.object(SamplesWriter, "_check_same", lambda self, block, arrays: None):
                trusted = kinds()
    tally.control("power", "torn orphans are adopted blindly", compared == {"resume"})
    tally.control("power", "and are not compared with the samples that are written", "tree" in trusted)


def test_names_that_others_gave_are_not_taken_for_durable(tally: Tally) -> None:
    with unchecked(), mock.patch.object(Folder, "sync", lambda self, key: None):
        made = (FAMILIES["killed"](number) for number in range(200))
        _, _, harm = search(made, 40, seed=4, until=("tree:", "lost:", "resume:"))
    tally.control("power", "what a killed writer named is not synced by who goes on", bool(harm))


def test_locks_and_staging_of_dead_writers_are_seen(tally: Tally) -> None:
    with (
        unchecked(),
        mock.patch.object(part_writer, "tidy_up", lambda folder: None),
        mock.patch.object(store, "tidy_up", lambda folder: None),
    ):
        _, _, harm = search(iter([traces.alone(0)]), 500, seed=5, until="tree:")
    tally.control("power", "nobody takes away what dead writers leave", bool(harm))
