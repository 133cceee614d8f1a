"""Objects of a bucket of S3, Google or Azure, put under free names: whole, once and durably.

    PUT, if there is no such object ──▶ stored                      ours
                                    ──▶ anything else ─▶ read back ─┬─ our bytes    ours (the answer was lost)
                                                                    ├─ other bytes  taken
                                                                    ├─ nothing      wait, and put again
                                                                    └─ no answer    wait, and read again

An error tells little: a lost answer, repeated by the library, comes back as "exists already" for our own object; a
conflict of two requests (409) comes back as the same with nothing stored. So the object itself is read and compared.

Nothing is ever replaced. Nothing is removed but the probes of `prove_exclusive`, under names that no reader knows, and the
objects of a part that the log says is gone, whose name is never used again. So writers need no lock: whatever one has found
in the bucket of another part stays as it is (`lease.Unleased`).
"""

import contextlib
import logging
import random
import secrets
import time
from typing import Final

from ..errors import CommitStateUnknown, StorageError, StorageRefused, TransientIOError, UnsafeFileSystem
from ..format.constants import STAGING
from .store_errors import Failure, Refused, Taken
from .zarr_bytes import ZarrBytes

log = logging.getLogger(__name__)
PATIENCE_S: Final = 120.0
"""Seconds after which an object that could not be put is given up, beside those of `_SLOWEST`."""
_SLOWEST: Final = 1 << 20
"""Bytes a second: an object of more of them is waited for longer."""
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0
_PROBES: Final = 3
"""Attempts at a probe: another writer may remove one that it takes for a killed writer's."""
_FIRST, _SECOND = b"first", b"second"
COPY_THERE: Final = "write the store on a local disk and copy it there; `logitstore doctor` examines a bucket"
"""Remedy for a bucket that cannot keep writers apart."""


def put_new(objects: ZarrBytes, key: str, where: str, data: bytes) -> bool:
    """Put an object under a free name; return False if other bytes have the name, True for the same bytes.

    On return an object of that name is durable. Gives up after `PATIENCE_S`, and a second for each MiB. where: the object
    in messages.
    Raises StorageRefused, UnsafeFileSystem; TransientIOError if nothing is there, CommitStateUnknown if that cannot be told.
    """
    deadline = time.monotonic() + PATIENCE_S + len(data) / _SLOWEST
    wait = _FIRST_WAIT_S
    while True:
        failure = objects.ask(where, objects.create, key, data, deadline - time.monotonic())
        if failure is None:
            return True
        unread: StorageError | None = None
        try:
            return _holds(objects, key, where, data)
        except FileNotFoundError:
            pass
        except StorageError as error:
            unread = error
        if isinstance(failure, Refused):
            raise _refusal(failure, where) from failure.cause
        if isinstance(unread, StorageRefused) or time.monotonic() + wait > deadline:
            raise _given_up(where, failure, unread) from failure.cause
        log.debug("%s: %s; put again", where, failure.found)
        wait = _waited(wait)


def prove_exclusive(objects: ZarrBytes) -> None:
    """Test that the second of two objects of one name is refused: all else rests on it. Once a process and store.

    Raises UnsafeFileSystem if it is accepted, and as `put_new`.
    """
    if objects.is_proven:
        return
    for _ in range(_PROBES):
        key = f"{STAGING}/{secrets.token_hex(12)}"
        where = f"{objects.name}/{key}"
        try:
            if put_new(objects, key, where, _FIRST) and not _replaces(objects, key, where):
                objects.is_proven = True
                return
        finally:
            # Who may put but not delete leaves a few bytes there, which no reader looks at.
            with contextlib.suppress(StorageError, FileNotFoundError):
                objects.ask(where, objects.delete, key)
    raise UnsafeFileSystem(
        objects.name,
        expected="a bucket that gives a name to one object only (If-None-Match: *)",
        found="a bucket in which a second object replaced the first",
        remedy=COPY_THERE,
    )


def _replaces(objects: ZarrBytes, key: str, where: str) -> bool:
    """Return whether a second object takes the name of one that is there."""
    deadline = time.monotonic() + PATIENCE_S
    wait = _FIRST_WAIT_S
    while True:
        failure = objects.ask(where, objects.create, key, _SECOND, PATIENCE_S)
        if failure is None:
            return True
        if isinstance(failure, Refused):
            raise _refusal(failure, where) from failure.cause
        if isinstance(failure, Taken):
            try:
                return not _holds(objects, key, where, _FIRST)
            except FileNotFoundError:
                return True  # removed meanwhile: tried again under another name
        if time.monotonic() + wait > deadline:
            raise _given_up(where, failure, None) from failure.cause
        wait = _waited(wait)


def _holds(objects: ZarrBytes, key: str, where: str, data: bytes) -> bool:
    """Return whether the object of a name has these bytes. Raises FileNotFoundError, StorageError."""
    return objects.ask(where, objects.holds, key, data)


def _waited(wait: float) -> float:
    """Wait, and return for how long to wait the next time; writers that failed together come apart."""
    time.sleep(wait * random.uniform(0.5, 1))
    return min(2 * wait, _LONGEST_WAIT_S)


def _refusal(failure: Refused, where: str) -> StorageError:
    if failure.status == 501:
        return UnsafeFileSystem(
            where,
            expected="a bucket that can refuse to replace an object (If-None-Match: *)",
            found=failure.found,
            remedy=COPY_THERE,
        )
    return StorageRefused(
        where,
        expected="permission to write the object",
        found=failure.found,
        remedy="check the URL, the bucket and the credentials, then run the same command again; what was committed is intact",
    )


def _given_up(where: str, failure: Failure, unread: StorageError | None) -> StorageError:
    """Return the error of an object that was not put in time. unread: why it could not be read back; None if it is not there."""
    if unread is None:
        return TransientIOError(
            where,
            expected=f"an object that is stored within {PATIENCE_S:.0f} s",
            found=failure.found,
            remedy="run the same command again when the server answers; what was committed is intact",
        )
    return CommitStateUnknown(
        where,
        expected="to read back the object, after an answer that leaves doubt",
        found=f"{failure.found}; then {unread.found}",
        remedy="run the same command again: it looks for the object",
    )
