"""Traces of the real writer on a modelled disk: alone, killed, stopped, in company, with a guard taken out.

Each function of `FAMILIES` gives a disk on which the storage code has run, from the making of the store to the seal;
its trace is what `crash` cuts off. The store is as small as one can be that has views, blocks and two parts.
"""

import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any, Final, NamedTuple
from unittest import mock

import jaxtyping
import numpy as np
from support import stores

from faults.baton import crew
from faults.disk import STORE, Disk, Node, Synced
from logitstore.storage import api
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.errors import NameTaken, PartSealed, WriterBusy
from logitstore.storage.parts.part_writer import PartWriter

ROWS, CLASSES, BLOCK_ROWS = 3, 2, 2
DIGESTS: Final = np.arange(ROWS, dtype=np.uint64) * 7
VIEWS: Final = 2
TEACHER: Final = "wide"
ENCODING: Any = "float16"
"""Encoding of the capture; a test may exchange it for `TRANSFORM`."""
TRANSFORM: Final = {"transform": {"max_kl": 1e-2, "temperatures": [1.0]}}
"""An encoding whose blocks rest on a basis."""


def begin() -> Store:
    """Make the store, or go on with it: its samples, sealed."""
    return create_store(
        STORE,
        num_classes=CLASSES,
        labels=np.arange(ROWS) % CLASSES,
        digests=DIGESTS,
        block_rows=BLOCK_ROWS,
        exist_ok=True,
    )


def capture(store: Store, rank: int = 0, world: int = 1) -> None:
    """Write what is missing of the capture, a rank's own share first, and seal it."""
    logits = stores.some_logits(VIEWS, ROWS, CLASSES, seed=1)
    rows_of_basis = stores.calibration(ENCODING, logits)
    with store.capture(
        TEACHER, provenance={}, views=VIEWS, encoding=ENCODING, calibration=rows_of_basis
    ) as writer:
        for others in (False, True) if world > 1 else (True,):
            for view in range(VIEWS):
                for rows in writer.missing_blocks(view):
                    if others or (rows.start // BLOCK_ROWS + view) % world == rank:
                        part = slice(rows.start, rows.stop)
                        # With `seen`: to look it up, Python 3.11 would lock a cached property of all writers.
                        writer.write(rows, logits[view, part], view=view, seen=DIGESTS[part])


def everything() -> None:
    """The work that is interrupted, and that a later run of the same command finishes."""
    capture(begin())


@contextmanager
def watched(say: Callable[..., None]) -> Iterator[None]:
    """Note when the real writer computes, acknowledges and seals."""
    commit, seal, create_root = PartWriter.commit, PartWriter.seal, api.create_root

    def watched_commit(self: PartWriter, view: int, block: int, arrays_of: Any) -> None:
        say("computed", self.name, view, block)
        commit(self, view, block, arrays_of)
        say("acknowledged", self.name, view, block)

    def watched_seal(self: PartWriter) -> bool:
        sealed = seal(self)
        if sealed:
            say("sealed", self.name)
        return sealed

    def watched_root(*arguments: Any) -> Any:
        root = create_root(*arguments)
        say("sealed", "root")
        return root

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(PartWriter, "commit", watched_commit))
        stack.enter_context(mock.patch.object(PartWriter, "seal", watched_seal))
        stack.enter_context(mock.patch.object(api, "create_root", watched_root))
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Without the checks of annotations, which take three quarters of the time of a run of the storage code."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def record(job: Callable[[], object] = everything, disk: Disk | None = None) -> Disk:
    """The disk after `job` has run on it; its trace tells how it came to this."""
    disk = disk or Disk()
    with disk.mounted(), watched(disk.say):
        job()
    assert disk.num_open == 0
    return disk


def strikes() -> list[int]:
    """Numbers (from 0) of the calls of a writer that is alone before which it is worth being struck.

    Those that make a disk hold, or not lose, something else; first those that make something durable.
    """
    return _strikes(str(ENCODING))


@functools.cache
def _strikes(encoding: str) -> list[int]:
    disk, steps = Disk(), list[int]()
    disk.before = lambda call, node: steps.append(len(disk.trace))
    with disk.mounted():
        everything()
    steps.append(len(disk.trace))
    changing = [number for number, (before, after) in enumerate(pairwise(steps)) if after > before]
    return sorted(changing, key=lambda number: not isinstance(disk.trace[steps[number]], Synced))


class Killed(BaseException):
    """The writer is no more."""


class Run(NamedTuple):
    """A disk on which writers have worked."""

    disk: Disk
    first: int = 0
    """The step of its trace from which it is worth cutting off: what is before is in other runs."""
    wrong: tuple[str, ...] = ()
    """What went wrong before any power loss."""


def alone(number: int) -> Run:
    """A writer that nothing happens to."""
    return Run(record())


def killed(number: int) -> Run:
    """A writer that is killed at a call (SIGKILL: what it wrote stays in memory), and another that goes on."""
    disk, left, first = Disk(), [strikes()[number % len(strikes())]], [0]

    def strike(call: str, node: Node | None) -> None:
        left[0] -= 1
        # Python still closes what the writer held, in finalizers too, where nothing may be raised; it changes nothing.
        if left[0] < 0 and call != "close":
            raise Killed

    with disk.mounted(), watched(disk.say):
        disk.before = strike
        with suppress(Killed, OSError):  # what its clean-up says of a disk that does not answer is not heard
            everything()
        first[0] = len(disk.trace)
        disk.drop_handles()
        disk.before = None
        everything()
    assert disk.num_open == 0
    return Run(disk, first[0])


def stopped(number: int) -> Run:
    """A writer that is stopped at a call; another comes and does all there is to do; then the first goes on."""
    return _together(2, random.Random(number), strikes()[number % len(strikes())])


def together(number: int) -> Run:
    """Two to four writers that take turns at any call, some faster than others."""
    return _together(2 + number % 3, random.Random(number), None)


FAMILIES: Final[Mapping[str, Callable[[int], Run]]] = {
    "alone": alone,
    "killed": killed,
    "stopped": stopped,
    "together": together,
}


def _together(world: int, rng: random.Random, stop_at: int | None) -> Run:
    disk, calls, first = Disk(), [0] * world, [0]
    patience, paces = rng.choice((0.0, 0.5, 0.9, 0.97)), [rng.choice((1, 1, 8)) for _ in range(world)]

    def choose(me: int | None, working: Sequence[int]) -> int:
        if stop_at is not None:
            if calls[0] <= stop_at and 0 in working:
                return 0
            first[0] = first[0] or len(disk.trace)
            return max(working)
        if me is not None and rng.random() < patience:
            return me
        return rng.choices(working, [paces[rank] for rank in working])[0]

    def job(rank: int) -> Callable[[], None]:
        if stop_at is not None:
            return everything
        return lambda: capture(open_store(STORE), rank, world)

    with disk.mounted(), watched(disk.say), crew(world) as writers:

        def before(call: str, node: Node | None) -> None:
            calls[writers.running] += 1
            writers.turn()

        if stop_at is None:
            begin()
            first[0] = len(disk.trace)
        disk.before = before
        results = writers.run([job(rank) for rank in range(world)], choose)
        disk.before = None
    # Who finds the part sealed or the path taken says so, and who waits for one that is stopped gives up.
    typed = PartSealed | WriterBusy | NameTaken | None
    wrong = [f"writers: {error!r}" for error in results if not isinstance(error, typed)]
    if disk.num_open:
        wrong.append(f"writers: {disk.num_open} descriptors are left open (after {results})")
    return Run(disk, first[0], tuple(wrong))
