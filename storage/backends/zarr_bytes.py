"""How is a Zarr store asked for bytes, from any thread, and what do its failures mean?

Of Zarr only the stores are used, which know keys and bytes; its arrays, codecs and shards are not. What comes back
goes through the same checks as the bytes of a local file (`part_reader`, `journal`), so that a store is worth
as much trust wherever it lies.

Zarr's stores are asynchronous, and run in the one event loop that Zarr keeps in a thread for its own arrays: the
connections of a store that is used by both belong to one loop. Neither that loop nor the threads of obstore live
on in a process that was forked, where a call would wait for ever; here it is refused instead.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..errors import ConfigError, LogitStoreError, StorageError, TransientIOError

if TYPE_CHECKING:
    from zarr.abc.store import Store


_Answer = TypeVar("_Answer")
_PATIENCE_S: Final = 600.0
"""How long one answer may take; the libraries below give up, and try again, far earlier."""
_MOST_SIZES: Final = 1 << 16
"""Objects whose size is remembered."""
_MISSING: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_STATUS: Final = re.compile(r"status code: (\d{3})")
_PASSING: Final = frozenset({408, 425, 429})
"""Answers of a web server from 400 to 499 that may be another one the next time."""
_obstore_process: int | None = None
"""The process in which obstore was used first: a process that is forked from it can never use it."""


class _RangeIgnored(Exception):
    """A server sent another piece of an object than the one that it was asked for."""


class ZarrBytes:
    """The objects of a Zarr store, to be read by any number of threads; shared by the folders of one store."""

    def __init__(
        self, store: "Store", name: str, reopen: "tuple[Callable[[str], ZarrBytes], str] | None" = None
    ) -> None:
        """name: what messages call it. reopen: how another process opens it; where it is None, by a copy of `store`.

        Raises ConfigError in a process that was forked from one that used obstore.
        """
        self.name = name
        """What messages call it."""
        self._store = store
        self._reopen = reopen
        self._process = os.getpid()
        self._sizes: dict[str, int] = {}
        kind = type(store)
        self._uses_obstore = kind.__name__ == "ObjectStore" and kind.__module__.startswith("zarr.")
        self.can_list = bool(store.supports_listing) and not _is_web_server(store)
        """Whether it says which objects there are. Web servers do not, in any way that could be relied upon."""
        self._check_process()

    def __reduce__(self) -> tuple[object, ...]:
        if self._reopen is not None:
            open_again, url = self._reopen
            return open_again, (url,)
        try:
            if _is_memory(self._store):
                raise TypeError("it lies in the memory of this process")
            self._store.__reduce_ex__(4)
        except Exception as error:
            raise ConfigError(
                self.name,
                expected="a place that another process can open",
                found=f"a {type(self._store).__name__} that cannot be sent to one ({_said(error)})",
                remedy="open the store by its URL, or open it in each worker",
            ) from error
        return ZarrBytes, (self._store, self.name)

    def _check_process(self) -> None:
        """Refuse a process that was forked after the store, or obstore, was used: it would wait for ever."""
        global _obstore_process
        here = os.getpid()
        if self._uses_obstore and _obstore_process is None:
            _obstore_process = here
        if here != self._process or (self._uses_obstore and here != _obstore_process):
            raise ConfigError(
                self.name,
                expected="a process of its own, by spawn or forkserver",
                found="one that was forked after the store was opened, in which reads would hang",
                remedy='pass multiprocessing_context="forkserver" to the DataLoader, or use threads',
            )

    # Asking

    def read(self, key: str, offset: int, length: int, where: str) -> tuple[memoryview, int]:
        """`length` bytes from `offset` (fewer at the end), and the size of the object.

        where: what errors call the object. Raises FileNotFoundError, StorageError; ConfigError after a fork.
        """
        return self._ask(lambda: self._read(key, offset, length), where)

    def size(self, key: str, where: str) -> int:
        """Bytes of an object. Raises FileNotFoundError, StorageError; ConfigError after a fork."""
        return self._ask(lambda: self._size(key), where)

    def exist(self, keys: list[str], where: str) -> list[bool]:
        """Which of some objects there are; they are asked for at once. Raises as `size`, but for what is missing."""
        return self._ask(lambda: self._exist(keys), where)

    def names(self, prefix: str, where: str) -> list[str]:
        """Names directly under a prefix ("" for the top), sorted. Raises as `size`, but for what is missing."""
        return self._ask(lambda: self._names(prefix), where)

    def keys(self, where: str) -> list[str]:
        """Keys of all objects, sorted. Raises as `size`, but for what is missing."""
        return self._ask(lambda: _gathered(self._store.list()), where)

    def _ask(self, question: Callable[[], Coroutine[Any, Any, _Answer]], where: str) -> _Answer:
        self._check_process()
        from zarr.core.sync import sync  # zarr takes half a second to import

        try:
            return sync(question(), timeout=_PATIENCE_S)
        except (LogitStoreError, MemoryError):
            raise
        except Exception as error:
            raise _typed(error, where) from error

    async def _read(self, key: str, offset: int, length: int) -> tuple[memoryview, int]:
        """The bytes, compared with the size of the object, which is asked for at the same time and then remembered.

        What was remembered is asked for again before it leads to an error: the object may be another one by now.
        """
        remembered = self._sizes.get(key)
        read: Any
        size: Any
        read, size = await asyncio.gather(
            self._get(key, offset, length),
            self._size(key) if remembered is None else _just(remembered),
            return_exceptions=True,
        )
        if isinstance(size, int) and offset >= size and remembered is None:
            return memoryview(b""), size  # and whatever was said to a range that is not there
        if isinstance(read, memoryview) and isinstance(size, int) and len(read) == min(length, size - offset):
            return read, size
        if remembered is not None:
            del self._sizes[key]
            return await self._read(key, offset, length)
        for answer in (read, size):
            if isinstance(answer, BaseException):
                raise answer
        if len(read) > min(length, size - offset):
            raise _RangeIgnored
        raise ConnectionError(f"{len(read)} bytes of {min(length, size - offset)}")

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

    async def _size(self, key: str) -> int:
        size = int(await self._store.getsize(key))
        if len(self._sizes) >= _MOST_SIZES:
            self._sizes.clear()
        self._sizes[key] = size
        return size

    async def _exist(self, keys: list[str]) -> list[bool]:
        answers = await asyncio.gather(*map(self._size, keys), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not _is_missing(answer):
                raise answer
        return [isinstance(answer, int) for answer in answers]

    async def _names(self, prefix: str) -> list[str]:
        names = await _gathered(self._store.list_dir(prefix))
        return sorted({name.strip("/").rpartition("/")[2] for name in names} - {""})


async def _just(value: int) -> int:
    return value


async def _gathered(names: AsyncIterator[str]) -> list[str]:
    try:
        return sorted([name async for name in names])
    except Exception as error:
        if not _is_missing(error):
            raise
        return []


# What a store is


def _protocols(store: "Store") -> set[str]:
    """The protocols of a store's file system, where it has one of fsspec's."""
    protocols = getattr(getattr(store, "fs", None), "protocol", ())
    return {protocols} if isinstance(protocols, str) else set(protocols)


def _is_web_server(store: "Store") -> bool:
    return bool(_protocols(store) & {"http", "https"}) or (
        type(getattr(store, "store", None)).__name__ == "HTTPStore"  # of obstore
    )


def _is_memory(store: "Store") -> bool:
    return hasattr(store, "_store_dict") or "memory" in _protocols(store)


# What went wrong


def _is_missing(error: BaseException) -> bool:
    """Whether an object is not there: fsspec says so, too, of a server that cannot be reached, and keeps the cause."""
    cause = error.__cause__
    if not isinstance(error, _MISSING):
        # What obstore says of a bucket that is not there, and of a key below a file of a local disk.
        obstore = type(error).__name__ == "GenericError"
        return obstore and (_status(error) in (404, 410) or "Not a directory" in str(error))
    return cause is None or isinstance(cause, _MISSING) or _status(cause) in (404, 410)


def _status(error: BaseException) -> int | None:
    """The status of the answer of a server, where it gave one."""
    for name in ("status", "code"):
        if isinstance(value := getattr(error, name, None), int):
            return value
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _said(error: BaseException) -> str:
    """What an error says, in one line that is not too long; of obstore's, what comes after the request."""
    text = " ".join(str(error).partition("\n")[0].split()).rpartition(" - ")[2]
    return (text or type(error).__name__)[:200].rstrip(": ")


