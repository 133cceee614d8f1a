"""A local store's folders: objects appear whole or not at all, once, and durably.

`Folder` is a directory of a store and its keys ("peak/c.0.3"). Nothing is changed in place. An object is staged, then
published under a free name, and is durable before the call returns (`staged`).

A path may lead elsewhere tomorrow: a store is moved, or deleted and begun anew. A writer holds its folder open
(`Folder.hold`) and walks from there, so that nothing of it ever gets into another store.

Below the folder that the user named no link is followed. Every component is opened on its own; a symbolic link, a pipe
or a device is an error, and no key leads out.
"""

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

from ..errors import ConfigError, UnsafeFileSystem, UntrustedStoreError, WrongStore
from ..format.constants import STAGING
from .place import Place, components, split_url
from .plain_files import PlainFiles
from .posix import (
    DIRECTORY,
    LINK,
    close_quietly,
    expecting_folders,
    is_missing,
    kind_of,
    mode_of,
    sync_directory,
    typed_errors,
)
from .staged import COPY_HERE, NewObject
from .system import LINK_ERRORS, UNOPENED, check_writes, flags, path_of_url, sync
from .urls import check_spelling, discreet
from .writable import Writable

_FILE = flags("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK")
_BELOW = DIRECTORY | flags("O_NOFOLLOW")
_STAGING = STAGING.split("/")
MOST_LEVELS = 32
"""Levels of folders that are listed; a store has five."""
_ATTEMPTS = 8
"""Attempts to make the staging folder while other writers remove it."""
_kept = threading.local()
"""`handles`: the directories that this thread has open for all its reads, inside `keep_directories`."""


@contextlib.contextmanager
def keep_directories() -> Iterator[None]:
    """Open each directory once for all objects that this thread reads from it, inside the block.

    To walk there takes as long as to open, read and close the object.
    """
    handles: dict[tuple[Folder, tuple[str, ...]], int] = {}
    _kept.handles = handles
    try:
        yield
    finally:
        _kept.handles = None
        for handle in handles.values():
            close_quietly(handle)


def local_path(location: Any) -> Path:
    """Return the path that `location` (a str or os.PathLike) names. Raises ConfigError unless it is a local one.

    >>> local_path("file:///data/store.zarr").as_posix(), local_path("file:/data/a%20store").as_posix()
    ('/data/store.zarr', '/data/a store')
    """
    where, expected, remedy = "the path of a store", "a local path", "pass a path as str or os.PathLike"
    if not isinstance(location, str | os.PathLike):
        raise ConfigError(where, expected=expected, found=f"a {type(location).__name__}", remedy=remedy)
    text = os.fspath(location)
    if "\0" in text:
        expected, found = "a path without a zero byte", repr(text)[:120]
        raise ConfigError(where, expected=expected, found=found, remedy="correct the path")
    parts = split_url(text)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return Path(path_of_url(unquote(parts.path)))
    if "://" in text and not isinstance(location, PurePath):
        remedy = "copy the store to a local disk first, by `logitstore copy` (docs/remote.md)"
        raise ConfigError(discreet(text), expected=expected, found=f"a {parts.scheme}:// URL", remedy=remedy)
    check_spelling(location)
    path = Path(text)
    # Of "./s3:/x" pathlib drops the dot, without which it would be refused when it is passed on.
    return path if str(path) == text or ":" not in str(path).partition("/")[0] else path.absolute()


def writable(place: Place) -> Writable:
    """Return `place` as a folder to write to. Raises ConfigError for one that is only read, UnsupportedSystem."""
    if isinstance(place, PlainFiles):
        check_writes(str(place.path))
    if isinstance(place, Writable):
        return place
    if isinstance(place, PlainFiles):
        raise ConfigError(
            str(place.path),
            expected="a store that is written to, whose files are no links",
            found="a store whose links are followed, which is read alone",
            remedy=f"run `logitstore copy {place.path} NEW --follow-links`, and name the copy",
        )
    raise ConfigError(
        str(place.path),
        expected="a store that can be written to: on a local disk, or s3://, gs:// or az:// through obstore",
        found="a store that is read through Zarr, which is read-only",
        remedy="copy it to a local disk, write there, and copy it back; for a bucket, pip install 'logitstore[remote]'",
    )


def untrusted(where: PurePath, found: str) -> UntrustedStoreError:
    """Return the error of something that is neither a folder nor a plain file. found: its kind, of `posix.kind_of`."""
    remedy = "do not use this store: logitstore makes no links, pipes or devices"
    if found == LINK:
        remedy = (
            "do not use this store, or pass follow_links=True (--follow-links) if Hugging Face's cache, DVC or git-annex "
            "has laid the links"
        )
    return UntrustedStoreError(str(where), expected="folders and plain files", found=found, remedy=remedy)


class Held:
    """A directory of a store that is held open."""

    def __init__(self, handle: int, inside: Sequence[str]) -> None:
        self.handle = handle
        self.inside = tuple(inside)
        """Its place in the store."""

    def close(self) -> None:
        """Close it. A second call does nothing."""
        if self.handle >= 0:
            handle, self.handle = self.handle, -1
            close_quietly(handle)

    __del__ = close


