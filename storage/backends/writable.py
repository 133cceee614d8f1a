"""Places that stores are written to: the objects of a `Place`, put under free names, whole, once and durably.

| | `local.Folder` | `remote.ObjectFolder` |
| --- | --- | --- |
| `put_new` | temporary file, fsync, link, fsync of the directory | conditional PUT, then read back if the answer leaves doubt |
| `hold` | a descriptor: the folder stays the same one, whatever becomes of its path | nothing: the log and the spec are compared |
| lease | a lock of the file system | none: nothing is removed (`lease.Unleased`) |
"""

from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, runtime_checkable

from .place import Place

ENDLESS: Final = 1 << 62
"""Free bytes of a place that states no limit."""


@runtime_checkable
class Staged(Protocol):
    """An object that is written piece by piece and has no name yet."""

    def write(self, data: Any) -> None:
        """Append bytes (any contiguous buffer), which may change after the call."""

    def publish(self) -> bool:
        """Give the object its name, durably; return False if the name is taken, by other bytes or by the same."""


@runtime_checkable
class Writable(Place, Protocol):
    """A folder of a store that can be written to."""

    is_remote: bool
    """Whether each object costs a round trip, so that several are put at once."""

    def sub(self, name: str) -> "Writable":
        """Return the folder of a part."""

    @property
    def is_held(self) -> bool:
        """Whether the folder, or one above it, is held open."""

    def hold(self, *, make: bool = False) -> "Writable":
        """Return this very folder, held open as far as the place can. make: make it if it is missing."""

    def let_go(self) -> None:
        """Close a held folder; the object is not used after that."""

    def check_in_place(self) -> None:
        """Refuse to go on in a held folder that its path no longer leads to. Raises WrongStore."""

    def stage(self, *keys: str) -> AbstractContextManager[list[Any]]:
        """Begin objects, each a `Staged`; one that is not published inside the block leaves nothing behind."""

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object under a free name, durably; return False if other bytes have the name.

        Whether the same bytes, which another writer put, count as ours differs by place: compare them where it matters.
        Raises StorageError.
        """

    def prove_exclusive(self) -> None:
        """Test, without a trace, that the second of two objects of one name is refused. Raises UnsafeFileSystem."""

    def sync(self, key: str) -> None:
        """Make the names in a folder durable."""

    def tidy(self) -> None:
        """Remove what ended writers left under names that no reader knows, as far as that is harmless."""

    def free_bytes(self) -> int:
        """Return the bytes that are free; `ENDLESS` where nothing states them."""