def _typed(error: Exception, where: str) -> Exception:
    """The error of `errors` for what a store's library raised; FileNotFoundError for what is missing."""
    if _is_missing(error):
        return FileNotFoundError(where)
    if isinstance(error, _MISSING) and isinstance(error.__cause__, Exception):
        return _typed(error.__cause__, where)
    name, status = type(error).__name__, _status(error)
    if isinstance(error, _RangeIgnored) or (name == "NotSupportedError" and "ange" in str(error)):
        return StorageError(
            where,
            expected="a server that sends the bytes that it is asked for (HTTP range requests)",
            found="one that sends another piece, or the whole",
            remedy="use a server that knows ranges, or copy the store to a local disk",
        )
    if (
        isinstance(error, PermissionError)
        or name in ("PermissionDeniedError", "UnauthenticatedError")
        or status in (401, 403)
    ):
        return StorageError(
            where,
            expected="leave to read it",
            found=f"none ({_said(error)})",
            remedy="check the credentials; a bucket that may not be listed says the same of what is not there",
        )
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return StorageError(
            where,
            expected="an object, or word that there is none",
            found=_said(error),
            remedy="check the URL",
        )
    return TransientIOError(
        where,
        expected="an answer",
        found=_said(error),
        remedy="run the same command again; where it stays so, check the network and the URL",
    )