class Folder(PlainFiles):
    """A directory of a local store, for objects that are written once."""

    is_remote = False

    def __init__(self, path: Path, inside: Sequence[str] = (), held: "Held | None" = None) -> None:
        """Name a folder by the store's path, in which links are followed, and its place `inside` the store.

        held: this folder or one above it, held open, from which is walked instead of from the path.
        Raises UnsupportedSystem on a system that does not walk by descriptors, and so does not write.
        """
        check_writes(str(path))
        named = path
        # Absolute: another process, or a later working directory, finds the same folder.
        with contextlib.suppress(FileNotFoundError):  # of a working directory that was removed
            path = path.absolute()
        self._top = path
        self._inside = tuple(inside)
        self._held = held
        self.path: PurePath = named.joinpath(*inside)
        self._durable: set[tuple[str, ...]] = set()
        # Directories whose names are known to be durable in the directory above.

    def __repr__(self) -> str:
        return f"Folder({str(self.path)!r})"

    @property
    def top(self) -> Path:
        """The absolute path of the store."""
        return self._top

    def sub(self, name: str) -> "Folder":
        return Folder(self._top, (*self._inside, *components(name, self.path)), self._held)

    def hold(self, *, make: bool = False) -> "Folder":
        """Return this very folder, held open: it stays the same one, whatever becomes of its path.

        make: make it if it is missing. Raises StorageError if it is missing.
        """
        with expecting_folders(self.path), self.directory(make=make) as handle:
            return Folder(self._top, self._inside, Held(os.open(".", DIRECTORY, dir_fd=handle), self._inside))

    @property
    def is_held(self) -> bool:
        """Whether the folder, or one above it, is held open."""
        return self._held is not None

    def let_go(self) -> None:
        """Close a held folder; the object is not used after that."""
        if self._held is not None:
            self._held.close()

    def check_in_place(self) -> None:
        """Refuse to go on in a held folder that its path no longer leads to. Raises WrongStore."""
        assert self._held is not None
        found = "another folder in its place"
        with typed_errors(self.path):
            try:
                with Folder(self._top, self._held.inside).directory() as there:
                    if os.path.samestat(os.fstat(there), os.fstat(self._held.handle)):
                        return
            except (FileNotFoundError, NotADirectoryError):
                found = "no folder"
        raise WrongStore(
            str(self._top.joinpath(*self._held.inside)),
            expected="the folder that this writer opened",
            found=f"{found}: it was moved, or deleted and begun anew",
            remedy="run the command again, with the path of the store that is to be written; nothing was written there",
        )

    def kind(self) -> str:
        with typed_errors(self.path):
            try:
                return kind_of(os.stat(self._top).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return "nothing"

    # Walking: from the store downwards, one component at a time.

    @contextlib.contextmanager
    def directory(self, within: Sequence[str] = (), *, make: bool = False) -> Iterator[int]:
        """Open this folder, or one below it, and yield the descriptor. Raises FileNotFoundError, UntrustedStoreError.

        make: make missing directories, each durable in the one above it (but for the staging folder).
        """
        handle = self._walk(within, make)
        try:
            yield handle
        finally:
            close_quietly(handle)

    def _walk(self, within: Sequence[str], make: bool = False) -> int:
        """Open this folder, or one below it, as `directory` does; the caller closes the descriptor."""
        walked: list[str] = []
        if self._held is not None:
            walked += self._held.inside
            handle = os.open(".", DIRECTORY, dir_fd=self._held.handle)
        else:
            if make:
                self._make_top()
            handle = os.open(self._top, DIRECTORY)
        try:
            for name in (*self._inside[len(walked) :], *within):
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
                        # Also if the directory existed: its maker may have been killed before the fsync.
                        sync(handle)
                        self._durable.add(tuple(walked))
                finally:
                    above, handle = handle, below
                    close_quietly(above)
        except BaseException:
            close_quietly(handle)
            raise
        return handle

    def _open_below(self, handle: int, walked: Sequence[str]) -> int:
        try:
            return os.open(walked[-1], _BELOW, dir_fd=handle)
        except OSError as error:
            if error.errno not in LINK_ERRORS:
                raise
            mode = mode_of(walked[-1], handle)
            if stat.S_ISREG(mode):
                raise
            raise untrusted(self._top.joinpath(*walked), kind_of(mode)) from None

    def _make_top(self) -> None:
        """Make the folder that the user named, and its parents, durable; once."""
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
            with contextlib.suppress(PermissionError):  # the folder above belongs to another user
                sync_directory(self._top.absolute().parent)
        self._durable.add(())

    # Reading.

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open a plain file; yield its descriptor and size."""
        try:
            handle = self._open_plain(key)
            try:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise untrusted(self.path / key, kind_of(status.st_mode))
                yield handle, status.st_size
            finally:
                close_quietly(handle)
        except OSError:
            with typed_errors(self.path, key):
                raise

    def _open_plain(self, key: str) -> int:
        """Open what is under a key, without waiting for a pipe; the caller closes the descriptor."""
        *within, name = components(key, self.path)
        kept = getattr(_kept, "handles", None)
        directory = None if kept is None else kept.get((self, tuple(within)))
        if directory is None:
            try:
                directory = self._walk(within)
            except NotADirectoryError as error:  # a file on the way: the key does not exist
                raise FileNotFoundError(
                    errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / key)
                ) from error
            if kept is not None:
                kept[self, tuple(within)] = directory
        try:
            return os.open(name, _FILE, dir_fd=directory)
        except OSError as error:
            if error.errno in UNOPENED:
                raise untrusted(self.path / key, kind_of(mode_of(name, directory))) from None
            raise
        finally:
            if kept is None:
                close_quietly(directory)

    def exists(self, key: str) -> bool:
        *within, name = components(key, self.path)
        with typed_errors(self.path, key):
            try:
                with self.directory(within) as directory:
                    mode_of(name, directory)
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        within = components(prefix, self.path) if prefix else []
        with typed_errors(self.path, prefix):
            try:
                with self.directory(within) as directory:
                    return sorted(os.listdir(directory))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def files(self) -> list[str]:
        """Return the keys of every file below the folder, and of every link; links are not followed.

        A folder that is nested deeper than any of a store is one key, and not listed.
        """
        keys: list[str] = []
        todo: list[tuple[str, ...]] = [()]
        while todo:
            within = todo.pop()
            path = self.path.joinpath(*within)
            try:
                with (
                    typed_errors(path),
                    self.directory(within) as directory,
                    os.scandir(directory) as entries,
                ):
                    for entry in entries:
                        inner = (*within, entry.name)
                        if len(inner) <= MOST_LEVELS and entry.is_dir(follow_symlinks=False):
                            todo.append(inner)
                        else:
                            keys.append("/".join(inner))
            except FileNotFoundError:
                continue  # a staging folder may vanish while it is listed: its writer removes it
            except (NotADirectoryError, UntrustedStoreError):
                # A link or a file was put in the place of the folder meanwhile.
                keys += ["/".join(within)] if within else []
        return sorted(keys)

    def free_bytes(self) -> int:
        """Return the bytes that are free on the disk where the folder is, or will be."""
        current = self._top
        with expecting_folders(self.path):
            while is_missing(current):
                current = current.parent
            disk = os.statvfs(current)
            return disk.f_bavail * disk.f_frsize

    # Writing.

    @contextlib.contextmanager
    def stage(self, *keys: str) -> Iterator[list["NewObject"]]:
        """Begin objects: `with folder.stage(key) as (new,): new.write(…); new.publish()`.

        An object that is not published inside the block is removed.
        """
        with contextlib.ExitStack() as stack:
            for attempt in range(_ATTEMPTS):
                with expecting_folders(self.path, keys[0] if keys else ""):
                    try:
                        directory = stack.enter_context(self.directory(_STAGING, make=True))
                        new = [stack.enter_context(NewObject(self, key, directory)) for key in keys]
                        break
                    except FileNotFoundError:
                        # Another writer removed the empty staging folder after `directory` made it.
                        if attempt == _ATTEMPTS - 1:
                            raise
            yield new

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object under a free name; return False if the name is taken.

        On return an object of that name is durable, and so is its name.
        Raises StorageFull, TransientIOError or StorageError, and then leaves nothing behind.
        """
        with self.stage(key) as (new,):
            new.write(data)
            return new.publish()

    def replace(self, key: str, data: bytes) -> None:
        """Write a file, durably, in the place of one that has its name: readers see the old or the new one.

        Only for files that no reader of the store needs. Raises StorageFull, TransientIOError or StorageError.
        """
        with self.stage(key) as (new,):
            new.write(data)
            new.replace()

    def prove_exclusive(self) -> None:
        """Test, without a trace, that the second of two objects of one name is refused: all else rests on it.

        Raises UnsafeFileSystem if it is accepted.
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
                found="a file system on which a second file replaced the first",
                remedy=COPY_HERE,
            )

    def remove(self, key: str) -> None:
        """Remove an object, if it exists.

        Only for a writer that holds the folder alone (`lease`): another may have found the object good.
        """
        *within, name = components(key, self.path)
        gone = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with typed_errors(self.path, key), gone, self.directory(within) as directory:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            sync(directory)

    def sync(self, key: str) -> None:
        """Make the names in a folder durable."""
        with typed_errors(self.path, key), self.directory(components(key, self.path)) as directory:
            sync(directory)

    def sweep(self) -> None:
        """Remove the staged files of killed writers. Only for a writer that holds the folder alone."""
        with typed_errors(self.path, STAGING):
            try:
                with self.directory(_STAGING) as directory:
                    for name in os.listdir(directory):
                        os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                return
        self.tidy()

    def tidy(self) -> None:
        """Remove the staging folder if it is empty; the next writer makes it anew."""
        *within, name = _STAGING
        with contextlib.suppress(OSError, UntrustedStoreError), self.directory(within) as directory:
            os.rmdir(name, dir_fd=directory)
