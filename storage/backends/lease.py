"""Leases on parts: locks by which writers detect each other.

A lease protects removals, and nothing else. Commits need none: a name is given once, and a block that two writers make is
there once. In a bucket nothing is removed, so a writer there has no lease (`Unleased`).

A writer holds a lock on the part, shared with other writers, while it writes. A writer that is alone may do what others
must not see half done: remove torn files, and what killed writers staged. The last one out removes the lock's file, so
that a finished part holds no trace of its writers.

The operating system drops the lock of a dead process and keeps that of a stopped one: no clock decides who is alive. On
a file system without locks no writer counts as alone, and nothing is removed.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import Final, Protocol, runtime_checkable

from ..errors import StorageError, UntrustedStoreError, WriterBusy
from ..format.constants import LOCK, STAGING
from .local import Folder
from .posix import close_quietly, expecting_folders
from .system import fcntl, flags
from .writable import Writable

_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_LOCK_FILE: Final = flags("O_RDWR", "O_CREAT", "O_NOFOLLOW", "O_NONBLOCK")
_PATIENCE_S: Final = 60.0
"""Seconds to wait for a writer that is alone, and so in the short work of recovery."""
_POLL_S: Final = 0.02
_WAIT: Final = "wait for it, or end it, and run the same command again"


@runtime_checkable
class Hold(Protocol):
    """A writer's hold on a part: a `Lease`, or none where nothing is removed."""

    @property
    def held(self) -> bool:
        """Whether this process holds the part by this object."""

    def take(self) -> bool:
        """Take hold of the part; return whether alone, and so whether remains of killed writers may be removed."""

    def share(self) -> None:
        """Share the part with other writers from now on."""

    def release(self) -> None:
        """Release the part. A second call does nothing."""


def lease_on(folder: Writable) -> Hold:
    """Return the kind of hold that a place has; it is not taken yet."""
    return Lease(folder) if isinstance(folder, Folder) else Unleased()


@contextlib.contextmanager
def lease(folder: Writable) -> Iterator[Hold]:
    """Hold a folder, shared with other writers, while the block runs."""
    held = lease_on(folder)
    try:
        held.take()
        held.share()
        yield held
    finally:
        held.release()


def tidy_up(folder: Writable) -> None:
    """Remove the lock and the staged files of killed writers, unless a writer is at work; in a bucket, their probes."""
    with contextlib.suppress(StorageError, UntrustedStoreError):  # tidiness alone
        if not isinstance(folder, Folder):
            folder.tidy()
        elif folder.exists(LOCK) or folder.exists(STAGING):
            with lease(folder):
                pass


class Unleased:
    """The hold of a writer where nothing is removed: it is never alone, and keeps nobody out.

    | what a writer that is alone does on a disk | in a bucket |
    | --- | --- |
    | remove torn files | there are none: an object appears whole |
    | write the lost record of a whole block | the next writer of the block finds its objects, checks and records them |
    | remove the blocks of another store, deleted and begun anew here | refused in one line where their rows differ |
    | remove staged files and the lock | there are none |
    """

    def __init__(self) -> None:
        self._process: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process has taken it, which keeps nobody out."""
        return self._process == os.getpid()

    def take(self) -> bool:
        """Take it; return False, as other writers may be at work."""
        self._process = os.getpid()
        return False

    def share(self) -> None:
        """Do nothing: it is shared."""

    def release(self) -> None:
        """Release it."""
        self._process = None


class Lease:
    """A writer's hold on a part. Not shared between threads, nor with a forked child, which makes a lease of its own."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._handle = -1
        self._process = os.getpid()

    @property
    def held(self) -> bool:
        """Whether this process holds the part by this object, alone or shared."""
        return self._handle >= 0 and self._process == os.getpid()

    def take(self) -> bool:
        """Take hold of the part; return whether alone. A writer that is alone recovers the part, then calls `share`.

        Raises WriterBusy if another writer holds it alone for a minute.
        """
        with expecting_folders(self._folder.path, LOCK):
            alone = self._lock(fcntl.LOCK_EX)
            if alone is None:
                return False
            if not alone:
                self.share()
            return alone

    def take_alone(self) -> None:
        """Take hold of the part, alone. Raises WriterBusy if another writer is at work on it."""
        if not self.take():
            found, remedy = "a writer that runs, or was stopped and not ended", _WAIT
            if not self.held:
                found = "a file system without locks, which hides other writers"
                remedy = "copy the store to a local disk first"
            self.release()
            expected = "no other writer at work on this part"
            raise WriterBusy(str(self._folder.path), expected=expected, found=found, remedy=remedy)

    def share(self) -> None:
        """Share the part with other writers from now on."""
        deadline = time.monotonic() + _PATIENCE_S
        with expecting_folders(self._folder.path, LOCK):
            # Converting a lock releases the first one: another writer may hold the part alone by now.
            while self._lock(fcntl.LOCK_SH) is False:
                if time.monotonic() > deadline:
                    raise WriterBusy(
                        str(self._folder.path),
                        expected=f"a lock on this part within {_PATIENCE_S:.0f} s",
                        found="another writer that holds it alone, or was stopped while it did",
                        remedy=_WAIT,
                    )
                time.sleep(_POLL_S)

    def release(self) -> None:
        """Release the part. The last one out removes the lock's file and what killed writers staged.

        In a forked child, close its copy of the descriptor: the parent goes on holding the part.
        """
        if not self.held:
            self._drop()
            return
        handle, self._handle = self._handle, -1
        try:
            # Tidiness only: a part that cannot be tidied, or was removed, is not damaged.
            with contextlib.suppress(OSError, UntrustedStoreError):
                if self._flock(handle, fcntl.LOCK_EX) and self._is_the_lock(handle):
                    self._folder.sweep()
                    *within, name = LOCK.split("/")
                    with self._folder.directory(within) as directory:
                        os.unlink(name, dir_fd=directory)
                self._folder.tidy()
        finally:
            close_quietly(handle)

    def _lock(self, kind: int) -> bool | None:
        """Try once to lock; return whether it succeeded, or None on a file system without locks."""
        while True:
            if self._handle < 0:
                *within, name = LOCK.split("/")
                with self._folder.directory(within, make=True) as directory:
                    self._handle = os.open(name, _LOCK_FILE, 0o666, dir_fd=directory)
            try:
                had = self._flock(self._handle, kind)
                # The last one out may have removed the file after we opened it and before we locked it.
                if not had or self._is_the_lock(self._handle):
                    return had
            except OSError as error:
                self._drop()
                if error.errno in _NO_LOCKS:
                    return None
                raise
            self._drop()

    @staticmethod
    def _flock(handle: int, kind: int) -> bool:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _is_the_lock(self, handle: int) -> bool:
        *within, name = LOCK.split("/")
        try:
            with self._folder.directory(within) as directory:
                there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(handle))

    def _drop(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            close_quietly(handle)
