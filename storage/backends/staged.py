"""Staged objects: files without a name that readers know, to be published whole, once and durably.

temporary file (O_EXCL) ─ write ─ fsync ─ link to the name ─ unlink ─ fsync the directory
                                             └─ the name is taken: another writer was first
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import PurePath
from types import TracebackType
from typing import Any, Final, Protocol, runtime_checkable

from ..errors import CommitStateUnknown, UnsafeFileSystem
from .place import components
from .posix import CALL_BYTES, NO_LINKS, expecting_folders
from .system import flags, rename_noreplace, sync

_NEW_FILE: Final = flags("O_CREAT", "O_EXCL", "O_WRONLY", "O_NOFOLLOW")
COPY_HERE: Final = "write the store on another disk and copy it here; `logitstore doctor` examines a disk"
"""Remedy for a file system that cannot keep writers apart."""


@runtime_checkable
class Walked(Protocol):
    """A folder in which objects get their names."""

    path: PurePath
    """The folder, as messages show it."""

    def directory(self, within: Sequence[str], *, make: bool) -> AbstractContextManager[int]:
        """Open the folder, or one below it, and yield the descriptor."""


class NewObject:
    """A staged object, to be published under its name: whole, once and durably."""

    def __init__(self, folder: Walked, key: str, staging: int) -> None:
        """Begin an object in an open staging folder. Raises FileNotFoundError if that was removed."""
        self._folder = folder
        self._key = key
        *self._within, self._name = components(key, folder.path)
        self._temporary = secrets.token_hex(12)
        self._directory = staging
        self._handle = os.open(self._temporary, _NEW_FILE, 0o666, dir_fd=staging)
        self._is_staged = True
        self._process = os.getpid()

    def __enter__(self) -> "NewObject":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._close()
        # A forked child that ends inside the block leaves the file to its parent, which writes on.
        if self._process == os.getpid():
            with contextlib.suppress(OSError):
                self._unlink()

    def _close(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)

    def _unlink(self) -> None:
        if self._is_staged:
            self._is_staged = False
            os.unlink(self._temporary, dir_fd=self._directory)

    def write(self, data: Any) -> None:
        """Append bytes (any contiguous buffer)."""
        with expecting_folders(self._folder.path, self._key):
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(self._handle, view[:CALL_BYTES]) :]

    def take_name(self) -> bool:
        """Give the object its name, without syncing; return False if the name is taken."""
        with (
            expecting_folders(self._folder.path, self._key),
            self._folder.directory(self._within, make=True) as final,
        ):
            return self._link(final)

    def publish(self) -> bool:
        """Give the object its name; return False if the name is taken. The name is durable either way."""
        with (
            expecting_folders(self._folder.path, self._key),
            self._folder.directory(self._within, make=True) as final,
        ):
            sync(self._handle)
            won = self._link(final)
            # Also if the name was taken: the other writer may not have synced it yet.
            sync(final)
            return won

    def replace(self) -> None:
        """Give the object its name, durably, in the place of a file that has it."""
        with (
            expecting_folders(self._folder.path, self._key),
            self._folder.directory(self._within, make=True) as final,
        ):
            sync(self._handle)
            os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=final)
            self._is_staged = False
            sync(final)

    def _link(self, final: int) -> bool:
        source, target = self._temporary, self._name
        try:
            os.link(source, target, src_dir_fd=self._directory, dst_dir_fd=final, follow_symlinks=False)
            won = True
        except OSError as error:
            # A network file system can lose the answer after it made the link. The repeated call then fails with
            # EEXIST although the name is ours: the file that has the name decides.
            if self._has_name(final):
                won = True
            elif isinstance(error, FileExistsError):
                won = False
            elif error.errno in NO_LINKS:
                return self._rename(final, error)
            else:
                raise
        # Closed only now: the number of a file that is open is given to no other file.
        self._close()
        self._unlink()
        return won

    def _has_name(self, final: int) -> bool:
        """Return whether the name is that of this very file.

        The number of its links tells nothing: a snapshot of hard links gives staged files a second one.
        """
        try:
            there = os.stat(self._name, dir_fd=final, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CommitStateUnknown(
                str(self._folder.path / self._key),
                expected="the file that has this name, after a link that failed",
                found=f"{error.strerror} (errno {error.errno})",
                remedy="run the same command again: it looks for the object",
            ) from error
        return os.path.samestat(there, os.fstat(self._handle))

    def _rename(self, final: int, cause: OSError) -> bool:
        """Give the object its name without a hard link, by a rename that replaces nothing."""
        self._close()
        try:
            rename_noreplace(self._directory, self._temporary, final, self._name)
        except FileExistsError:
            self._unlink()
            return False
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, *NO_LINKS):
                raise
            raise UnsafeFileSystem(
                str(self._folder.path / self._key),
                expected="a file system with hard links, or with renames that replace nothing",
                found=f"a file system with neither ({cause.strerror}; {error.strerror})",
                remedy=COPY_HERE,
            ) from error
        self._is_staged = False
        return True
