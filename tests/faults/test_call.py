"""The N-th call to the disk fails, for every N.

SQLite's method, on the modelled disk: the making of a store and a capture from its first block to its seal are run once
for each call that they make, and that call (or it and all after it) raises. The error must be typed and allow
another try, or tell of a place that refuses; nothing that was acknowledged is gone; and the same work, run again, ends in
the same bytes.
"""

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest

from faults import traces
from faults.baton import bare
from faults.crash import Judge
from faults.disk import STORE, Disk, Node, Said
from faults.tally import Tally, scale
from faults.traces import begin, capture, everything, record, unchecked, watched
from logitstore.storage.api import open_store
from logitstore.storage.backends import lease
from logitstore.storage.backends import local as files
from logitstore.storage.backends import posix as system
from logitstore.storage.backends.local import Folder
from logitstore.storage.errors import EX_TEMPFAIL, REFUSED, StorageError, StorageFull, StorageRefused
from logitstore.storage.format.constants import STAGING

pytestmark = pytest.mark.timeout(3600)

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.EINTR)


@dataclass(frozen=True)
class Fault:
    """A call that fails, and its error."""

    number: int
    """Number of the call, from 0."""
    error: int
    """The errno."""
    for_good: bool
    """Whether every later call fails too."""


class Phase:
    """A piece of work that can be begun anew, on a disk that is the same each time."""

    def __init__(self, name: str) -> None:
        """name: "store" (its making, to the seal of its samples) or "capture" (from its first block to its seal)."""
        self.name = name
        self.disk = Disk()
        self.sealed = "samples" if name == "store" else f"teachers/{traces.TEACHER}"
        """The part that is there when the work is done."""
        if name != "store":
            record(begin, self.disk)
        self._saved = self.disk.save()
        self.num_calls = 0
        """Calls that the work makes where none of them fails."""
        assert self.run(self._count) is None
        assert self.disk.num_open == 0

    def _work(self) -> None:
        if self.name == "store":
            begin()
        else:
            capture(open_store(STORE))

    def _count(self, call: str, node: Node | None) -> None:
        self.num_calls += 1

    def run(self, before: Callable[[str, Node | None], None]) -> BaseException | None:
        """Do the work from its beginning; what it raised."""
        self.disk.restore(self._saved)
        with self.disk.mounted(), watched(self.disk.say):
            self.disk.before = before
            try:
                self._work()
            except Exception as error:  # noqa: BLE001
                return bare(error)
            finally:
                self.disk.before = None
        return None

    def said(self) -> frozenset[tuple[object, ...]]:
        """What the work promised before it failed, and what had been promised."""
        return frozenset(step.what for step in self.disk.trace if isinstance(step, Said))


def harm_of(phase: Phase, fault: Fault, judge: Judge) -> Iterator[str]:
    """What is wrong after a fault; nothing, where all is well."""
    calls, failed = [0], list[str]()

    def strike(call: str, node: Node | None) -> None:
        number, calls[0] = calls[0], calls[0] + 1
        if call != "sleep" and (number == fault.number or (fault.for_good and number > fault.number)):
            failed.append(call)
            raise OSError(fault.error, errno.errorcode[fault.error])

    error = phase.run(strike)
    tree = phase.disk.files()
    verdict = judge(tree)
    where = f"{phase.name}, {fault}, {failed[0] if failed else 'no call'}"
    if error is None and phase.sealed not in verdict.sealed:
        yield f"{where}: silent, and the part is not there"
    if error is not None and not is_fit(error, fault):
        yield f"{where}: {type(error).__name__}: {error}"
    if not fault.for_good and failed != ["unlink"]:
        left = [path for path in tree if f"{STAGING}/" in path and not path.endswith("/")]
        yield from (f"{where}: {path} is left" for path in left)
    if phase.disk.num_open:
        yield f"{where}: {phase.disk.num_open} descriptors are left open"
    yield from (f"{where}: {what}" for what in verdict.after(phase.said()))


def is_fit(error: BaseException, fault: Fault) -> bool:
    """Whether an error tells of its fault: the same work may be tried again, or the place refuses it at each try."""
    if isinstance(error, StorageRefused):
        return fault.error in REFUSED
    return isinstance(error, StorageError) and error.exit_code == EX_TEMPFAIL


