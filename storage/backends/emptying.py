"""Objects of a store removed, many at once.

| | `local.Folder` | `object_folder.ObjectFolder` |
| --- | --- | --- |
| objects | unlinked folder by folder, each folder synced once | deleted, 24 requests at a time |
| folders | removed once they are empty | none |

Nothing is followed: a link is removed itself, and a folder that is one is an error.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Final

from ..errors import ConfigError, UntrustedStoreError
from .local import MOST_LEVELS, Folder
from .object_folder import ObjectFolder
from .place import Place, components
from .posix import typed_errors
from .system import sync

_remove = os.unlink
_AT_ONCE: Final = 24
"""Deletions in a bucket at a time."""


def check_removable(folder: Place) -> None:
    """Refuse a place in which nothing can be removed. Raises ConfigError."""
    if not isinstance(folder, Folder | ObjectFolder):
        raise ConfigError(
            str(folder.path),
            expected="a store on a local disk, or in a bucket through obstore",
            found="a store that is read through Zarr, which is read-only",
            remedy="name the store where it was written",
        )


def remove_objects(
    folder: Place, keys: Sequence[str], done: Callable[[int], None] = lambda count: None
) -> None:
    """Remove objects; on a disk in this order. Those that are gone already are passed over.

    done: called with numbers of objects that were removed. Raises StorageError.
    """
    if isinstance(folder, Folder):
        for within, group in groupby(keys, lambda key: key.rpartition("/")[0]):
            done(_unlink(folder, within, [key.rpartition("/")[2] for key in group]))
        return
    assert isinstance(folder, ObjectFolder)

    def delete(key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            folder.delete(key)

    with ThreadPoolExecutor(_AT_ONCE, "logitstore-rm") as pool:
        for _ in pool.map(delete, keys):
            done(1)


def _unlink(folder: Folder, within: str, names: Sequence[str]) -> int:
    """Unlink files of one folder, and make that durable; return their number."""
    inner = components(within, folder.path) if within else []
    with typed_errors(folder.path, within):
        try:
            with folder.directory(inner) as directory:
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        _remove(name, dir_fd=directory)
                sync(directory)
        except (FileNotFoundError, NotADirectoryError):
            return 0
    return len(names)


def remove_empty_folders(folder: Place, name: str) -> None:
    """Remove the folder of a part, and those in it, as far as they are empty. folder: of the store."""
    if not isinstance(folder, Folder):
        return

    def clear(within: list[str]) -> None:
        with folder.directory(within) as directory, os.scandir(directory) as entries:
            inner = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for each in inner if len(within) < MOST_LEVELS else ():
            clear([*within, each])
        with folder.directory(within[:-1]) as directory, contextlib.suppress(OSError):
            os.rmdir(within[-1], dir_fd=directory)

    with contextlib.suppress(FileNotFoundError, NotADirectoryError, UntrustedStoreError):
        clear(components(name, folder.path))
