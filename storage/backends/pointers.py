"""Pointers of Git LFS: short texts in the place of files, in a clone whose large files were not fetched.

version https://git-lfs.github.com/spec/v1
oid sha256:4d7a…
size 12345
"""

import contextlib
from typing import Final, TypeVar

from ..errors import LogitStoreError
from .place import Place

_BEGINNING: Final = b"version https://git-lfs.github.com/spec/"
_MOST_BYTES: Final = 1024
"""A pointer is shorter, by its specification."""
_FETCH: Final = "fetch the files: `git lfs pull` in the clone, or `hf download` instead of the clone; do not repair the store"
_Error = TypeVar("_Error", bound=LogitStoreError)


def is_pointer(data: bytes) -> bool:
    r"""Return whether the bytes of a file are a pointer.

    >>> is_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"), is_pointer(b"{}\n")
    (True, False)
    """
    return len(data) < _MOST_BYTES and data.startswith(_BEGINNING)


def naming_pointer(error: _Error, data: bytes) -> _Error:
    """Return an error of a file, of other words if the file is a pointer. data: of the file, or its beginning."""
    if not is_pointer(data):
        return error
    found = "a pointer of Git LFS: the clone was made without the large files"
    return type(error)(error.where, expected=error.expected, found=found, remedy=_FETCH)


def naming_pointer_at(error: _Error, folder: Place, key: str) -> _Error:
    """Return an error of a file in a folder, of other words if the file is a pointer. It is read once more."""
    with contextlib.suppress(LogitStoreError, OSError):
        data, size = folder.read_range(key, 0, _MOST_BYTES)
        if size == len(data):
            return naming_pointer(error, data)
    return error
