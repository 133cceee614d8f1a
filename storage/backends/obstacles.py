"""Obstacles of a writer: folders that cannot be written to, and files in the place of folders."""

import contextlib
import os

from ..errors import StorageRefused, UntrustedStoreError
from .local import Folder
from .place import components
from .posix import check_writable, typed_errors
from .writable import Writable


def check_folder(folder: Writable) -> None:
    """Refuse a folder that cannot be made or written to, before work is done for it; leave no trace.

    Of a bucket it is also tested whether it keeps writers apart. Raises StorageRefused, StorageFull, StorageError.
    """
    if not isinstance(folder, Folder):
        folder.prove_exclusive()
        return
    check_writable(folder.top, folder.path)
    for name in folder.names():
        refused = False
        no_folder = contextlib.suppress(FileNotFoundError, NotADirectoryError, UntrustedStoreError)
        with no_folder, typed_errors(folder.path / name), folder.directory([name]) as directory:
            refused = not os.access(".", os.W_OK | os.X_OK, dir_fd=directory)
        if refused:
            raise StorageRefused(
                str(folder.path / name),
                expected="a folder that can be written to",
                found="a folder without that permission",
                remedy="check its permissions, or name another place",
            )


def file_on_the_way(folder: Folder, key: str) -> str | None:
    """Return the key of a plain file in the place of a folder on the way to `key`; None if there is none."""
    within = components(key, folder.path)[:-1]
    for depth in range(len(within) + 1):
        with typed_errors(folder.path / key):
            try:
                with folder.directory(within[:depth]):
                    pass
            except FileNotFoundError:
                break
            except NotADirectoryError:
                return "/".join(within[:depth]) or None
    return None
