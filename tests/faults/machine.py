"""A state machine: a store under any order of events, compared with a dictionary.

Hypothesis draws the order: blocks are written, the writer is killed with things half done, others resume and seal,
bits flip, files are cut and vanish, others read, verify and repair. The model is a dictionary: every file that a store
of these logits has, with its bytes. A file is right, or it is damage; there is nothing in between.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import stores
from support.stores import Teacher

from faults.damage import Case, unchecked_chunks, unguarded
from logitstore.storage.api import Store, open_store
from logitstore.storage.errors import LogitStoreError, NotAStoreError, PartNotFound, StoreIncomplete
from logitstore.storage.format.constants import PRIVATE
from logitstore.storage.integrity.repair import repair
from logitstore.storage.integrity.verify import verify
from logitstore.storage.parts.recovery import Recovery
from logitstore.storage.parts.writer import CaptureWriter

TEACHER = Teacher(views=2)
PART = "teachers/wide"
SPEC = f"{PART}/{PRIVATE}/spec.json"
ARRAYS = ("logits", "peak", "seen")
BLOCKS = [(view, block) for view in (0, 1) for block in (0, 1)]


def case_at(path: Path) -> Case:
    """A store of two views of two blocks."""
    return Case(
        path,
        rows=3,
        block_rows=2,
        classes=2,
        names=False,
        store_inputs=False,
        clustering=False,
        teachers={"wide": TEACHER},
    )


def keys_of(view: int, block: int) -> list[str]:
    """What a committed block is made of: its shards, then its record."""
    shards = [f"{PART}/{name}/c.{view}.{block}{'.0' if name == 'logits' else ''}" for name in ARRAYS]
    return [*shards, f"{PART}/{PRIVATE}/commits/{view}-{block}.json"]


class Templates:
    """Stores that every trial starts from and ends with; made once."""

    def __init__(self, folder: Path) -> None:
        begun, ended = case_at(folder / "begun.zarr"), case_at(folder / "ended.zarr")
        Case(**{**vars(begun), "teachers": {}}).write()
        ended.write()
        self.folder = folder
        self.start = begun.path
        self.whole = ended.whole
        """Every file of the finished store."""
        self.inputs = stores.some_inputs(3)
        self.logits = stores.some_logits(2, 3, 2, seed=0)
        top = self.logits.max(axis=2, keepdims=True)
        self.numbers = (self.logits - top).astype(np.float16).astype(np.float32)
        """What is read back."""


def kill(writer: CaptureWriter) -> None:
    """End a writer as SIGKILL ends a process: its locks are gone, and nothing is tidied."""
    lease = writer._binding.lease
    handle, lease._handle = lease._handle, -1
    if handle >= 0:
        os.close(handle)


def machine(templates: Templates) -> type[RuleBasedStateMachine]:
    """The state machine on these templates."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.path = Path(tempfile.mkdtemp(dir=templates.folder)) / "store.zarr"
            shutil.copytree(templates.start, self.path)
            self.writer: CaptureWriter | None = None
            self.sealed = False
            self.acknowledged: set[tuple[int, int]] = set()
            self.touched: set[str] = set()

        @initialize(finished=st.booleans())
        def begin(self, finished: bool) -> None:
            """Half of the trials begin with a store that is sealed."""
            if finished:
                case_at(self.path).write()
                self.sealed, self.acknowledged = True, set(BLOCKS)

        # The model

        def wrong(self, key: str) -> bool:
            """Whether a file is there and is not what it must be."""
            file = self.path / key
            return file.is_file() and file.read_bytes() != templates.whole[key]

        def damage(self) -> set[str]:
            """Files that are not as they must be: other bytes, or gone."""
            self.touched = {key for key in self.touched if self.wrong(key) or not (self.path / key).is_file()}
            return self.touched

        def spec_would_be_lost(self, key: str) -> bool:
            """Whether damage to this file, too, would leave nothing that vouches for the spec of an unsealed part."""
            if self.sealed:
                return False
            records = {keys_of(*place)[-1] for place in BLOCKS}
            if key == SPEC:
                return not any(
                    (self.path / record).is_file() and not self.wrong(record) for record in records
                )
            return key in records and SPEC in self.damage()

        def must_be_reported(self) -> set[str]:
            """Damage that `verify` has to know of: in a part that is not sealed, what a record vouches for."""
            damage = self.damage()
            if self.sealed:
                return damage
            found = {key for key in damage if not key.startswith(f"{PART}/")}
            for view, block in BLOCKS:
                *shards, record = keys_of(view, block)
                if (self.path / record).is_file():
                    found |= {key for key in (*shards, record) if key in damage}
            if any((self.path / keys_of(*place)[-1]).is_file() for place in BLOCKS):
                found |= {key for key in damage if key.endswith(("zarr.json", "spec.json", "classes/c.0"))}
            return found

        def is_whole(self, what: str) -> None:
            """Every byte is as it must be, and nothing is there beside; what killed writers staged may be."""
            there = {
                key: data for key, data in stores.tree(self.path).items() if f"{PRIVATE}/tmp/" not in key
            }
            there = {key: data for key, data in there.items() if not key.endswith(f"{PRIVATE}/lock")}
            other = {k for k in {*there, *templates.whole} if there.get(k) != templates.whole.get(k)}
            assert not other, f"{what} is not the same bytes: {sorted(other)}"

        @contextlib.contextmanager
        def reported(self, what: str) -> Any:
            """An error is in order where something is damaged, and only there."""
            try:
                yield
            except LogitStoreError as error:
                assert self.damage(), f"{what} fails on a store without damage: {error}"

        @invariant()
        def acknowledged_blocks_are_there(self) -> None:
            for view, block in self.acknowledged:
                for key in keys_of(view, block):
                    assert (self.path / key).is_file(), f"{key} was acknowledged and is gone"
                    assert not self.wrong(key), f"{key} was acknowledged and has changed"

        # What writers do

        def store(self) -> Store:
            return open_store(self.path)

        def resume(self) -> None:
            with self.reported("resuming"):
                self.writer = self.store().capture(
                    "wide", provenance=stores.provenance("wide", TEACHER), views=2
                )

        @rule(place=st.sampled_from(BLOCKS))
        def write(self, place: tuple[int, int]) -> None:
            if self.writer is None:
                self.resume()
            if self.writer is None:
                return
            view, block = place
            rows = range(2 * block, min(2 * block + 2, 3))
            if self.writer.has_block(view, block):
                return
            with self.reported("writing"):
                self.writer.write(rows, templates.logits[view, rows.start : rows.stop], view)
                if not self.damage():
                    self.acknowledged.add(place)

        @precondition(lambda self: self.writer is not None)
        @rule()
        def seal(self) -> None:
            assert self.writer is not None
            with self.reported("sealing"):
                if self.writer.seal():
                    self.sealed = True
                    self.writer = None
                    if not self.damage():
                        self.is_whole("the sealed store")

        @precondition(lambda self: self.writer is not None)
        @rule(
            place=st.sampled_from(BLOCKS),
            whole=st.integers(0, len(ARRAYS)),
            torn=st.integers(0, 60),
            staged=st.booleans(),
        )
        def kill_in_the_middle_of_a_block(
            self, place: tuple[int, int], whole: int, torn: int, staged: bool
        ) -> None:
            """Some shards have their names; what was staged stays. `torn`: what a lost power supply leaves of the next."""
            assert self.writer is not None
            begun = (self.path / SPEC).is_file() and not self.sealed
            kill(self.writer)
            self.writer = None
            if staged:
                folder = self.path / PART / PRIVATE / "tmp"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "0123456789abcdef").write_bytes(b"half")
            *shards, record = keys_of(*place)
            if not begun or (self.path / record).is_file():
                return
            for number, key in enumerate(shards):
                if (self.path / key).is_file() or number > whole:
                    continue
                data = templates.whole[key] if number < whole else templates.whole[key][:torn]
                (self.path / key).parent.mkdir(exist_ok=True)
                (self.path / key).write_bytes(data)
                if data != templates.whole[key]:
                    self.touched.add(key)

        @precondition(lambda self: self.writer is not None)
        @rule()
        def close(self) -> None:
            assert self.writer is not None
            self.writer.close()
            self.writer = None

        # What disks do

        @precondition(lambda self: len(self.damage()) < 4)
        @rule(
            number=st.integers(0, 10_000),
            how=st.sampled_from(["flip", "flip", "cut", "append", "delete"]),
            place=st.integers(0, 1 << 16),
        )
        def corrupt(self, number: int, how: str, place: int) -> None:
            keys = sorted(key for key in templates.whole if (self.path / key).is_file())
            if number % 2:  # most bytes of a store are in its shards
                keys = [key for key in keys if "/c." in key] or keys
            key = keys[number // 2 % len(keys)]
            last = f"{PRIVATE}/log/{2 if self.sealed else 1}.json"
            # The log without its last record is the log of the day before: only an expected digest refuses it.
            if self.spec_would_be_lost(key) or (key == last and how == "delete"):
                return
            self.change(key, how, place)

        def change(self, key: str, how: str, place: int) -> None:
            """Damage one file."""
            file = self.path / key
            data = file.read_bytes()
            if how == "delete":
                file.unlink()
            elif how == "flip" and data:
                # Every other time in the first bytes, which are numbers in a shard.
                stores.flip(file, place // 2 % (8 * min(len(data), 8 if place % 2 else len(data))))
            elif how == "cut" and data:
                file.write_bytes(data[: place % len(data)])
            else:
                file.write_bytes(data + b"\0")
            self.touched.add(key)
            for view, block in BLOCKS:
                if key in keys_of(view, block):
                    self.acknowledged.discard((view, block))

        # What users do

        @rule(rows=st.sampled_from([slice(0, 2), slice(2, 3), slice(0, 3)]))
        def read(self, rows: slice) -> None:
            """Each array on its own, so that what is damaged does not hide what is wrong."""
            with self.reported("opening"):
                store = self.store()
                with self.reported("reading samples"):
                    assert store.samples.source.tolist() == [0, 1, 2]
                try:
                    capture = store.teachers["wide"]
                except (StoreIncomplete, PartNotFound):
                    # One bit of the last record of the log makes it speak of another part.
                    assert not self.sealed or any(f"{PRIVATE}/log/" in key for key in self.damage())
                    return
                assert self.sealed, "a part is shown that was not sealed"
                for view in (0, 1):
                    raw = templates.logits[view, rows]
                    with self.reported("reading logits"):
                        found = capture.read(rows, view)
                        assert found.tobytes() == templates.numbers[view, rows].tobytes(), (
                            "other logits are read"
                        )
                    with self.reported("reading peaks"):
                        found = capture.peak(rows, view)
                        assert found.tobytes() == raw.max(axis=1).tobytes(), "other peaks are read"

        @rule()
        def look(self) -> None:
            must = self.must_be_reported()
            try:
                problems: list[Any] = verify(self.path, deep=True).problems
            except NotAStoreError as error:
                problems = [error]
            assert problems or not must, f"verify says nothing of {sorted(must)}"
            assert not problems or self.damage(), f"a false alarm: {[*map(str, problems)]}"

        @rule()
        def mend(self) -> None:
            """Repair, with the help of a copy for what it calls beyond repair."""
            if self.writer is not None:
                kill(self.writer)
                self.writer = None
            good = {key for key in templates.whole if (self.path / key).is_file() and not self.wrong(key)}
            # A block that lacks a shard goes whole: beside its rest, another writer's shards would decode to wrong rows.
            lost = {
                key
                for place in BLOCKS
                if any(key not in good for key in keys_of(*place)[:-1])
                for key in keys_of(*place)
            }
            for _ in range(4):
                try:
                    beyond = repair(self.path).beyond
                except NotAStoreError as error:
                    beyond = [error]
                if not beyond:
                    break
                for error in beyond:
                    self.restore(error)
            assert not beyond, f"repair does not come to an end: {[*map(str, beyond)]}"
            self.touched |= {key for key in good if not (self.path / key).is_file()}
            # Where metadata were taken away, shards without a record wait for their writer, who knows their form.
            waiting = {
                key
                for place in BLOCKS
                for key in keys_of(*place)
                if not self.sealed and not (self.path / keys_of(*place)[-1]).is_file()
            }
            bad = sorted(key for key in templates.whole if key not in waiting and self.wrong(key))
            assert not bad, f"after repair {bad} are wrong"
            gone = {key for key in good if not (self.path / key).is_file()} - (set() if self.sealed else lost)
            assert not gone, f"repair took away {sorted(gone)}, which were intact"

        def restore(self, error: LogitStoreError) -> None:
            """Put a file back from a copy, where the error names one."""
            for key, data in templates.whole.items():
                named = error.where.startswith(str(self.path / key))
                if named or (isinstance(error, NotAStoreError) and "/log/0" in key):
                    (self.path / key).write_bytes(data)

        @precondition(lambda self: self.sealed or len(self.acknowledged) > 2)
        @rule()
        def write_everything_again(self) -> None:
            """Run what wrote the store again."""
            if self.writer is not None:
                kill(self.writer)
                self.writer = None
            with self.reported("writing everything"):
                case_at(self.path).write()
                self.sealed = True
                if not self.damage():
                    self.acknowledged = set(BLOCKS)
                    self.is_whole("the store")

        def teardown(self) -> None:
            try:
                self.mend()
                case_at(self.path).write()
                there = stores.tree(self.path)
                other = {k for k in {*there, *templates.whole} if there.get(k) != templates.whole.get(k)}
                assert not other, (
                    f"after repair and another run these are not the same bytes: {sorted(other)}"
                )
            finally:
                shutil.rmtree(self.path.parent)

    return Machine


def examples(folder: str, number: int, count: int, steps: int, shrink: bool = True) -> int:
    """Run the machine `count` times, with another seed each number. Raises what a counter-example raises."""
    tested = seed(number)(machine(Templates(Path(folder))))
    options = settings(
        max_examples=count,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        report_multiple_bugs=False,
    )
    with mock.patch("os.fsync"):
        run_state_machine_as_test(tested, settings=options)
    return count


def _read_a_damaged_row(trial: Any) -> None:
    trial.begin(finished=True)
    trial.change(f"{PART}/peak/c.1.0", "flip", 1)
    trial.read(rows=slice(0, 2))


def _look_at_a_torn_shard(trial: Any) -> None:
    trial.begin(finished=True)
    trial.change(f"{PART}/logits/c.0.1.0", "cut", 9)
    trial.look()


def _resume_after_a_kill(trial: Any) -> None:
    trial.begin(finished=False)
    trial.write(place=(0, 0))
    trial.kill_in_the_middle_of_a_block(place=(0, 1), whole=1, torn=3, staged=True)


def _resume_with_another_spec(trial: Any) -> None:
    """The spec is JSON of the same meaning, so that only the records tell that it has changed."""
    trial.begin(finished=False)
    trial.write(place=(0, 0))
    trial.write(place=(1, 0))
    trial.close()
    note = _place_of_note(trial.path / SPEC)
    trial.change(SPEC, "flip", 16 * note)
    trial.write(place=(0, 1))


def _place_of_note(spec: Path) -> int:
    """Where a letter of the key `notes` stands in a spec."""
    return spec.read_bytes().index(b"notes") + 2


def _mend_a_digit_of_the_log(trial: Any) -> None:
    """The record still is one, so that the next one is found not to follow it."""
    trial.begin(finished=True)
    record = trial.path / PRIVATE / "log" / "1.json"
    place = record.read_bytes().index(b'"seal":"') + 8
    while record.read_bytes()[place : place + 1] not in b"02468":
        place += 1
    trial.change(f"{PRIVATE}/log/1.json", "flip", 16 * place)
    trial.mend()


def _look_at_a_part_without_its_columns(trial: Any) -> None:
    """Of an array that is gone nothing is left to look at; the others' records say that it must be there."""
    trial.begin(finished=False)
    trial.write(place=(0, 0))
    trial.change(f"{PART}/classes/zarr.json", "delete", 0)
    trial.look()


SCRIPTS: dict[str, tuple[Callable[[Any], None], tuple[tuple[str, Any], ...]]] = {
    "checksums of a read": (_read_a_damaged_row, (("parts.part_reader.check_crc32c", unchecked_chunks),)),
    "shards in verify": (_look_at_a_torn_shard, (("integrity.checks.check_shard", lambda *_, **__: None),)),
    "recovery": (
        _resume_after_a_kill,
        (
            ("parts.part_writer.recover", lambda *_, **__: Recovery()),
            ("integrity.repair.recover", lambda *_, **__: Recovery()),
        ),
    ),
    "arrays of a part that was begun": (
        _look_at_a_part_without_its_columns,
        (("integrity.unsealed_faults.REQUIRED", {"capture": frozenset(), "samples": frozenset()}),),
    ),
    "records of the log": (_mend_a_digit_of_the_log, (("integrity.root_faults._log_faults", lambda _: ()),)),
    "spec of an unsealed part": (_resume_with_another_spec, ()),
}
"""Orders of events that everybody wants to see tried, and the guard that is taken out for a negative control."""


def harm_of_script(folder: Path, name: str, *, guarded: bool = True) -> str:
    """What goes wrong in an order of events, with its guard or without; empty where nothing does."""
    script, guards = SCRIPTS[name]
    folder.mkdir()
    templates = Templates(folder)
    with mock.patch("os.fsync"), unguarded(*(() if guarded else guards)):
        trial = machine(templates)()
        try:
            try:
                script(trial)
                trial.acknowledged_blocks_are_there()
            finally:
                trial.teardown()
        except (AssertionError, LogitStoreError) as error:
            return f"{name}: {type(error).__name__}: {error}"
    return ""
