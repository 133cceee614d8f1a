"""Reads of the plain files of a local store, however its folders are walked (`local.Folder`, `paths.PathFolder`)."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from ..format.constants import MAX_JSON_BYTES
from .place import Place, check_size
from .posix import read_at, read_through


class PlainFiles(Place):
    """A place whose objects are plain files, which are opened and read by descriptors."""

    can_list = True

    @abstractmethod
    def _opened(self, key: str) -> AbstractContextManager[tuple[int, int]]:
        """Open a plain file, and only that; its descriptor and size."""

    def read(self, key: str, most: int = MAX_JSON_BYTES) -> bytes:
        with self._opened(key) as (handle, size):
            check_size(size, most, self.path / key)  # before anything is allocated
            return read_at(handle, 0, size)

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        with self._opened(key) as (handle, size):
            return read_at(handle, offset, max(0, min(size - offset, length))), size

    def read_through(
        self,
        key: str,
        offset: int,
        length: int,
        take: Callable[[NDArray[np.uint8]], None],
        place: Callable[[], NDArray[np.uint8] | None] = lambda: None,
    ) -> int:
        with self._opened(key) as (handle, size):
            read_through(handle, offset, max(0, min(size - offset, length)), take, place)
            return size

    def size(self, key: str) -> int:
        with self._opened(key) as (_, size):
            return size
