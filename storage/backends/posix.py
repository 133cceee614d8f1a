"""Calls of the operating system, with typed errors that name the file.

`local` and `lease` call these helpers, or `os` itself inside `typed_errors`.
"""

import contextlib
import errno
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader, BufferedWriter
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import REFUSED, TRANSIENT, StorageError, StorageFull, StorageRefused, TransientIOError
from .system import NAMELESS, check_writes, fcntl, flags, read_into, read_some, sync

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors of `link` on a file system without hard links."""
_PASS: Final = (FileNotFoundError, FileExistsError, NotADirectoryError)
"""Errors that callers expect: they are answers."""
DIRECTORY: Final = flags("O_RDONLY", "O_DIRECTORY")
_PLAIN: Final = flags("O_RDONLY", "O_NONBLOCK")
LINK: Final = "a symbolic link"
"""The kind of a link, in messages."""
PIECE_BYTES: Final = 1 << 20
"""Bytes that are read and checked at a time: as much as stays in a core's own cache."""
_PAGE: Final = 4096
_APART: Final = 64
"""Distance of a buffer and its source within a page, in bytes."""
LARGE: Final = 1 << 16
"""Bytes from which a target is read into, instead of copied to."""
CALL_BYTES: Final = 1 << 30
"""Most bytes of one read or write: Linux moves no more at once."""


@contextlib.contextmanager
def typed_errors(folder: PurePath, key: str = "") -> Iterator[None]:
    """Turn OSError into a typed error about a folder, or what is under a key in it; the errors of `_PASS` pass.

    The path is made for an error alone: to make it takes as long as to open a file.
    """
    try:
        yield
    except (*_PASS, StorageError):
        raise
    except OSError as error:
        kind: type[StorageError] = StorageError
        expected, remedy = "a path that can be read and written", "check the path and its permissions"
        if error.errno in _FULL:
            kind, expected = StorageFull, "room to write"
            remedy = "free space and run the same command again; what was committed is intact"
        elif error.errno in TRANSIENT:
            kind, expected = TransientIOError, "a working file system"
            remedy = "run the same command again; what was committed is intact"
        elif error.errno in REFUSED:
            kind = StorageRefused
        found = f"{error.strerror or error} (errno {error.errno})"
        raise kind(str(folder / key), expected=expected, found=found, remedy=remedy) from error


@contextlib.contextmanager
def expecting_folders(folder: PurePath, key: str = "") -> Iterator[None]:
    """Turn OSError into a typed error, as `typed_errors`; a missing folder on the way is one, too."""
    try:
        with typed_errors(folder, key):
            yield
    except (FileNotFoundError, NotADirectoryError) as error:
        is_file = isinstance(error, NotADirectoryError)
        raise (StorageRefused if is_file else StorageError)(
            str(folder / key),
            expected="folders at every level of the path",
            found="a file" if is_file else "a folder that was removed meanwhile",
            remedy="choose another path" if is_file else "run the same command again",
        ) from error


