"""Folders of stores that are read through Zarr's stores, key by key, with a cache of whole shards on the local disk."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, LogitStoreError, StorageRefused, TransientIOError
from ..format.constants import LOG, LOG_AHEAD, MAX_JSON_BYTES, MAX_PARTS
from .place import Place, SealedShard, check_size, components
from .posix import close_quietly, read_through
from .store_errors import TO_READ, typed
from .zarr_bytes import ZarrBytes

PATIENCE_S: Final = 60.0
"""Seconds during which a shard is asked for again while the server cannot be reached: it may restart."""
_PAUSES: Final = (0.5, 5.0)
"""Seconds between two tries: at first, and at most."""
_AT_ONCE: Final = 16
"""Log records that are requested at once from a place that does not list its files, after the first."""
_GAP: Final = 3
"""Absent records after the last one, by which it is known as such."""
_ABSENT: Final = f"{LOG}/absent.json"
"""A name that no store has."""
_WHOLE: Final = 2
"""A read of one part in so many of a shard, or more, fetches the shard into the cache."""
_ahead = threading.local()
"""`answers`: objects that this thread has read ahead, by store and key."""
log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Address(PurePosixPath):
    """A URL as a path: for messages, not for the operating system.

    >>> str(Address("s3://bucket/store.zarr") / "samples" / "zarr.json")
    's3://bucket/store.zarr/samples/zarr.json'
    """

    def __str__(self) -> str:
        scheme, colon, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}" if colon else scheme


class _GivenUp(BaseException):
    """A fetch that nobody wants any more; no failure that is tried again."""


class RemoteFolder(Place):
    """A folder of a store that is read through one of Zarr's stores."""

    def __init__(self, objects: ZarrBytes, inside: Sequence[str] = ()) -> None:
        """Name a folder by its place `inside` the store."""
        self._objects = objects
        self._inside = tuple(inside)
        self.path: PurePath = Address(objects.name).joinpath(*inside)
        self.can_list = objects.can_list
        self.is_remote = True

    def __repr__(self) -> str:
        return f"RemoteFolder({str(self.path)!r})"

    def sub(self, name: str) -> "RemoteFolder":
        return RemoteFolder(self._objects, (*self._inside, *components(name, self.path)))

    def kind(self) -> str:
        return "a folder" if self.can_list and self.names() else "nothing"

    def _key(self, key: str) -> tuple[str, str]:
        """Return the key in the whole store, and the object's name in messages."""
        inner = components(key, self.path) if key else []
        return "/".join((*self._inside, *inner)), str(self.path / key)

    def _read(self, key: str, offset: int, length: int) -> tuple[list[memoryview], int]:
        inner, where = self._key(key)
        return self._objects.ask(where, self._objects.read, inner, offset, length)

    def read(self, key: str, most: int = MAX_JSON_BYTES) -> bytes:
        inner = self._key(key)[0]
        answer = _answers().get((self._objects, inner))
        # What was missing a moment ago may have been put since.
        if answer is None or isinstance(answer, Exception) or answer[1] > MAX_JSON_BYTES:
            answer = self._read(key, 0, most)
        pieces, size = answer
        check_size(size, most, self.path / key)
        return b"".join(pieces)

    @contextlib.contextmanager
    def read_ahead(self, keys: Sequence[str]) -> Iterator[None]:
        before = _answers()
        wanted = [self._key(key)[0] for key in keys]
        # `read` asks again for what was missing; to do so here would be three more requests of each store that is opened.
        wanted = [key for key in wanted if (self._objects, key) not in before]
        found = self._ask_all(wanted) if wanted else []
        places = [(self._objects, key) for key in wanted]
        _ahead.answers = {**before, **dict(zip(places, found, strict=True))}
        try:
            yield
        finally:
            _ahead.answers = before

    def _ask_all(self, keys: Sequence[str]) -> list[Any]:
        """Return (pieces, size) or the error of each of some objects, asked for at once."""
        answers: list[Any] = self._objects.ask(str(self.path), self._objects.read_all, keys, MAX_JSON_BYTES)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
        return answers

    def read_sealed(
        self,
        shard: SealedShard,
        offset: int,
        length: int,
        take: Callable[[NDArray[np.uint8]], None],
        place: Callable[[], NDArray[np.uint8] | None] = lambda: None,
    ) -> int:
        cache = self._objects.cache
        if cache is not None:
            handle = cache.open(shard.sha256, shard.size)
            whole = shard.sha256 in cache.announced or _WHOLE * length >= shard.size
            if handle is None and whole and self.keep(shard):
                handle = cache.open(shard.sha256, shard.size)
            if handle is not None:
                taken = 0

                def count(piece: NDArray[np.uint8]) -> None:
                    nonlocal taken
                    take(piece)
                    taken += len(piece)

                try:
                    read_through(handle, offset, max(0, min(shard.size - offset, length)), count, place)
                    return shard.size
                except OSError as error:
                    if isinstance(error, LogitStoreError):
                        raise
                    cache.leave_out(shard.sha256)  # a disk that fails; the rest comes over the network
                    offset, length = offset + taken, length - taken
                finally:
                    close_quietly(handle)
        pieces, size = self._patiently(lambda: self._read(shard.key, offset, length))
        for piece in pieces:
            take(np.frombuffer(piece, dtype=np.uint8))
        return size

    def keep(self, shard: SealedShard, wanted: Callable[[], bool] = lambda: True) -> bool:
        cache = self._objects.cache
        if cache is None:
            return False
        inner, where = self._key(shard.key)

        def download(write: Callable[[memoryview], None]) -> None:
            done = 0

            def count(piece: memoryview) -> None:
                nonlocal done
                if not wanted():
                    raise _GivenUp
                write(piece)
                done += len(piece)

            self._patiently(
                lambda: self._objects.download(where, inner, shard.size, count, done), progress=lambda: done
            )

        try:
            return cache.fetch(shard.sha256, shard.size, download)
        except (FileNotFoundError, _GivenUp):
            return False  # the reader that needs a missing one says so

    def holds(self, shard: SealedShard) -> bool:
        return self._objects.cache is not None and self._objects.cache.holds(shard.sha256)

    def announce(self, shard: SealedShard) -> None:
        if self._objects.cache is not None:
            self._objects.cache.announced.add(shard.sha256)

    def forget(self, shard: SealedShard) -> bool:
        cache = self._objects.cache
        return cache is not None and cache.forget(shard.sha256)

    @property
    def keeps(self) -> bool:
        cache = self._objects.cache
        return cache is not None and not cache.takes_no_more

    def _patiently(self, request: Callable[[], _Result], progress: Callable[[], int] = lambda: 0) -> _Result:
        """Make a request, and again for `PATIENCE_S` while the server cannot be reached. Raises what it raises.

        progress: bytes so far; each error after more of them begins the time anew, as for a long shard on a slow line.
        """
        until, (pause, longest) = time.monotonic() + PATIENCE_S, _PAUSES
        done = progress()
        while True:
            try:
                return request()
            except TransientIOError as error:
                if progress() > done:
                    done, until, pause = progress(), time.monotonic() + PATIENCE_S, _PAUSES[0]
                if time.monotonic() + pause > until:
                    raise
                self._objects.warn_once(f"{error.where}: {error.found}; asked again for {PATIENCE_S:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        pieces, size = self._read(key, offset, length)
        return b"".join(pieces), size

    def read_through(
        self,
        key: str,
        offset: int,
        length: int,
        take: Callable[[NDArray[np.uint8]], None],
        place: Callable[[], NDArray[np.uint8] | None] = lambda: None,
    ) -> int:
        pieces, size = self._read(key, offset, length)
        for piece in pieces:
            take(np.frombuffer(piece, dtype=np.uint8))
        return size

    def size(self, key: str) -> int:
        inner, where = self._key(key)
        return self._objects.ask(where, self._objects.size, inner)

    def exists(self, key: str) -> bool:
        inner, where = self._key(key)
        return self._objects.ask(where, self._objects.exist, [inner])[0]

    def names(self, prefix: str = "") -> list[str]:
        """Return the names directly under `prefix`, sorted.

        A web server lists nothing. There the log's records are found by their numbers; other prefixes raise ConfigError.
        Inside `read_ahead` the log is listed once.
        """
        if self.can_list:
            inner, where = self._key(prefix)
            ahead, place = getattr(_ahead, "answers", None), (self._objects, f"{inner}/")
            if ahead and place in ahead:
                return list(ahead[place])
            try:
                found = self._objects.ask(where, self._objects.names, inner, where)
                if ahead and prefix == LOG:
                    ahead[place] = found
                return found
            except StorageRefused as error:
                if (
                    prefix != LOG or error.expected != TO_READ
                ):  # a listing that does not end is none that is refused
                    raise
                self._go_on_without_listings()
        if prefix == LOG:
            return sorted(self._numbered())
        raise self._unlisted(prefix)

    def _go_on_without_listings(self) -> None:
        """Treat a bucket that may not be listed as a web server; it answers for a missing object as for one that it refuses."""
        (answer,) = self._ask_all([self._key(_ABSENT)[0]])
        self._objects.can_list = self.can_list = False
        if isinstance(answer, Exception):
            missing = typed(answer, _ABSENT)
            if not isinstance(missing, FileNotFoundError | StorageRefused):
                raise missing
            self._objects.hides_missing = isinstance(missing, StorageRefused)

    def _numbered(self) -> Iterator[str]:
        """Find the log's records by their numbers, up to a gap of `_GAP`."""
        start, stop, last = 0, LOG_AHEAD, 0
        while start <= MAX_PARTS + 1:
            names = [f"{number}.json" for number in range(start, stop)]
            keys = [self._key(f"{LOG}/{name}")[0] for name in names]
            ahead = [_answers().get((self._objects, key)) for key in keys]
            answers = self._ask_all(keys) if None in ahead else ahead
            for number, answer in enumerate(answers, start):
                if not isinstance(answer, Exception):
                    last = number
                    yield names[number - start]
                elif not self._objects.is_missing(answer):
                    self._objects.raise_typed(answer, str(self.path / LOG / names[number - start]))
            if stop - 1 - last >= _GAP:
                return
            start, stop = stop, stop + _AT_ONCE

    def files(self) -> list[str]:
        """Return the keys of all objects in the folder, sorted. Raises ConfigError if the place does not list them."""
        if not self.can_list:
            raise self._unlisted()
        prefix = "".join(f"{name}/" for name in self._inside)
        keys = self._objects.ask(str(self.path), self._objects.keys, str(self.path))
        return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]

    def _unlisted(self, prefix: str = "") -> ConfigError:
        return ConfigError(
            str(self.path / prefix),
            expected="a place that lists its files",
            found="a place that does not, such as a web server",
            remedy="copy the store to a local disk for this; its sealed parts can be read where they are",
        )


def _answers() -> dict[Any, Any]:
    found: dict[Any, Any] = getattr(_ahead, "answers", {})
    return found
