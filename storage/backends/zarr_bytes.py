"""Bytes of a Zarr store's objects, for any thread, with typed errors.

Only Zarr's stores are used, which map keys to bytes; its arrays, codecs and shards are not. The bytes pass the same
checks as those of a local file (`part_reader`, `journal`).

Zarr's stores are asynchronous. They run in the event loop that Zarr keeps in a thread for its own arrays, so that all
connections of a store belong to one loop. Neither that loop nor obstore's threads survive a fork: a call in the child
would wait for ever, so it is refused.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from ..errors import ConfigError, LogitStoreError
from . import store_errors
from .options import without
from .shard_cache import DiskError, ShardCache
from .store_errors import (
    Failure,
    ListingFailed,
    RangeIgnored,
    failure_of,
    is_missing,
    is_refused,
    status_of,
    summary_of,
    typed,
)

if TYPE_CHECKING:
    from zarr.abc.store import Store

log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
MOST_NAMES: Final = 1 << 20
"""Names directly under a prefix: more than the seal of any part has shards."""
MOST_KEYS: Final = 1 << 22
"""Objects of a whole store."""
_PIECE: Final = 1 << 20
"""Bytes of an answer that obstore gathers before it hands them over."""
_ONE_REQUEST: Final = 64 << 20
"""Most bytes of one request of a whole object, which the libraries' limits of time count from anew."""
_MAX_SIZES: Final = 1 << 16
"""Objects whose size is remembered."""
_obstore_process: int | None = None
"""The process that used obstore first: a process forked from it cannot use obstore."""
ListApart = Callable[[str, str, str, float], list[str]]
"""Lists in another process: (`names` or `keys`, prefix, place in messages, seconds) -> names."""


