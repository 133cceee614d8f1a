"""Stores that are not on a local disk, read through Zarr's stores.

`folder_at` opens a path, a URL, or a store of Zarr's (`zarr.abc.store.Store`). A `RemoteFolder` is read key by key, by
the code that checks seals, sizes and checksums. Buckets that obstore opens can be written to (`ObjectFolder`); all else
is read-only.

| URL | library | credentials, region … |
| --- | --- | --- |
| `s3://bucket/path`, `gs://`, `az://` … | obstore, else fsspec | the environment, as the library reads it |
| `http://host/path`, `https://` | obstore, else fsspec | none |
| `memory://path` | fsspec | of this process alone |
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, StorageRefused, TransientIOError
from ..format.constants import LOG, LOG_AHEAD, MAX_JSON_BYTES, MAX_PARTS, STAGING
from .cache_choice import cache_limits
from .conditional import PATIENCE_S as PUT_PATIENCE_S
from .conditional import prove_exclusive, put_new
from .listing import Lister, serve
from .local import local_path, writable
from .options import check_options, for_obstore, secrets_of
from .paths import local_folder
from .place import Place, SealedShard, check_size, components, split_url
from .posix import close_quietly, read_through
from .shard_cache import CacheLimits, ShardCache
from .writable import ENDLESS, Writable
from .zarr_bytes import ZarrBytes, is_cloud, typed

if TYPE_CHECKING:
    from zarr.abc.store import Store

_WEB: Final = frozenset({"http", "https"})
_OBSTORE: Final = _WEB | {"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"}
_CLIENT: Final[Any] = {"timeout": "120s", "connect_timeout": "10s"}
_RETRY: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
"""Retries before an error is raised; obstore's default takes minutes."""
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
        inner, where = self._key(key)
        answer = _answers().get((self._objects, inner))
        if isinstance(answer, Exception):
            self._objects.raise_typed(answer, where)
        if answer is None or answer[1] > MAX_JSON_BYTES:
            answer = self._read(key, 0, most)
        pieces, size = answer
        check_size(size, most, self.path / key)
        return b"".join(pieces)

    @contextlib.contextmanager
    def read_ahead(self, keys: Sequence[str]) -> Iterator[None]:
        before = _answers()
        wanted = [self._key(key)[0] for key in keys]
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
                try:
                    read_through(handle, offset, max(0, min(shard.size - offset, length)), take, place)
                finally:
                    close_quietly(handle)
                return shard.size
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

            self._patiently(lambda: self._objects.download(where, inner, shard.size, count, done))

        try:
            return cache.fetch(shard.sha256, shard.size, download)
        except (FileNotFoundError, _GivenUp):
            return False  # the reader that needs a missing one says so

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

    def _patiently(self, request: Callable[[], _Result]) -> _Result:
        """Make a request, and again for `PATIENCE_S` while the server cannot be reached. Raises what it raises."""
        until, (pause, longest) = time.monotonic() + PATIENCE_S, _PAUSES
        while True:
            try:
                return request()
            except TransientIOError as error:
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
        """
        if self.can_list:
            inner, where = self._key(prefix)
            try:
                return self._objects.ask(where, self._objects.names, inner, where)
            except StorageRefused:
                if prefix != LOG:
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
        failure = self._objects.ask(where, self._objects.create, inner, data, PUT_PATIENCE_S)
        return None if failure is None else failure.found

    def put_unconditionally(self, key: str, data: bytes) -> None:
        """Put an object, whatever has its name: for examinations alone."""
        inner, where = self._key(key)
        self._objects.ask(where, self._objects.put, inner, data)

    def delete(self, key: str) -> None:
        """Delete an object: for examinations alone. Whether a missing one raises FileNotFoundError differs by place."""
        inner, where = self._key(key)
        self._objects.ask(where, self._objects.delete, inner)

    def prove_exclusive(self) -> None:
        """Test that the second of two objects of one name is refused. As `conditional.prove_exclusive`."""
        prove_exclusive(self._objects)

    def tidy(self) -> None:
        """Remove the probes of killed writers. A part has none: they lie at the top of the store."""
        for name in () if self._inside else self.names(STAGING):
            with contextlib.suppress(FileNotFoundError):
                self.delete(f"{STAGING}/{name}")


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


def _answers() -> dict[Any, Any]:
    found: dict[Any, Any] = getattr(_ahead, "answers", {})
    return found


def folder_at(
    location: Any, options: Mapping[str, Any] | None = None, cache: CacheLimits | None = None
) -> Place:
    """Return the folder at a path, at a URL, or at the top of a `zarr.abc.store.Store`, without any request.

    options: of the library that opens a URL. cache: where shards of a remote store are kept, if anywhere.
    Raises ConfigError for anything else, or if a library is not installed.
    """
    if isinstance(location, Place):
        return location
    if isinstance(location, str | os.PathLike):
        text = os.fspath(location)
        if split_url(text).scheme in _OBSTORE | {"memory"} and "://" in text:
            return _folder_of(open_url(text, options, cache))
        if options:
            raise ConfigError(
                "storage_options",
                expected="no options for a path",
                found=", ".join(map(str, options))[:80],
                remedy="leave them out, or pass a URL",
            )
        return local_folder(local_path(location))
    from zarr.abc.store import Store  # zarr takes half a second to import

    if isinstance(location, Store):
        kept = None if cache is None else ShardCache(cache)
        return _folder_of(ZarrBytes(location, " ".join(str(location).split())[:200], cache=kept))
    raise ConfigError(
        "the place of a store",
        expected="a path, a URL or a store of Zarr's (zarr.abc.store.Store)",
        found=f"a {type(location).__name__}",
        remedy="pass a path, a URL or a store",
    )


def _folder_of(objects: ZarrBytes) -> RemoteFolder:
    """Return the top folder of some objects, to be written to where they can be."""
    return ObjectFolder(objects) if objects.can_put else RemoteFolder(objects)


def folder_to_write(location: Any) -> Writable:
    """Return the folder at a place that a store is written to, without any request. Raises ConfigError, UnsupportedSystem."""
    return writable(folder_at(location))


def path_of(location: str | os.PathLike[str]) -> PurePath:
    """Return the path of a store: a local one, or an `Address`. Raises ConfigError for a URL of an unknown scheme.

    >>> str(path_of("s3://bucket/store.zarr/").parent), str(path_of("runs/store.zarr").parent)
    ('s3://bucket', 'runs')
    """
    text = os.fspath(location)
    is_remote = "://" in text and split_url(text).scheme in _OBSTORE | {"memory"}
    return Address(text) if is_remote else local_path(location)


def place_at(location: Any, options: Mapping[str, Any] | None, cache: Any, cache_size: Any) -> Place:
    """Return `folder_at` with options and a cache as a caller of `open_store` gives them. Raises ConfigError."""
    return folder_at(location, check_options(options), cache_limits(cache, cache_size))


def open_url(
    url: str, options: Mapping[str, Any] | None = None, cache: CacheLimits | None = None
) -> ZarrBytes:
    """Return the objects under a URL, without any request. Raises ConfigError if it cannot be opened."""
    options = dict(options or {})
    parts = split_url(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
            expected="a URL of scheme, host and path",
            found="a URL with credentials, a query or a fragment, which messages would show",
            remedy="put credentials into the environment, or pass a store of Zarr's, such as ObjectStore",
        )
    name = url.rstrip("/")
    try:
        store = _open_store(parts.scheme, name, options)
    except ImportError as error:
        raise ConfigError(
            name,
            expected=f"a library that reads {parts.scheme}:// URLs",
            found=str(error),
            remedy="pip install 'logitstore[remote]', or copy the store to a local disk",
        ) from None
    except Exception as error:  # the libraries' own classes
        raise ConfigError(
            name,
            expected="a URL that can be opened",
            found=" ".join(str(error).split())[:200],
            remedy="check the URL and the environment, or pass a store of Zarr's, such as ObjectStore",
        ) from error
    apart = Lister(name, f"{__name__}:serve_listings", options).ask if is_cloud(store) else None
    again = None if parts.scheme == "memory" else (open_url, (name, options, cache))
    # What lies in the memory of this machine is not kept on its disk.
    kept = None if cache is None or parts.scheme == "memory" else ShardCache(cache)
    return ZarrBytes(store, name, again, apart, kept, secrets_of(options))


def serve_listings() -> None:
    """List the objects under a URL for a parent process: the child of `listing`."""
    serve(lambda url, options: _open_store(split_url(url).scheme, url, options))


def _open_store(scheme: str, url: str, options: Mapping[str, Any]) -> "Store":
    """Open a URL as a store of Zarr's, by obstore if it is installed and knows the scheme. Raises ImportError."""
    from zarr.storage import FsspecStore, ObjectStore

    try:
        from obstore.store import HTTPStore, from_url
    except ImportError:
        return FsspecStore.from_url(url, storage_options=dict(options) or None, read_only=True)
    if scheme in _WEB:  # not `from_url`: for a cloud's host it would ask for credentials
        client: Any = {**_CLIENT, "allow_http": scheme == "http", **options}
        http = HTTPStore.from_url(url, client_options=client, retry_config=_RETRY)
        return ObjectStore(http, read_only=True)
    if scheme in _OBSTORE:
        # Without client options, which would replace those of the environment (AWS_ALLOW_HTTP, …).
        return ObjectStore(from_url(url, retry_config=_RETRY, **for_obstore(options)))
    return FsspecStore.from_url(url, storage_options=dict(options) or None, read_only=True)