def faults_of(phase: Phase, every: bool) -> Iterator[Fault]:
    """Every call; each error of each call once and for good, or (small count) one of them, in turn."""
    for number in range(phase.num_calls):
        if every:
            yield from (Fault(number, error, for_good) for error in ERRORS for for_good in (False, True))
        else:
            yield Fault(number, ERRORS[number % len(ERRORS)], False)
            if number % 3 == 0:
                yield Fault(number, ERRORS[number // 3 % len(ERRORS)], True)


@pytest.fixture(autouse=True)
def one_view() -> Iterator[None]:
    """The least work that has every kind of call."""
    with unchecked(), mock.patch.object(traces, "VIEWS", 1):
        yield


def try_all(phase: Phase, faults: Iterable[Fault], enough: int = 10**9) -> tuple[int, list[str]]:
    """(faults that were tried, what is wrong); stops when that is `enough`."""
    judge, tried, harm = Judge(), 0, list[str]()
    for fault in faults:
        tried += 1
        harm += harm_of(phase, fault, judge)
        if len(harm) >= enough:
            break
    return tried, harm


@pytest.mark.parametrize("share", range(2), ids="part {}".format)
@pytest.mark.parametrize("name", ["store", "capture"])
def test_a_call_that_fails_does_no_harm(name: str, share: int, tally: Tally) -> None:
    phase = Phase(name)
    faults = [fault for fault in faults_of(phase, bool(scale(0, 1))) if fault.number % 2 == share]
    tried, harm = try_all(phase, faults)
    tally.reached("call", tried, "faults", harm, calls=len({fault.number for fault in faults}))


def test_a_call_that_fails_while_a_basis_is_put_does_no_harm(tally: Tally) -> None:
    """Let every eleventh call fail, which meets all errors, once or for good; every call in `make test-deep`."""
    with mock.patch.object(traces, "ENCODING", traces.TRANSFORM):
        phase = Phase("capture with a basis")
        every = bool(scale(0, 1))
        faults = [fault for fault in faults_of(phase, every) if every or fault.number % 11 == 0]
        tried, harm = try_all(phase, faults)
    tally.reached("call", tried, "faults", harm, calls=len({fault.number for fault in faults}))


def test_an_error_that_is_not_typed_is_seen(tally: Tally) -> None:
    def untyped(folder: Any, key: str = "") -> Any:
        return contextlib.nullcontext()

    with contextlib.ExitStack() as stack:
        for module in (files, lease, system):
            for name in ("typed_errors", "expecting_folders"):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, untyped))
        phase = Phase("capture")
        _, harm = try_all(phase, faults_of(phase, False), enough=1)
    tally.control("call", "typed errors", any("OSError" in what for what in harm))


def test_a_fault_that_passes_but_is_told_as_a_refusal_is_seen(tally: Tally) -> None:
    with (
        mock.patch.object(system, "TRANSIENT", frozenset()),
        mock.patch.object(system, "REFUSED", REFUSED | {errno.EIO}),
    ):
        phase = Phase("capture")
        only = (Fault(number, errno.EIO, False) for number in range(phase.num_calls))
        _, harm = try_all(phase, only, enough=1)
    tally.control("call", "refusals told apart", any("StorageRefused" in what for what in harm))


def test_a_full_disk_that_is_passed_over_is_seen(tally: Tally) -> None:
    real = Folder.put_new

    def put_new(self: Folder, key: str, data: bytes) -> bool:
        try:
            return real(self, key, data)
        except StorageFull:
            return True

    with mock.patch.object(Folder, "put_new", put_new):
        phase = Phase("capture")
        only = (Fault(number, errno.ENOSPC, False) for number in range(phase.num_calls))
        _, harm = try_all(phase, only, enough=1)
    tally.control("call", "put_new that passes over ENOSPC", bool(harm))


class Clumsy(Disk):
    """A disk that writes less than it is asked to, and may fail in the middle of a write."""

    most = 7
    """Bytes of one write, at most."""
    fails_at = -1
    """The write that fails when half of it is done."""
    num_writes = 0
    """Writes that were asked for."""

    def write(self, handle: int, data: Any) -> int:
        """write(2), the clumsy way."""
        self.num_writes += 1
        if self.num_writes - 1 == self.fails_at:
            super().write(handle, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(handle, bytes(data)[: self.most])


def test_short_writes_are_continued(tally: Tally) -> None:
    disk = Clumsy()
    record(everything, disk)
    judge = Judge()
    harm = [] if disk.files() == judge.golden else ["short writes: the tree differs"]
    tally.reached("call", disk.num_writes, "faults", harm)


def test_a_write_that_fails_half_done_does_no_harm(tally: Tally) -> None:
    judge, harm, tried = Judge(), list[str](), 0
    while True:
        disk = Clumsy()
        disk.most, disk.fails_at = 1 << 30, tried
        with disk.mounted(), watched(disk.say):
            try:
                everything()
                break
            except StorageFull as error:
                bare(error)
        tried += 1
        tree = disk.files()
        said = frozenset(step.what for step in disk.trace if isinstance(step, Said))
        harm += [f"write {tried}: {what}" for what in judge(tree).after(said)]
        harm += [f"write {tried}: {path} is left" for path in tree if f"{STAGING}/" in path]
    tally.reached("call", tried, "faults", harm)
