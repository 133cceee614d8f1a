"""A store's folders in a bucket of S3, Google or Azure: objects appear whole or not at all, once, and durably.

    PUT, if there is no such object ──▶ stored                      ours
                                    ──▶ anything else ─▶ read back ─┬─ our bytes    ours (the answer was lost)
                                                                    ├─ other bytes  taken
                                                                    ├─ nothing      wait, and put again
                                                                    └─ no answer    wait, and read again

An error tells little: a lost answer, repeated by the library, comes back as "exists already" for our own object; a
conflict of two requests (409) comes back as the same with nothing stored. So the object itself is read and compared.

Nothing is ever removed, or replaced, but the probes of `prove_exclusive`, under names that no reader knows. So writers need
no lock: whatever one has found in the bucket stays as it is (`lease.Unleased`).
"""

import contextlib
import logging
import random
import secrets
import time
from collections.abc import Iterator
from typing import Any, Final

from ..errors import CommitStateUnknown, StorageError, StorageRefused, TransientIOError, UnsafeFileSystem
from ..format.constants import STAGING
from .place import components
from .remote import RemoteFolder
from .writable import ENDLESS
from .zarr_bytes import Refused, Taken

log = logging.getLogger(__name__)
PATIENCE_S: Final = 120.0
"""Seconds after which an object that could not be put is given up, beside those of `_SLOWEST`."""
_SLOWEST: Final = 1 << 20
"""Bytes a second: an object of more of them is waited for longer."""
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0
_PROBES: Final = 3
"""Attempts at a probe: another writer may remove one that it takes for a killed writer's."""
COPY_THERE: Final = "write the store on a local disk and copy it there; `logitstore doctor` examines a bucket"
"""Remedy for a bucket that cannot keep writers apart."""


class ObjectFolder(RemoteFolder):
    """A folder of a store in a bucket, for objects that are written once."""

    is_remote = True

    def __init__(self, *arguments: Any, is_held: bool = False) -> None:
        super().__init__(*arguments)
        self._is_held = is_held

    def __repr__(self) -> str:
        return f"ObjectFolder({str(self.path)!r})"

    def sub(self, name: str) -> "ObjectFolder":
        inside = (*self._inside, *components(name, self.path))
        return ObjectFolder(self._objects, inside, is_held=self._is_held)

    # A bucket has no folders to hold: what is compared before each commit is the log and the spec (`parts.binding`).

    @property
    def is_held(self) -> bool:
        """Whether `hold` gave the folder, or one above it."""
        return self._is_held

    def hold(self, *, make: bool = False) -> "ObjectFolder":
        """Return this folder. Nothing is made: a folder is there with its first object."""
        return ObjectFolder(self._objects, self._inside, is_held=True)

    def let_go(self) -> None:
        """Do nothing: nothing is held open."""

    def check_in_place(self) -> None:
        """Do nothing: the prefix of a URL leads nowhere else."""

    def sync(self, key: str) -> None:
        """Do nothing: an object is durable, and listed, once it was put."""

    def free_bytes(self) -> int:
        """Return `ENDLESS`: a bucket states no limit."""
        return ENDLESS

    @contextlib.contextmanager
    def stage(self, *keys: str) -> Iterator[list["NewRemoteObject"]]:
        """Begin objects, which are kept in memory until they are published."""
        yield [NewRemoteObject(self, key) for key in keys]

    def put_new(self, key: str, data: bytes) -> bool:
        """Put an object under a free name; return False if other bytes have the name, True for the same bytes.

        On return an object of that name is durable. Gives up after `PATIENCE_S`, and a second for each MiB.
        Raises StorageRefused, UnsafeFileSystem; TransientIOError if nothing is there, CommitStateUnknown if that cannot
        be told.
        """
        inner, where = self._key(key)
        deadline = time.monotonic() + PATIENCE_S + len(data) / _SLOWEST
        wait = _FIRST_WAIT_S
        while True:
            failure = self._objects.ask(where, self._objects.create, inner, data, deadline - time.monotonic())
            if failure is None:
                return True
            unread: StorageError | None = None
            try:
                return self._holds(key, data)
            except FileNotFoundError:
                pass
            except StorageError as error:
                unread = error
            if isinstance(failure, Refused):
                raise self._refusal(failure, where) from failure.cause
            if isinstance(unread, StorageRefused) or time.monotonic() + wait > deadline:
                raise _given_up(where, failure, unread) from failure.cause
            log.debug("%s: %s; put again", where, failure.found)
            time.sleep(wait * random.uniform(0.5, 1))
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _holds(self, key: str, data: bytes) -> bool:
        """Return whether the object of a name has these bytes. Raises FileNotFoundError, StorageError."""
        found, size = self._read(key, 0, len(data) + 1)
        return size == len(data) and found == data

    def _refusal(self, failure: Refused, where: str) -> StorageError:
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
            remedy="check the URL, the bucket and the credentials, then run the same command again; what was committed is "
            "intact",
        )

    def prove_exclusive(self) -> None:
        """Test that the second of two objects of one name is refused: all else rests on it. Once a process and store.

        Raises UnsafeFileSystem if it is accepted, and as `put_new`.
        """
        if self._objects.is_proven:
            return
        top = ObjectFolder(self._objects)
        for _ in range(_PROBES):
            key = f"{STAGING}/{secrets.token_hex(12)}"
            inner, where = top._key(key)
            try:
                if top.put_new(key, b"first") and not top._replaces(key):
                    self._objects.is_proven = True
                    return
            finally:
                # Who may put but not delete leaves a few bytes there, which no reader looks at.
                with contextlib.suppress(StorageError, FileNotFoundError):
                    self._objects.ask(where, self._objects.delete, inner)
        raise UnsafeFileSystem(
            str(top.path),
            expected="a bucket that gives a name to one object only (If-None-Match: *)",
            found="a bucket in which a second object replaced the first",
            remedy=COPY_THERE,
        )

    def _replaces(self, key: str) -> bool:
        """Return whether a second object takes the name of one that is there."""
        inner, where = self._key(key)
        deadline = time.monotonic() + PATIENCE_S
        wait = _FIRST_WAIT_S
        while True:
            failure = self._objects.ask(where, self._objects.create, inner, b"second", PATIENCE_S)
            if failure is None:
                return True
            if isinstance(failure, Refused):
                raise self._refusal(failure, where) from failure.cause
            if isinstance(failure, Taken):
                try:
                    return not self._holds(key, b"first")
                except FileNotFoundError:
                    return True  # removed meanwhile: tried again under another name
            if time.monotonic() + wait > deadline:
                raise _given_up(where, failure, None) from failure.cause
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def tidy(self) -> None:
        """Remove the probes of killed writers. A part has none: they lie at the top of the store."""
        if self._inside:
            return
        for name in self.names(STAGING):
            inner, where = self._key(f"{STAGING}/{name}")
            with contextlib.suppress(FileNotFoundError):
                self._objects.ask(where, self._objects.delete, inner)


class NewRemoteObject:
    """An object in memory, to be put whole under its name."""

    def __init__(self, folder: ObjectFolder, key: str) -> None:
        self._folder, self._key = folder, key
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> None:
        """Append bytes (any contiguous buffer)."""
        self._pieces.append(bytes(data))

    def publish(self) -> bool:
        """Put the object; return False if other bytes have its name."""
        pieces, self._pieces = self._pieces, []
        return self._folder.put_new(self._key, pieces[0] if len(pieces) == 1 else b"".join(pieces))


def _given_up(where: str, failure: Any, unread: StorageError | None) -> StorageError:
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