def kind_of(mode: int) -> str:
    """Name the kind of file that a mode (`st_mode`) states, with its article."""
    kinds = (
        (stat.S_ISLNK, LINK),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISREG, "a file"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device or a socket")


def mode_of(name: str, directory: int) -> int:
    """Return the mode of a file in an open directory; a link is not followed."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode


def is_missing(path: Path) -> bool:
    """Return whether a path leads to nothing. Raises OSError."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    return False


def read_at(handle: int, offset: int, length: int) -> bytes:
    """Read `length` bytes from `offset`; fewer if the file ends before."""
    pieces = []
    while length:
        piece = read_some(handle, min(length, CALL_BYTES), offset)
        if not piece:
            break
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def room_for(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Allocate an array that a file is read into; if it is large, half a page apart from the file's bytes.

    The kernel copies at a quarter of its speed to a target that lies a few bytes behind its source within a page, as NumPy's
    arrays do: each load then waits for the store before it (measured: docs/log.md, 2026-11-30).
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    memory = np.empty(size + _PAGE, np.uint8)
    begin = (_PAGE // 2 - memory.ctypes.data) % _PAGE
    return memory[begin : begin + size].view(dtype).reshape(shape)


def read_through(
    handle: int,
    offset: int,
    length: int,
    take: Callable[[NDArray[np.uint8]], None],
    place: Callable[[], NDArray[np.uint8] | None] = lambda: None,
) -> None:
    """Pass the bytes from `offset` to `take`, in pieces; a piece is valid until `take` returns.

    place: gives the target of the next bytes, if they are to be read into it; otherwise they pass through a buffer. A piece
    stays in a core's cache while it is checked.
    """
    buffer: NDArray[np.uint8] | None = None
    stop = offset + length
    while offset < stop:
        most = min(stop - offset, PIECE_BYTES)
        target = place()
        if target is None:
            if buffer is None:
                buffer = np.empty(most + 2 * _PAGE, np.uint8)
            target = buffer[-buffer.ctypes.data % _PAGE + (offset - _APART) % _PAGE :]
        piece = target[:most]
        count = read_into(handle, piece.data, offset)
        if not count:
            break
        take(piece[:count])
        offset += count


def check_writable(path: Path, named: PurePath | None = None) -> None:
    """Refuse a folder that cannot be made or written to, before work is done for it; leave no trace.

    named: the folder in messages. Raises StorageRefused, StorageFull, StorageError, UnsupportedSystem.
    """
    check_writes(str(named or path))
    with expecting_folders(named or path):
        current = path.absolute()
        while is_missing(current):
            current = current.parent
        if not current.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(current))
        handle = _unnamed_file(current)
        try:
            os.write(handle, bytes(_PAGE))
            sync(handle)  # some file systems find out here that they are full
        finally:
            close_quietly(handle)


def _unnamed_file(folder: Path) -> int:
    """Open a new file without a name in a folder, or with one that is removed at once."""
    if NAMELESS:
        with contextlib.suppress(OSError):
            return os.open(folder, flags("O_WRONLY") | NAMELESS, 0o600)
    name = folder / f".logitstore-{secrets.token_hex(8)}"
    handle = os.open(name, flags("O_WRONLY", "O_CREAT", "O_EXCL", "O_NOFOLLOW"), 0o600)
    os.unlink(name)
    return handle


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file to read it; a link is followed. Raises OSError, for a pipe or a device too, without waiting."""
    handle = os.open(path, _PLAIN)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"{kind_of(mode)} in the place of a file", str(path))
        return open(handle, "rb")
    except BaseException:
        close_quietly(handle)
        raise


def read_plain(path: Path) -> bytes:
    """Return the bytes of a plain file. Raises OSError, for a pipe or a device too, without waiting."""
    with open_plain(path) as file:
        return file.read()


def close_quietly(handle: int) -> None:
    """Close a descriptor that was not written to: nothing can be lost."""
    with contextlib.suppress(OSError):
        os.close(handle)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, DIRECTORY)
    try:
        sync(handle)
    finally:
        close_quietly(handle)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[tuple[Path, BufferedWriter]]:
    """Open a new file beside `path`, locked while it is written, and remove it at the end if it is still there."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        with temporary.open("xb") as file:
            try:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                if is_missing(temporary):
                    continue  # `remove_leftovers` was faster than the lock
                yield temporary, file
                return
            finally:
                temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file durably, by a rename: readers see the old content or the new one.

    Missing parent folders are made; what killed calls for this file have left is removed. Raises StorageFull or
    StorageError, and then keeps the old file.
    """
    check_writes(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with temporary_beside(path) as (temporary, file):
            file.write(content)
            file.flush()
            sync(file.fileno())
            temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        full = error.errno in _FULL
        refused = error.errno in REFUSED or isinstance(error, FileExistsError)
        raise (StorageFull if full else StorageRefused if refused else StorageError)(
            str(path),
            expected=f"room for {len(content):,} bytes in a writable folder",
            found=error.strerror or str(error),
            remedy="make room and run the same command again" if full else "check the folder and its rights",
        ) from error


def remove_leftovers(path: Path) -> None:
    """Remove the files that killed calls of `replace_file` left beside `path`; those of running calls stay."""
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if re.fullmatch(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}", name):
                with path.with_name(name).open("rb") as file, contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.with_name(name).unlink(missing_ok=True)
