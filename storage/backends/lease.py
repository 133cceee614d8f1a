"""Is another writer at work on this part?

A writer holds a lock on the part, shared with other writers, while it writes. Who finds itself alone may do what
no other writer must see half done: take away torn files and what killed writers have staged. Who leaves last takes
the lock's file away, so that a finished part holds no trace of who wrote it.

The operating system drops the lock of a process that dies, and keeps that of one that is stopped: no clock and no
age decides who is alive. Where a file system knows no locks, nobody is ever alone, and nothing is taken away.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Final

from ..errors import StorageError, UntrustedStoreError, WriterBusy
from ..format.constants import LOCK, STAGING
from .local import Folder
from .posix import close_quietly, expecting_folders

_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_PATIENCE_S: Final = 60.0
"""How long to wait for a writer that is alone, and so in the short work of recovery."""
_POLL_S: Final = 0.02


@contextlib.contextmanager
def lease(folder: Folder) -> Iterator["Lease"]:
    """Hold a folder, shared with other writers, while the block runs."""
    held = Lease(folder)
    try:
        held.take()
        held.share()
        yield held
    finally:
        held.release()


def tidy_up(folder: Folder) -> None:
    """Take away what writers that were killed have left of themselves, where nobody is at work."""
    with contextlib.suppress(StorageError, UntrustedStoreError):  # tidiness alone
        if folder.exists(LOCK) or folder.exists(STAGING):
            with lease(folder):
                pass


class Lease:
    """A writer's hold on a part. Not shared between threads; a fork shares it until both have let go."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._handle = -1

    @property
    def held(self) -> bool:
        """Whether this object holds the part, alone or not."""
        return self._handle >= 0

    def take(self) -> bool:
        """Hold the part; whether nobody else does. Who is alone calls `share` when it has recovered the part.

        Raises WriterBusy where another writer is alone with it for a minute.
        """
        with expecting_folders(self._folder.path / LOCK):
            alone = self._lock(fcntl.LOCK_EX)
            if alone is None:
                return False
            if not alone:
                self.share()
            return alone

    def take_alone(self) -> None:
        """Hold the part alone. Raises WriterBusy where another writer is at work on it."""
        if not self.take():
            without_locks = not self.held
            self.release()
            raise WriterBusy(
                str(self._folder.path),
                expected="no other writer at work on this part",
                found="a file system without locks, on which that is not known"
                if without_locks
                else "one that is (or that was stopped and not ended)",
                remedy="copy the store to a local disk first"
                if without_locks
                else "wait for it, or end it, and run the same command again",
            )

    def share(self) -> None:
        """Let other writers in from now on."""
        deadline = time.monotonic() + _PATIENCE_S
        with expecting_folders(self._folder.path / LOCK):
            # Going from one kind of lock to the other lets go of the first: another writer may be alone by now.
            while self._lock(fcntl.LOCK_SH) is False:
                if time.monotonic() > deadline:
                    raise WriterBusy(
                        str(self._folder.path),
                        expected="a turn within a minute",
                        found="another writer that is alone with this part (or was stopped in the middle of it)",
                        remedy="wait for it, or end it, and run the same command again",
                    )
                time.sleep(_POLL_S)

    def release(self) -> None:
        """Let go. The last one out takes away the lock's file and what killed writers have staged."""
        if not self.held:
            return
        handle, self._handle = self._handle, -1
        try:
            # Tidiness alone: a part that cannot be tidied, or that is gone, is none the worse.
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
        """Try once; whether it was had. None where the file system has no locks."""
        while True:
            if self._handle < 0:
                *within, name = LOCK.split("/")
                with self._folder.directory(within, make=True) as directory:
                    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    self._handle = os.open(name, flags, 0o666, dir_fd=directory)
            try:
                had = self._flock(self._handle, kind)
                # The last one out may have taken the file away between our opening and our locking of it.
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
        close_quietly(handle)
