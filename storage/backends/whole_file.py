"""A file that is written piece by piece and appears whole: under a temporary name, flushed, and then named.

.wide.parquet.3f9a…   written, flushed to the disk          (a kill leaves it, the next call removes it)
wide.parquet          linked, or renamed over an old one    (readers see all of it or nothing)
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path

from ..errors import LogitStoreError, NameTaken, StorageFull
from .posix import (
    NO_LINKS,
    expecting_folders,
    is_missing,
    remove_leftovers,
    sync_directory,
    temporary_beside,
)
from .system import check_writes, sync


@contextlib.contextmanager
def whole_file(path: Path, *, replace: bool) -> Iterator[BufferedWriter]:
    """Yield a new file, which is at `path` once the block is left without an error. Missing parent folders are made.

    replace: whether a file that is there by then is replaced. Raises NameTaken otherwise, StorageFull or StorageError if it
    cannot be written; nothing is then left of it.
    """
    check_writes(str(path))
    try:
        with expecting_folders(path):
            _make_folder(path.parent)
            remove_leftovers(path)
            with temporary_beside(path) as (temporary, file):
                yield file
                file.flush()
                sync(file.fileno())
                _publish(temporary, path, replace=replace)
            sync_directory(path.parent)
    except FileExistsError as error:
        if isinstance(error, LogitStoreError):
            raise
        raise name_taken(path, "a file that was written meanwhile") from error


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises NotADirectoryError for a file on the way, OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def _publish(temporary: Path, path: Path, *, replace: bool) -> None:
    """Give a finished file its name. Raises FileExistsError where another has it and is not replaced."""
    if replace:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if not is_missing(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)


def name_taken(path: Path, found: str) -> NameTaken:
    """Return the error of a file in the place of a new one."""
    return NameTaken(
        str(path),
        expected="a free name, or the same export",
        found=found,
        remedy="choose another name, or replace it with --force (force=True)",
    )


def check_room(path: Path, size: int) -> None:
    """Refuse a disk without room for a new file of some bytes. Raises StorageFull."""
    folder = path.absolute().parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # the error of the first write names the reason
        return
    if size > free:
        raise StorageFull(
            str(path),
            expected=f"room for {size:,} bytes",
            found=f"{free:,} free bytes",
            remedy="free space, or choose another disk, and run the same command again",
        )
