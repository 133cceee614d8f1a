"""What does the operating system say, and what does that mean to who reads or writes a store?

The calls that `files` and `lease` make go through these helpers or through `os` itself; their errors become the
typed errors of `errors`, with the file in the message.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import StorageError, StorageFull, TransientIOError

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRANSIENT: Final = {
    errno.EIO,
    errno.EINTR,
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What `link` fails with on a file system without hard links."""
_PASS: Final = (FileNotFoundError, FileExistsError, NotADirectoryError)
"""Errors that say what there is; callers expect them."""
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_RENAME_NOREPLACE: Final = 1
PIECE_BYTES: Final = 1 << 20
"""Bytes that are read and looked at at a time: as much as stays in a core's own cache."""
_PAGE: Final = 4096
_APART: Final = 64
"""How far source and target lie apart within a page."""
CALL_BYTES: Final = 1 << 30
"""Most bytes that one read or write is asked for: Linux moves no more at once."""


@contextlib.contextmanager
def typed_errors(where: PurePath) -> Iterator[None]:
    """Turn OSError into the error that says what to do. FileNotFoundError and the like pass."""
    try:
        yield
    except (*_PASS, StorageError):
        raise
    except OSError as error:
        found = f"{error.strerror or error} (errno {error.errno})"
        if error.errno in _FULL:
            raise StorageFull(
                str(where),
                expected="room to write",
                found=found,
                remedy="free space and run the same command again; what was committed is intact",
            ) from error
        if error.errno in _TRANSIENT:
            raise TransientIOError(
                str(where),
                expected="a working file system",
                found=found,
                remedy="run the same command again; what was committed is intact",
            ) from error
        raise StorageError(
            str(where),
            expected="a path that can be read and written",
            found=found,
            remedy="check the path and its permissions",
        ) from error


@contextlib.contextmanager
def expecting_folders(path: PurePath) -> Iterator[None]:
    try:
        with typed_errors(path):
            yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(
            str(path),
            expected="folders all the way",
            found="a file on the way" if isinstance(error, NotADirectoryError) else "one that vanished",
            remedy="choose another path"
            if isinstance(error, NotADirectoryError)
            else "run the same command again",
        ) from error


def kind_of(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISREG, "a file"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device or a socket")


def rename_noreplace(from_directory: int, source: str, to_directory: int, target: str) -> None:
    """Rename a file to a name that is free (Linux). Raises FileExistsError, or OSError where that is not known."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    arguments = (from_directory, os.fsencode(source), to_directory, os.fsencode(target), _RENAME_NOREPLACE)
    if library.renameat2(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mode_of(name: str, directory: int) -> int:
    return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode


def is_missing(path: Path) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    return False


def read_at(handle: int, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`, fewer where the file ends before."""
    pieces = []
    while length:
        piece = os.pread(handle, min(length, CALL_BYTES), offset)
        if not piece:
            break
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_through(handle: int, offset: int, length: int, take: Callable[[NDArray[np.uint8]], None]) -> None:
    """Give `take` the bytes from `offset`, piece by piece; a piece is there until the next is asked for.

    Pieces stay in a core's cache while they are looked at. The kernel copies two to four times as fast where source
    and target lie alike within sixteen bytes and not alike within a page, which chunks of a file and their places in
    memory seldom do: so they come through a buffer that is laid so (measured: docs/log.md, 2026-11-21).
    """
    buffer = np.empty(min(length, PIECE_BYTES) + 2 * _PAGE, dtype=np.uint8)
    first = -buffer.ctypes.data % _PAGE
    stop = offset + length
    while offset < stop:
        begin = first + (offset - _APART) % _PAGE
        piece = buffer[begin : begin + min(stop - offset, PIECE_BYTES)]
        found = os.preadv(handle, [piece.data], offset)
        if not found:
            break
        take(piece[:found])
        offset += found


def close_quietly(handle: int) -> None:
    """Close what was not written: there is nothing that could be lost."""
    with contextlib.suppress(OSError):
        os.close(handle)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        close_quietly(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it, and rename it: readers see the old one or the new one.

    Missing parent folders are made. Raises StorageFull or StorageError; what stood there is then still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (StorageFull if full else StorageError)(
            str(path),
            expected=f"room for {len(content):,} bytes in a folder that can be written to",
            found=error.strerror or str(error),
            remedy="make room and run the same command again" if full else "check the folder and its rights",
        ) from error
