"""Folders of stores in buckets, whose objects are put once, under free names (`conditional`)."""

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import StorageRefused
from ..format.constants import STAGING
from .conditional import PATIENCE_S, prove_exclusive, put_new
from .place import components
from .remote_folder import RemoteFolder
from .store_errors import TO_READ
from .writable import ENDLESS
from .zarr_bytes import ZarrBytes


class ObjectFolder(RemoteFolder):
    """A folder of a store in a bucket, for objects that are written once (`conditional`)."""

    is_remote = True

    def __init__(self, objects: ZarrBytes, inside: Sequence[str] = (), *, is_held: bool = False) -> None:
        super().__init__(objects, inside)
        self._is_held = is_held

    def __repr__(self) -> str:
        return f"ObjectFolder({str(self.path)!r})"

    def sub(self, name: str) -> "ObjectFolder":
        inside = (*self._inside, *components(name, self.path))
        return ObjectFolder(self._objects, inside, is_held=self._is_held)

    # A bucket has no folders to hold: what is compared before each commit is the log and the spec (`parts.binding`).

    @property
    def is_held(self) -> bool:
        """Whether `hold` gave the folder, or one above it."""
        return self._is_held

    def hold(self, *, make: bool = False) -> "ObjectFolder":
        """Return this folder. Nothing is made: a folder is there with its first object."""
        return ObjectFolder(self._objects, self._inside, is_held=True)

    def let_go(self) -> None:
        """Do nothing: nothing is held open."""

    def check_in_place(self) -> None:
        """Do nothing: the prefix of a URL leads nowhere else."""

    def sync(self, key: str) -> None:
        """Do nothing: an object is durable, and listed, once it was put."""

    def free_bytes(self) -> int:
        """Return `ENDLESS`: a bucket states no limit."""
        return ENDLESS

    @contextlib.contextmanager
    def stage(self, *keys: str) -> Iterator[list["NewRemoteObject"]]:
        """Begin objects, which are kept in memory until they are published."""
        yield [NewRemoteObject(self, key) for key in keys]

    def put_new(self, key: str, data: bytes) -> bool:
        """Put an object under a free name; return False if other bytes have the name. As `conditional.put_new`."""
        inner, where = self._key(key)
        return put_new(self._objects, inner, where, data)

    def put_once(self, key: str, data: bytes) -> str | None:
        """Put an object by one request, if its name is free; None if it was stored, else what the answer was."""
        inner, where = self._key(key)
        failure = self._objects.ask(where, self._objects.create, inner, data, PATIENCE_S)
        return None if failure is None else failure.found

    def replace(self, key: str, data: bytes) -> None:
        """Put an object, whatever has its name: for examinations, and for files that no reader of the store needs."""
        inner, where = self._key(key)
        with _permission("to write"):
            self._objects.ask(where, self._objects.put, inner, data)

    def delete(self, key: str) -> None:
        """Delete an object: for examinations, and of parts that are gone. Whether a missing one raises FileNotFoundError differs by place."""
        inner, where = self._key(key)
        with _permission("to delete"):
            self._objects.ask(where, self._objects.delete, inner)

    def prove_deletes(self) -> None:
        """Put an object of a free name and delete it. Raises StorageRefused, before anything else is changed."""
        key = f"{STAGING}/{secrets.token_hex(12)}"
        self.put_new(key, b"")
        self.delete(key)

    def prove_exclusive(self) -> None:
        """Test that the second of two objects of one name is refused. As `conditional.prove_exclusive`."""
        prove_exclusive(self._objects)

    def tidy(self) -> None:
        """Remove the probes of killed writers. A part has none: they lie at the top of the store."""
        for name in () if self._inside else self.names(STAGING):
            with contextlib.suppress(FileNotFoundError):
                self.delete(f"{STAGING}/{name}")


@contextlib.contextmanager
def _permission(what: str) -> Iterator[None]:
    """Name the right that is wanted, where a request is refused that is none to read."""
    try:
        yield
    except StorageRefused as error:
        if error.expected != TO_READ:
            raise
        raise StorageRefused(
            error.where,
            expected=f"permission {what} the object",
            found=error.found,
            remedy="check the credentials and their rights",
        ) from None


class NewRemoteObject:
    """An object in memory, to be put whole under its name."""

    def __init__(self, folder: ObjectFolder, key: str) -> None:
        self._folder, self._key = folder, key
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> None:
        """Append bytes (any contiguous buffer)."""
        self._pieces.append(bytes(data))

    def publish(self) -> bool:
        """Put the object; return False if other bytes have its name."""
        pieces, self._pieces = self._pieces, []
        return self._folder.put_new(self._key, pieces[0] if len(pieces) == 1 else b"".join(pieces))
