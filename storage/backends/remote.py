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
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..format.constants import LOG, MAX_JSON_BYTES, MAX_PARTS, STAGING
from .conditional import PATIENCE_S, prove_exclusive, put_new
from .listing import Lister, serve
from .local import local_path, writable
from .paths import local_folder
from .place import Place, check_size, components, split_url
from .writable import ENDLESS, Writable
from .zarr_bytes import ZarrBytes, is_cloud

if TYPE_CHECKING:
    from zarr.abc.store import Store

_WEB: Final = frozenset({"http", "https"})
_OBSTORE: Final = _WEB | {"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"}
_CLIENT: Final[Any] = {"timeout": "120s", "connect_timeout": "10s"}
_RETRY: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
"""Retries before an error is raised; obstore's default takes minutes."""
_AT_ONCE: Final = 16
"""Log records that are requested at once from a place that does not list its files."""


class Address(PurePosixPath):
    """A URL as a path: for messages, not for the operating system.

    >>> str(Address("s3://bucket/store.zarr") / "samples" / "zarr.json")
    's3://bucket/store.zarr/samples/zarr.json'
    """

    def __str__(self) -> str:
        scheme, colon, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}" if colon else scheme


class RemoteFolder(Place):
    """A folder of a store that is read through one of Zarr's stores."""

    def __init__(self, objects: ZarrBytes, inside: Sequence[str] = ()) -> None:
        """Name a folder by its place `inside` the store."""
        self._objects = objects
        self._inside = tuple(inside)
        self.path: PurePath = Address(objects.name).joinpath(*inside)
        self.can_list = objects.can_list

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

    def _read(self, key: str, offset: int, length: int) -> tuple[memoryview, int]:
        inner, where = self._key(key)
        return self._objects.ask(where, self._objects.read, inner, offset, length)

    def read(self, key: str, most: int = MAX_JSON_BYTES) -> bytes:
        data, size = self._read(key, 0, most)
        check_size(size, most, self.path / key)
        return bytes(data)

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        data, size = self._read(key, offset, length)
        return bytes(data), size

    def read_through(
        self,
        key: str,
        offset: int,
        length: int,
        take: Callable[[NDArray[np.uint8]], None],
        place: Callable[[], NDArray[np.uint8] | None] = lambda: None,
    ) -> int:
        data, size = self._read(key, offset, length)
        take(np.frombuffer(data, dtype=np.uint8))
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
            return self._objects.ask(where, self._objects.names, inner, where)
        if prefix == LOG:
            return sorted(self._numbered())
        raise self._unlisted(prefix)

    def _numbered(self) -> Iterator[str]:
        """Find the log's records by their numbers, up to a gap of `_AT_ONCE`."""
        for start in range(0, MAX_PARTS + 2, _AT_ONCE):
            names = [f"{number}.json" for number in range(start, start + _AT_ONCE)]
            keys = [self._key(f"{LOG}/{name}")[0] for name in names]
            exist = self._objects.ask(str(self.path / LOG), self._objects.exist, keys)
            yield from (name for name, exists in zip(names, exist, strict=True) if exists)
            if not any(exist):
                return

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
        failure = self._objects.ask(where, self._objects.create, inner, data, PATIENCE_S)
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


def folder_at(location: Any) -> Place:
    """Return the folder at a path, at a URL, or at the top of a `zarr.abc.store.Store`, without any request.

    Raises ConfigError for anything else, or if a library is not installed.
    """
    if isinstance(location, Place):
        return location
    if isinstance(location, str | os.PathLike):
        text = os.fspath(location)
        if split_url(text).scheme in _OBSTORE | {"memory"} and "://" in text:
            return _folder_of(open_url(text))
        return local_folder(local_path(location))
    from zarr.abc.store import Store  # zarr takes half a second to import

    if isinstance(location, Store):
        return _folder_of(ZarrBytes(location, " ".join(str(location).split())[:200]))
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


def open_url(url: str) -> ZarrBytes:
    """Return the objects under a URL, without any request. Raises ConfigError if it cannot be opened."""
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
        store = _open_store(parts.scheme, name)
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
    apart = Lister(name, f"{__name__}:serve_listings").ask if is_cloud(store) else None
    return ZarrBytes(store, name, None if parts.scheme == "memory" else (open_url, name), apart)


def serve_listings() -> None:
    """List the objects under a URL for a parent process: the child of `listing`."""
    serve(lambda url: _open_store(split_url(url).scheme, url))


def _open_store(scheme: str, url: str) -> "Store":
    """Open a URL as a store of Zarr's, by obstore if it is installed and knows the scheme. Raises ImportError."""
    from zarr.storage import FsspecStore, ObjectStore

    try:
        from obstore.store import HTTPStore, from_url
    except ImportError:
        return FsspecStore.from_url(url, read_only=True)
    if scheme in _WEB:  # not `from_url`: for a cloud's host it would ask for credentials
        options: Any = {**_CLIENT, "allow_http": scheme == "http"}
        http = HTTPStore.from_url(url, client_options=options, retry_config=_RETRY)
        return ObjectStore(http, read_only=True)
    if scheme in _OBSTORE:
        # Without client options, which would replace those of the environment (AWS_ALLOW_HTTP, …).
        return ObjectStore(from_url(url, retry_config=_RETRY))
    return FsspecStore.from_url(url, read_only=True)
