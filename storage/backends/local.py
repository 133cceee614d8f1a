"""How do bytes get under a name, once and for good, and come back?

`Folder` is a directory of a store and its keys ("peak/c.0.3"). Nothing is ever changed in place: an object is
staged and then published, which makes it appear whole or not at all, under a name that was free, and durable
before the call returns.

    temporary file (O_EXCL) ─ write ─ fsync ─ link to the name ─ unlink ─ fsync the directory
                                                 └─ the name is taken: somebody else was first

Below the folder that the user named nothing is followed: every component is opened on its own, a symbolic link, a
pipe or a device on the way is an error, and no key leads out. Errors of the operating system become the typed
errors of `errors`, with the file in the message.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    CommitStateUnknown,
    ConfigError,
    LimitExceeded,
    StorageError,
    UnsafeFileSystem,
    UntrustedStoreError,
)
from ..format.constants import MAX_JSON_BYTES, STAGING
from .posix import (
    CALL_BYTES,
    DIRECTORY,
    NO_LINKS,
    close_quietly,
    expecting_folders,
    is_missing,
    kind_of,
    mode_of,
    read_at,
    read_through,
    rename_noreplace,
    sync_directory,
    typed_errors,
)

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STAGING = STAGING.split("/")
_ATTEMPTS = 8
"""How often a writer makes the staging folder anew where others tidy it under its hands."""
_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def local_path(location: Any) -> Path:
    """The path that `location` (a str or os.PathLike) names. Raises ConfigError for what is on no local disk.

    >>> local_path("file:///data/store.zarr").as_posix()
    '/data/store.zarr'
    """
    if not isinstance(location, str | os.PathLike):
        raise ConfigError(
            "the path of a store",
            expected="a local path",
            found=f"a {type(location).__name__}",
            remedy="pass a path; what is elsewhere can be read (docs/remote.md), not written",
        )
    text = os.fspath(location)
    if "\0" in text:
        raise ConfigError(
            "the path of a store",
            expected="a path",
            found=f"{text!r}, which has a zero byte"[:120],
            remedy="correct the path",
        )
    parts = urlsplit(text)
    if parts.scheme == "file" and not parts.netloc:
        return Path(parts.path)
    if "://" in text:
        raise ConfigError(
            text,
            expected="a local path",
            found=f"a {parts.scheme}:// URL",
            remedy="copy the store to a local disk first; what is elsewhere can be read (docs/remote.md), not written",
        )
    return Path(text)


def _untrusted(where: PurePath, found: str) -> UntrustedStoreError:
    return UntrustedStoreError(
        str(where),
        expected="folders and plain files all the way",
        found=found,
        remedy="do not use this store: logitstore makes no links, pipes or devices",
    )


def components(key: str, where: PurePath) -> list[str]:
    """The names that a key is made of. Raises UntrustedStoreError where one of them leads elsewhere."""
    parts = key.split("/")
    if any(part in ("", ".", "..") or "\0" in part or len(os.fsencode(part)) > 255 for part in parts):
        raise UntrustedStoreError(
            str(where),
            expected="keys inside the store",
            found=repr(key)[:80],
            remedy="do not use this store: logitstore writes no such key",
        )
    return parts


class Folder:
    """A directory of a store, as a place for objects that are written once."""

    can_list = True
    """Whether it can be asked which files there are."""

    def __init__(self, path: Path, inside: Sequence[str] = ()) -> None:
        """path: the store, which the user named; links in it are the user's. inside: the folder in the store."""
        self._top = path
        self._inside = tuple(inside)
        self.path: PurePath = path.joinpath(*inside)
        """Where it is."""
        self._durable: set[tuple[str, ...]] = set()
        # Directories whose names this object has seen to be durable in the directory above.

    def __repr__(self) -> str:
        return f"Folder({str(self.path)!r})"

    def sub(self, name: str) -> "Folder":
        """The folder of a part, with staging of its own."""
        return Folder(self._top, (*self._inside, *components(name, self.path)))

    def kind(self) -> str:
        """ "nothing", "a folder" or "a file": what is at the path that the user named."""
        with typed_errors(self.path):
            try:
                return kind_of(os.stat(self._top).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return "nothing"

    # Walking: from the store downwards, one component at a time.

    @contextlib.contextmanager
    def directory(self, within: Sequence[str] = (), *, make: bool = False) -> Iterator[int]:
        """A descriptor of this folder, or of one below it. Raises FileNotFoundError, UntrustedStoreError.

        make: make what is missing, each directory durable in the one above it (staging need not be).
        """
        walked: list[str] = []
        if make:
            self._make_top()
        handle = os.open(self._top, DIRECTORY)
        try:
            for name in (*self._inside, *within):
                walked.append(name)
                try:
                    below = self._open_below(handle, walked)
                except FileNotFoundError:
                    if not make:
                        raise
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=handle)
                    below = self._open_below(handle, walked)
                try:
                    if make and tuple(walked) not in self._durable and walked[-2:] != _STAGING:
                        # Also where the directory was there: whoever made it may not have come as far as this.
                        os.fsync(handle)
                        self._durable.add(tuple(walked))
                finally:
                    above, handle = handle, below
                    close_quietly(above)
            yield handle
        finally:
            close_quietly(handle)

    def _open_below(self, handle: int, walked: Sequence[str]) -> int:
        try:
            return os.open(walked[-1], DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
        except NotADirectoryError:
            mode = mode_of(walked[-1], handle)
            if stat.S_ISREG(mode):
                raise
            raise _untrusted(self._top.joinpath(*walked), kind_of(mode)) from None

    def _make_top(self) -> None:
        """Make the folder that the user named, and its parents, durably; once."""
        if () in self._durable:
            return
        missing, current = [], self._top
        while is_missing(current):
            missing.append(current)
            current = current.parent
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            sync_directory(path.parent)
        if not missing:
            with contextlib.suppress(PermissionError):  # a folder in one that is not the user's
                sync_directory(self._top.absolute().parent)
        self._durable.add(())

    # Reading.

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """A descriptor of a plain file, and its size."""
        path = self.path / key
        *within, name = components(key, self.path)
        with typed_errors(path), contextlib.ExitStack() as stack:
            try:
                directory = stack.enter_context(self.directory(within))
            except NotADirectoryError as error:  # a file on the way: what is asked for is not there
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
            with stack:
                try:
                    handle = os.open(name, _FILE, dir_fd=directory)
                except OSError as error:
                    if error.errno in (errno.ELOOP, errno.ENXIO):
                        raise _untrusted(path, kind_of(mode_of(name, directory))) from None
                    raise
            try:
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode):
                    raise _untrusted(path, kind_of(found.st_mode))
                yield handle, found.st_size
            finally:
                close_quietly(handle)

    def read(self, key: str, most: int = MAX_JSON_BYTES) -> bytes:
        """The whole object. Raises FileNotFoundError, LimitExceeded where it is larger than `most` bytes."""
        with self._opened(key) as (handle, size):
            if size > most:
                raise LimitExceeded(
                    str(self.path / key),
                    expected=f"at most {most} bytes",
                    found=f"{size} bytes",
                    remedy="do not use this store: logitstore writes no such file",
                )
            return read_at(handle, 0, size)

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        """`length` bytes from `offset` (fewer at the end), and the size of the object. Raises FileNotFoundError."""
        with self._opened(key) as (handle, size):
            return read_at(handle, offset, max(0, min(size - offset, length))), size

    def read_through(
        self, key: str, offset: int, length: int, take: Callable[[NDArray[np.uint8]], None]
    ) -> int:
        """Give `take` `length` bytes from `offset` (fewer at the end), piece by piece; the size of the object.

        A piece is there until `take` returns. Raises FileNotFoundError.
        """
        with self._opened(key) as (handle, size):
            read_through(handle, offset, max(0, min(size - offset, length)), take)
            return size

    def size(self, key: str) -> int:
        """Bytes of the object. Raises FileNotFoundError."""
        with self._opened(key) as (_, size):
            return size

    def exists(self, key: str) -> bool:
        """Whether something has that name."""
        *within, name = components(key, self.path)
        with typed_errors(self.path / key):
            try:
                with self.directory(within) as directory:
                    mode_of(name, directory)
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        """Names directly under `prefix`, sorted; none where there is no such folder."""
        within = components(prefix, self.path) if prefix else []
        with typed_errors(self.path / prefix):
            try:
                with self.directory(within) as directory:
                    return sorted(os.listdir(directory))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def is_folder(self, key: str) -> bool:
        """Whether there is a folder (no link to one) of that name."""
        *within, name = components(key, self.path)
        with typed_errors(self.path / key):
            try:
                with self.directory(within) as directory:
                    return stat.S_ISDIR(mode_of(name, directory))
            except (FileNotFoundError, NotADirectoryError):
                return False

    def files(self) -> list[str]:
        """Keys of every file below the folder, and of every link; links are not followed. Raises StorageError."""
        found, todo = [], [""]
        while todo:
            prefix = todo.pop()
            try:
                with os.scandir(self.path / prefix) as entries:
                    for entry in entries:
                        key = f"{prefix}{entry.name}"
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(f"{key}/")
                        else:
                            found.append(key)
            except FileNotFoundError:  # a staging folder, tidied by its writer
                continue
            except OSError as error:
                raise StorageError(
                    str(self.path / prefix),
                    expected="a folder that can be listed",
                    found=f"{error.strerror or error} (errno {error.errno})",
                    remedy="check the path and its permissions",
                ) from error
        return sorted(found)

    def check_writable(self) -> None:
        """Raise ConfigError where nothing can be written because of what kind of place it is."""

    def free_bytes(self) -> int:
        """Bytes that may still be written where the folder is, or will be."""
        current = self._top
        with typed_errors(current):
            while is_missing(current):
                current = current.parent
            found = os.statvfs(current)
            return found.f_bavail * found.f_frsize

    # Writing.

    @contextlib.contextmanager
    def stage(self, *keys: str) -> Iterator[list["NewObject"]]:
        """Begin objects: `with folder.stage(key) as (new,): new.write(…); new.publish()`.

        What is not published when the block is left leaves nothing behind.
        """
        path = self.path / (keys[0] if keys else "")
        with contextlib.ExitStack() as stack:
            for attempt in range(_ATTEMPTS):
                with expecting_folders(path):
                    try:
                        directory = stack.enter_context(self.directory(_STAGING, make=True))
                        new = [stack.enter_context(NewObject(self, key, directory)) for key in keys]
                        break
                    except FileNotFoundError:
                        # Who tidied took the empty staging folder away between its making and this.
                        if attempt == _ATTEMPTS - 1:
                            raise
            yield new

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object under a name that is free. Returns False where the name is taken.

        When it returns, an object of that name is durable, and so is its name.
        Raises StorageFull, TransientIOError or StorageError; nothing is then left behind.
        """
        with self.stage(key) as (new,):
            new.write(data)
            return new.publish()

    def prove_exclusive(self) -> None:
        """Try, without a trace, that of two objects of one name the second is refused: all else rests on it.

        Raises UnsafeFileSystem where it is not.
        """
        key = f"{STAGING}/{secrets.token_hex(12)}"
        with self.stage(key, key) as (first, second):
            try:
                proven = first.take_name() and not second.take_name()
            finally:
                self.remove(key)
        if not proven:
            raise UnsafeFileSystem(
                str(self.path),
                expected="a file system that gives a name to one file only",
                found="one that lets a second file take the name of the first",
                remedy="write the store on another disk and copy it here; `logitstore doctor` tells of a disk",
            )

    def remove(self, key: str) -> None:
        """Take away an object that nothing rests on. Gone already is fine.

        Only for who is alone with the folder (`lease`): another writer may have found the object good.
        """
        *within, name = components(key, self.path)
        with typed_errors(self.path / key), self.directory(within) as directory:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            os.fsync(directory)

    def sync(self, key: str) -> None:
        """Make the names in a folder of that name durable."""
        with typed_errors(self.path / key), self.directory(components(key, self.path)) as directory:
            os.fsync(directory)

    def sweep(self) -> None:
        """Take away what killed writers have staged. Only for who is alone with the folder."""
        with typed_errors(self.path / STAGING):
            try:
                with self.directory(_STAGING) as directory:
                    for name in os.listdir(directory):
                        os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                return
        self.tidy()

    def tidy(self) -> None:
        """Take away the staging folder where nothing is in it; who writes next makes it anew."""
        *within, name = _STAGING
        with contextlib.suppress(OSError, UntrustedStoreError), self.directory(within) as directory:
            os.rmdir(name, dir_fd=directory)


class NewObject:
    """An object on its way to its name: staged under another one, then published whole, once and durably."""

    def __init__(self, folder: Folder, key: str, staging: int) -> None:
        """staging: descriptor of the folder's staging folder. Raises FileNotFoundError where it is gone."""
        self._folder = folder
        self._path = folder.path / key
        *self._within, self._name = components(key, folder.path)
        self._temporary = secrets.token_hex(12)
        self._directory = staging
        self._handle = os.open(self._temporary, _NEW_FILE, 0o666, dir_fd=staging)
        self._is_staged = True

    def __enter__(self) -> "NewObject":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._close()
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
        """Add bytes (anything with a contiguous buffer) to what is staged."""
        with expecting_folders(self._path):
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(self._handle, view[:CALL_BYTES]) :]

    def take_name(self) -> bool:
        """Give the object its name, durable or not. Returns False where the name is taken."""
        with expecting_folders(self._path), self._folder.directory(self._within, make=True) as final:
            return self._link(final)

    def publish(self) -> bool:
        """Give the object its name. Returns False where the name is taken; durable either way."""
        with expecting_folders(self._path), self._folder.directory(self._within, make=True) as final:
            os.fsync(self._handle)
            self._close()
            won = self._link(final)
            # Also where the name was taken: whoever took it may not have come as far as this.
            os.fsync(final)
            return won

    def _link(self, final: int) -> bool:
        source, target = self._temporary, self._name
        try:
            os.link(source, target, src_dir_fd=self._directory, dst_dir_fd=final, follow_symlinks=False)
            won = True
        except OSError as error:
            # The answer of a network file system can be lost after the link was made, and the call that is
            # sent again then finds the name taken, by ourselves: the number of names tells.
            if self._num_names() > 1:
                won = True
            elif isinstance(error, FileExistsError):
                won = False
            elif error.errno in NO_LINKS:
                return self._rename(final, error)
            else:
                raise
        self._unlink()
        return won

    def _num_names(self) -> int:
        try:
            found = os.stat(self._temporary, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise CommitStateUnknown(
                str(self._path),
                expected="to learn whether the object got its name",
                found=f"{error.strerror} (errno {error.errno})",
                remedy="run the same command again: it looks for what is there",
            ) from error
        return found.st_nlink

    def _rename(self, final: int, cause: OSError) -> bool:
        """The name without a hard link: a rename that replaces nothing."""
        try:
            rename_noreplace(self._directory, self._temporary, final, self._name)
        except FileExistsError:
            self._unlink()
            return False
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, *NO_LINKS):
                raise
            raise UnsafeFileSystem(
                str(self._path),
                expected="a file system with hard links, or with renames that replace nothing",
                found=f"one with neither ({cause.strerror}; {error.strerror})",
                remedy="write the store on another disk and copy it here; `logitstore doctor` tells of a disk",
            ) from error
        self._is_staged = False
        return True
