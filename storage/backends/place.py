"""Places of stores: reading objects by key, wherever they lie.

`local.Folder` is a place that can be written to, `remote.RemoteFolder` one that is read through Zarr's stores.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import Protocol, runtime_checkable
from urllib.parse import SplitResult, urlsplit

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, LimitExceeded, UntrustedStoreError
from ..format.constants import MAX_JSON_BYTES
from ..format.documents import shorten


@dataclass(frozen=True)
class SealedShard:
    """An object whose size and digest are sealed."""

    key: str
    """Its key in the folder of the part."""
    size: int
    """Bytes."""
    sha256: str
    """Of all of them, in hexadecimal digits."""


@runtime_checkable
class Place(Protocol):
    """A folder of a store, whose objects are read by key ("peak/c.0.3")."""

    path: PurePath
    """The folder, as messages show it."""
    can_list: bool
    """Whether the place lists its files."""

    def sub(self, name: str) -> "Place":
        """Return the folder of a part."""

    def kind(self) -> str:
        """Return "nothing", "a folder" or "a file": as much as is known of the path that the user named."""

    def read(self, key: str, most: int = MAX_JSON_BYTES) -> bytes:
        """Return a whole object. Raises FileNotFoundError, LimitExceeded if it is larger than `most` bytes."""

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        """Return `length` bytes from `offset` (fewer at the end), and the object's size. Raises FileNotFoundError."""

    def read_through(
        self,
        key: str,
        offset: int,
        length: int,
        take: Callable[[NDArray[np.uint8]], None],
        place: Callable[[], NDArray[np.uint8] | None] = lambda: None,
    ) -> int:
        """Pass `length` bytes from `offset` (fewer at the end) to `take`, in pieces; return the object's size.

        A piece is valid until `take` returns. place: may be asked for the target of the next bytes, of which the next piece is
        then the beginning. Raises FileNotFoundError.
        """

    is_remote: bool = False
    """Whether each read is a request over a network, of which many are made at once."""

    def read_ahead(self, keys: Sequence[str]) -> AbstractContextManager[None]:
        """Return a block inside which `read` of these keys, by this thread, costs no request each."""
        return nullcontext()

    def read_sealed(
        self,
        shard: SealedShard,
        offset: int,
        length: int,
        take: Callable[[NDArray[np.uint8]], None],
        place: Callable[[], NDArray[np.uint8] | None] = lambda: None,
    ) -> int:
        """Do what `read_through` does, of a shard that a remote place may keep on a local disk."""
        return self.read_through(shard.key, offset, length, take, place)

    def keep(self, shard: SealedShard, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Fetch a shard to the local disk, and return whether it is there; False where none are kept.

        wanted: asked meanwhile; the fetch is given up once it says no.
        """
        return False

    def holds(self, shard: SealedShard) -> bool:
        """Return whether a shard is on the local disk."""
        return False

    def announce(self, shard: SealedShard) -> None:
        """Take note that a whole shard will be needed: the first read of any of it keeps it."""
        return

    @property
    def keeps(self) -> bool:
        """Whether there is a local disk for shards, with room."""
        return False

    def forget(self, shard: SealedShard) -> bool:
        """Remove a shard from the local disk whose bytes are not those of its seal; return whether it was there."""
        return False

    def size(self, key: str) -> int:
        """Return the bytes of an object. Raises FileNotFoundError."""

    def exists(self, key: str) -> bool:
        """Return whether the name is taken, by whatever kind of file."""

    def names(self, prefix: str = "") -> list[str]:
        """Return the names directly under `prefix`, sorted; none if there is no such folder."""

    def files(self) -> list[str]:
        """Return the keys of all files below the folder, sorted."""


def split_url(text: str) -> SplitResult:
    """Split a URL or a path. Raises ConfigError for a URL without a meaning."""
    try:
        return urlsplit(text)
    except ValueError as error:
        raise ConfigError(
            shorten(text), expected="a path or a URL", found=str(error), remedy="correct the URL"
        ) from None


def check_size(size: int, most: int, where: PurePath) -> None:
    """Refuse an object that is larger than a reader expects. Raises LimitExceeded."""
    if size > most:
        raise LimitExceeded(
            str(where),
            expected=f"at most {most} bytes",
            found=f"{size} bytes",
            remedy="do not use this store: logitstore writes no such file",
        )


def components(key: str, where: PurePath) -> list[str]:
    """Split a key into names. Raises UntrustedStoreError if one of them leads out of the store."""
    if not _is_inside(key):
        raise UntrustedStoreError(
            str(where),
            expected="keys inside the store",
            found=repr(key)[:80],
            remedy="do not use this store: logitstore writes no such key",
        )
    return key.split("/")


@lru_cache(maxsize=1024)
def _is_inside(key: str) -> bool:
    """Return whether a key names something inside the store. A writer asks it of each key several times."""
    return not any(
        part in ("", ".", "..") or "\0" in part or len(os.fsencode(part)) > 255 for part in key.split("/")
    )