class ZarrBytes:
    """The objects of a Zarr store, to be read by any number of threads; shared by the folders of one store."""

    def __init__(
        self,
        store: "Store",
        name: str,
        reopen: "tuple[Callable[..., ZarrBytes], tuple[Any, ...]] | None" = None,
        list_apart: ListApart | None = None,
        cache: ShardCache | None = None,
        secrets: Sequence[str] = (),
    ) -> None:
        """name: the store in messages. reopen: how another process opens it; if None, from a copy of `store`.

        list_apart: lists its objects in place of `store`, within limits. cache: keeps its shards on the local disk.
        secrets: texts that no message shows.

        Raises ConfigError in a process that was forked from one that used obstore.
        """
        self.name = name
        self._store = store
        self._reopen = reopen
        self._process = os.getpid()
        self._sizes: dict[str, int] = {}
        kind = type(store)
        self._uses_obstore = kind.__name__ == "ObjectStore" and kind.__module__.startswith("zarr.")
        self.can_list = bool(store.supports_listing) and not _is_web_server(store)
        """Whether it lists its objects. Web servers do not, in any reliable way."""
        self.can_put = self._uses_obstore and not store.read_only and not _is_web_server(store)
        """Whether objects can be put, unless their names are taken."""
        self.is_proven = False
        """Whether the store was seen to refuse a second object of one name."""
        self.hides_missing = False
        """Whether a missing object is answered as one that must not be read, as by a bucket that may not be listed."""
        self.cache = cache
        self._secrets = tuple(secrets)
        self._warned = False
        self._list_apart = list_apart
        self._check_process()

    def __reduce__(self) -> tuple[object, ...]:
        if self._reopen is not None:
            return self._reopen
        try:
            if _is_memory(self._store):
                raise TypeError("it lies in the memory of this process")
            self._store.__reduce_ex__(4)
        except Exception as error:
            raise ConfigError(
                self.name,
                expected="a place that another process can open",
                found=f"a {type(self._store).__name__} that cannot be sent to one ({summary_of(error)})",
                remedy="open the store by its URL, or open it in each worker",
            ) from error
        return ZarrBytes, (self._store, self.name, None, None, self.cache)

    def warn_once(self, text: str) -> None:
        """Log a warning, the first one of this store."""
        if not self._warned:
            self._warned = True
            log.warning("%s", text)

    def _check_process(self) -> None:
        """Refuse a process that was forked after the store, or obstore, was used: it would wait for ever."""
        global _obstore_process
        here = os.getpid()
        if self._uses_obstore and _obstore_process is None:
            _obstore_process = here
        if here != self._process or (self._uses_obstore and here != _obstore_process):
            raise ConfigError(
                self.name,
                expected="a process started by spawn or forkserver",
                found="a process forked after the store was opened, in which reads would hang",
                remedy='pass multiprocessing_context="forkserver" to the DataLoader, or use threads',
            )

    def ask(
        self, where: str, request: Callable[..., Coroutine[Any, Any, _Answer]], *arguments: Any
    ) -> _Answer:
        """Call one of the coroutine functions below and return its answer.

        where: the object in messages. Raises FileNotFoundError, StorageError; ConfigError after a fork.
        """
        self._check_process()
        from zarr.core.sync import sync  # zarr takes half a second to import

        async def within_limits() -> _Answer:
            # Not the timeout of `sync`, which leaves the request running.
            return await asyncio.wait_for(request(*arguments), store_errors.TIMEOUT_S)

        try:
            return sync(within_limits())
        except MemoryError:
            raise
        except LogitStoreError as error:
            if (discreet := self._discreet(error)) is error:
                raise
            raise discreet from None
        except Exception as error:  # noqa: BLE001 - of the library
            self.raise_typed(error, where)

    def raise_typed(self, error: Exception, where: str) -> NoReturn:
        """Raise the typed error; from the library's own, unless that may show what no message shows."""
        raise self._discreet(typed(error, where)) from (None if self._secrets else error)

    def _discreet(self, error: Exception) -> Exception:
        """Return an error without the texts that no message shows."""
        if isinstance(error, LogitStoreError):
            found = without(error.found, self._secrets)
            if found != error.found:
                return type(error)(error.where, expected=error.expected, found=found, remedy=error.remedy)
        return error

    def is_missing(self, error: BaseException) -> bool:
        """Return whether an error means that an object does not exist, as far as the place tells."""
        return is_missing(error) or (self.hides_missing and is_refused(error))

    async def read(self, key: str, offset: int, length: int) -> tuple[list[memoryview], int]:
        """Read `length` bytes from `offset` (fewer at the end), in pieces, and the object's size."""
        if self._uses_obstore and length > 0:
            return await self._ranged(key, offset, length)
        return await self._sized(key, offset, length)

    async def _ranged(self, key: str, offset: int, length: int) -> tuple[list[memoryview], int]:
        """Read a range through obstore, whose answer states the size: one request."""
        pieces: list[memoryview] = []
        try:
            size = await _stream(self._store, key, offset, length, pieces.append)
        except Exception as error:
            if is_missing(error) or not _may_be_beyond(self._store, error):
                raise
            size = await self.size(key)
            if offset < size:
                raise
            return [], size  # servers differ in their answer to a range beyond the end
        return pieces, size

    async def _sized(self, key: str, offset: int, length: int) -> tuple[list[memoryview], int]:
        """Read a range of a store that does not state the size with it.

        The size is requested at the same time, then remembered, and compared with the bytes. Before a remembered size
        leads to an error it is requested again: the object may have been replaced.
        """
        remembered = self._sizes.get(key)
        data: Any
        size: Any
        data, size = await asyncio.gather(
            self._get(key, offset, length),
            self.size(key) if remembered is None else _just(remembered),
            return_exceptions=True,
        )
        if isinstance(size, int) and offset >= size and remembered is None:
            return [], size  # servers differ in their answer to a range beyond the end
        if isinstance(data, memoryview) and isinstance(size, int) and len(data) == min(length, size - offset):
            return [data], size
        if remembered is not None:
            del self._sizes[key]
            return await self._sized(key, offset, length)
        for answer in (data, size):
            if isinstance(answer, BaseException):
                raise answer
        if len(data) > min(length, size - offset):
            raise RangeIgnored
        raise ConnectionError(f"{len(data)} bytes of {min(length, size - offset)}")

    async def _get(self, key: str, offset: int, length: int) -> memoryview:
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype

        if length <= 0:
            return memoryview(b"")
        request = RangeByteRequest(offset, offset + length)
        data = await self._store.get(key, default_buffer_prototype(), request)
        if data is None:
            raise FileNotFoundError(key)
        values: Any = data.as_numpy_array()
        return memoryview(values).cast("B") if len(data) else memoryview(b"")

    def download(
        self, where: str, key: str, size: int, write: Callable[[memoryview], None], offset: int = 0
    ) -> int:
        """Pass an object of `size` bytes, from `offset`, to `write`, piece after piece; return its size.

        where: the object in messages. obstore waits in this thread: the event loop would hand each piece to and fro. Its
        client limits the time of a request. Raises as `ask`.
        """
        found = size
        while offset < size and found == size:
            length = min(_ONE_REQUEST, size - offset)
            if self._uses_obstore:
                self._check_process()
                try:
                    found = _through(self._store, key, offset, length, write)
                except (LogitStoreError, DiskError):  # the latter of the cache, not of the server
                    raise
                except Exception as error:  # noqa: BLE001 - of the library
                    self.raise_typed(error, where)
            else:
                pieces, found = self.ask(where, self._sized, key, offset, length)
                for piece in pieces:
                    write(piece)
            offset += length
        return found

    async def read_all(self, keys: Sequence[str], most: int) -> list[Any]:
        """Read the beginnings of objects at once; return (pieces, size) or the error of each."""
        return await asyncio.gather(*(self.read(key, 0, most) for key in keys), return_exceptions=True)

    async def size(self, key: str) -> int:
        """Return the bytes of an object."""
        size = int(await self._store.getsize(key))
        if len(self._sizes) >= _MAX_SIZES:
            self._sizes.clear()
        self._sizes[key] = size
        return size

    async def exist(self, keys: list[str]) -> list[bool]:
        """Return which of some objects exist, asking for all at once."""
        answers = await asyncio.gather(*map(self.size, keys), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not self.is_missing(answer):
                raise answer
        return [isinstance(answer, int) for answer in answers]

    async def create(self, key: str, data: bytes, seconds: float) -> "Failure | None":
        """Put an object unless its name is taken; None if it was stored, else what the answer was.

        An object that was not stored by this request may have been by an earlier one whose answer was lost.
        """
        import obstore

        store: Any = self._store
        try:
            await asyncio.wait_for(
                obstore.put_async(store.store, key, data, mode="create"), max(1.0, seconds)
            )
        except Exception as error:  # noqa: BLE001 - of the library
            failure = failure_of(error)
            if self._secrets:
                failure = replace(failure, found=without(failure.found, self._secrets), cause=None)
            return failure
        return None

    async def holds(self, key: str, data: bytes) -> bool:
        """Return whether an object has these bytes, and no more of it is read than they are. Raises FileNotFoundError."""
        import obstore

        store: Any = self._store
        answer = await obstore.get_async(store.store, key)
        if answer.meta["size"] != len(data):
            return False
        expected, offset = memoryview(data), 0
        async for piece in answer.stream(min_chunk_size=min(max(1, len(data)), _PIECE)):
            found = memoryview(piece).cast("B")
            if found != expected[offset : offset + len(found)]:
                return False
            offset += len(found)
        return offset == len(data)

    async def put(self, key: str, data: bytes) -> None:
        """Put an object, whatever has its name."""
        import obstore

        store: Any = self._store
        await obstore.put_async(store.store, key, data)

    async def delete(self, key: str) -> None:
        """Delete an object."""
        import obstore

        store: Any = self._store
        await obstore.delete_async(store.store, key)

    async def names(self, prefix: str, where: str) -> list[str]:
        """Return the names directly under a prefix ("" for the top), sorted. where: the place in messages."""
        names = await self._listed("names", prefix, where, MOST_NAMES)
        return sorted({name.strip("/").rpartition("/")[2] for name in names} - {""})

    async def keys(self, where: str) -> list[str]:
        """Return the keys of all objects, sorted. where: the place in messages."""
        return sorted(await self._listed("keys", "", where, MOST_KEYS))

    async def _listed(self, what: str, prefix: str, where: str, most: int) -> list[str]:
        if self._list_apart is not None:
            return await asyncio.to_thread(self._list_apart, what, prefix, where, store_errors.TIMEOUT_S)
        try:
            return await gathered(self._store, what, prefix, most)
        except Exception as error:
            if not is_missing(error):
                raise
            return []


async def _just(value: int) -> int:
    return value


async def gathered(store: "Store", what: str, prefix: str, most: int) -> list[str]:
    """List the `names` directly under a prefix, or all `keys`. Raises ListingFailed for more than `most` of them."""
    found: list[str] = []
    # obstore begins to list when it is called, and in the event loop alone.
    async for name in store.list_dir(prefix) if what == "names" else store.list():
        found.append(name)
        if len(found) > most:
            raise ListingFailed(f"more than {most:,} objects")
    return found


async def _stream(store: Any, key: str, offset: int, length: int, take: Callable[[memoryview], Any]) -> int:
    """Read a range through obstore, and no byte more of it than was asked for; return the object's size.

    take: gets the bytes, piece after piece. obstore's own reads keep whatever a server sends.
    Raises FileNotFoundError.
    """
    import obstore

    answer = await obstore.get_async(store.store, key, options={"range": (offset, offset + length)})
    size = int(answer.meta["size"])
    expected = min(length, size - offset)
    if tuple(answer.range) != (offset, offset + expected):
        raise RangeIgnored
    taken = 0
    async for piece in answer.stream(min_chunk_size=min(length, _PIECE)):
        view = memoryview(piece).cast("B")
        taken += len(view)
        if taken > expected:
            raise RangeIgnored
        take(view)
    if taken != expected:
        raise ConnectionError(f"{taken} bytes of {expected}")
    return size


def _through(store: Any, key: str, offset: int, length: int, write: Callable[[memoryview], None]) -> int:
    """Do what `_stream` does, in this thread."""
    import obstore

    answer = obstore.get(store.store, key, options={"range": (offset, offset + length)})
    size = int(answer.meta["size"])
    expected, taken = min(length, size - offset), 0
    if tuple(answer.range) != (offset, offset + expected):
        raise RangeIgnored
    for piece in answer.stream(min_chunk_size=min(length, _PIECE)):
        view = memoryview(piece).cast("B")
        taken += len(view)
        if taken > expected:
            raise RangeIgnored
        write(view)
    if taken != expected:
        raise ConnectionError(f"{taken} bytes of {expected}")
    return size


def _may_be_beyond(store: Any, error: Exception) -> bool:
    """Return whether an error may be the answer to a range beyond the end of an object."""
    kind = type(store.store).__name__
    return status_of(error) == 416 or (status_of(error) is None and kind in ("LocalStore", "MemoryStore"))


# Kinds of stores


def _protocols(store: "Store") -> set[str]:
    """Return the protocols of a store's fsspec file system; none for other stores."""
    protocols = getattr(getattr(store, "fs", None), "protocol", ())
    return {protocols} if isinstance(protocols, str) else set(protocols)


def _is_web_server(store: "Store") -> bool:
    is_obstores = type(getattr(store, "store", None)).__name__ == "HTTPStore"
    return is_obstores or bool(_protocols(store) & {"http", "https"})


def is_cloud(store: "Store") -> bool:
    """Return whether an `ObjectStore` lists by asking a server."""
    return type(getattr(store, "store", None)).__name__ in ("S3Store", "GCSStore", "AzureStore")


def _is_memory(store: "Store") -> bool:
    return hasattr(store, "_store_dict") or "memory" in _protocols(store)
