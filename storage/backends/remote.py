"""How is a store read that is not on a local disk?

`folder_at` gives the `Folder` of whatever a user names: a path, a URL, or a store of Zarr's (`zarr.abc.store.Store`).
A `ZarrFolder` is read like any other, key by key, and by the code that checks seals, sizes and checksums;
it cannot be written: the commits of format 1.0 rest on the links and locks of a file system.

| URL | library | credentials, region … |
| --- | --- | --- |
| `s3://bucket/path`, `gs://`, `az://` … | obstore, else fsspec | the environment, as the library reads it |
| `http://host/path`, `https://` | obstore, else fsspec | none |
| `memory://path` | fsspec | of this process alone |
"""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, LimitExceeded
from ..format.constants import LOG, MAX_JSON_BYTES, MAX_PARTS
from .local import Folder, components, local_path
from .zarr_bytes import ZarrBytes

if TYPE_CHECKING:
    from zarr.abc.store import Store


_OBSTORE: Final = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https"})
_WEB: Final = frozenset({"http", "https"})
_CLIENT: Final[Any] = {"timeout": "120s", "connect_timeout": "10s"}
_RETRY: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
"""After that, one is told: obstore itself would go on for minutes."""
_AT_ONCE: Final = 16
"""Records of the log that are asked for at once, where they cannot be listed."""


class Address(PurePosixPath):
    """Where something lies that has no path, as messages say it; nothing is there for the operating system.

    >>> str(Address("s3://bucket/store.zarr") / "samples" / "zarr.json")
    's3://bucket/store.zarr/samples/zarr.json'
    """

    def __str__(self) -> str:
        scheme, colon, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}" if colon else scheme


class ZarrFolder(Folder):
    """A folder of a store that is read through one of Zarr's stores."""

    def __init__(self, objects: ZarrBytes, inside: Sequence[str] = ()) -> None:
        """inside: the folder in the store."""
        self._objects = objects
        self._inside = tuple(inside)
        self.path: PurePath = Address(objects.name).joinpath(*inside)
        self.can_list = objects.can_list

    def __repr__(self) -> str:
        return f"ZarrFolder({str(self.path)!r})"

    def sub(self, name: str) -> "ZarrFolder":
        """The folder of a part."""
        return ZarrFolder(self._objects, (*self._inside, *components(name, self.path)))

    def kind(self) -> str:
        """ "nothing" or "a folder": as far as it can be known."""
        return "a folder" if self.can_list and self.names() else "nothing"

    def _key(self, key: str) -> tuple[str, str]:
        """The key in the whole store, and what errors call the object."""
        inner = components(key, self.path) if key else []
        return "/".join((*self._inside, *inner)), str(self.path / key)

    # Reading

    def read(self, key: str, most: int = MAX_JSON_BYTES) -> bytes:
        """The whole object. Raises FileNotFoundError, LimitExceeded where it is larger than `most` bytes."""
        data, size = self.read_range(key, 0, most)
        if size > most:
            raise LimitExceeded(
                str(self.path / key),
                expected=f"at most {most} bytes",
                found=f"{size} bytes",
                remedy="do not use this store: logitstore writes no such file",
            )
        return data

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        """`length` bytes from `offset` (fewer at the end), and the size of the object. Raises FileNotFoundError."""
        data, size = self._objects.read(self._key(key)[0], offset, length, self._key(key)[1])
        return bytes(data), size

    def read_through(
        self, key: str, offset: int, length: int, take: Callable[[NDArray[np.uint8]], None]
    ) -> int:
        """Give `take` `length` bytes from `offset` (fewer at the end); the size of the object. Raises FileNotFoundError."""
        inner, where = self._key(key)
        data, size = self._objects.read(inner, offset, length, where)
        take(np.frombuffer(data, dtype=np.uint8))
        return size

    def size(self, key: str) -> int:
        """Bytes of the object. Raises FileNotFoundError."""
        return self._objects.size(*self._key(key))

    def exists(self, key: str) -> bool:
        """Whether there is an object of that name."""
        inner, where = self._key(key)
        return self._objects.exist([inner], where)[0]

    def names(self, prefix: str = "") -> list[str]:
        """Names directly under `prefix`, sorted; none where nothing is there.

        Where objects cannot be listed, the records of the log are found by their numbers, and for any other
        prefix ConfigError is raised.
        """
        if self.can_list:
            return self._objects.names(*self._key(prefix))
        if prefix == LOG:
            return sorted(self._numbered())
        raise self._unlisted(prefix)

    def _numbered(self) -> Iterator[str]:
        """The records of the log that are there; up to a gap of as many as are asked for at once."""
        for start in range(0, MAX_PARTS + 2, _AT_ONCE):
            names = [f"{number}.json" for number in range(start, start + _AT_ONCE)]
            keys = [self._key(f"{LOG}/{name}")[0] for name in names]
            found = self._objects.exist(keys, str(self.path / LOG))
            yield from (name for name, exists in zip(names, found, strict=True) if exists)
            if not any(found):
                return

    def files(self) -> list[str]:
        """Keys of everything in the store. Raises ConfigError where objects cannot be listed."""
        if not self.can_list:
            raise self._unlisted()
        prefix = "".join(f"{name}/" for name in self._inside)
        keys = self._objects.keys(str(self.path))
        return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]

    def is_folder(self, key: str) -> bool:
        """Whether anything has a name that begins with that one."""
        return bool(self.names(key))

    def _unlisted(self, prefix: str = "") -> ConfigError:
        return ConfigError(
            str(self.path / prefix),
            expected="a place that says which files it has",
            found="one that does not, as a web server",
            remedy="copy the store to a local disk for this; its sealed parts can be read where they are",
        )

    # Writing

    def check_writable(self) -> NoReturn:
        """Raises ConfigError: nothing is written here."""
        raise ConfigError(
            str(self.path),
            expected="a store on a local disk, to write to it",
            found="one that is read through Zarr's stores",
            remedy="copy it to a local disk, write there, and copy it back",
        )

    def directory(self, within: Sequence[str] = (), *, make: bool = False) -> NoReturn:
        """Raises ConfigError: there is none."""
        self.check_writable()

    def free_bytes(self) -> NoReturn:
        """Raises ConfigError: nothing is written here."""
        self.check_writable()

    def tidy(self) -> None:
        """Nothing: nobody has staged anything here."""


def folder_at(location: Any) -> Folder:
    """The folder that `location` names: a path, a URL, or a `zarr.abc.store.Store` whose top is the store.

    Nothing is asked of a remote place yet. Raises ConfigError for what is none of these, or needs a library that is
    not installed.
    """
    if isinstance(location, Folder):
        return location
    if isinstance(location, str | os.PathLike):
        text = os.fspath(location)
        if urlsplit(text).scheme in _OBSTORE | {"memory"} and "://" in text:
            return ZarrFolder(open_url(text))
        return Folder(local_path(location))
    from zarr.abc.store import Store  # zarr takes half a second to import

    if isinstance(location, Store):
        return ZarrFolder(ZarrBytes(location, " ".join(str(location).split())[:200]))
    raise ConfigError(
        "the place of a store",
        expected="a path, a URL or a store of Zarr's (zarr.abc.store.Store)",
        found=f"a {type(location).__name__}",
        remedy="pass one of these",
    )


def open_url(url: str) -> ZarrBytes:
    """The objects under a URL. Nothing is asked yet. Raises ConfigError where it cannot be opened."""
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
            expected="a URL of scheme, host and path",
            found="one with credentials, a query or a fragment, which messages would show",
            remedy="put credentials into the environment, or pass a store of Zarr's, such as ObjectStore",
        )
    name = url.rstrip("/")
    try:
        store = _opened(parts.scheme, name)
    except ImportError as error:
        raise ConfigError(
            name,
            expected=f"a library that reads {parts.scheme}:// URLs",
            found=f"none ({error})",
            remedy="pip install 'logitstore[remote]', or copy the store to a local disk",
        ) from None
    except Exception as error:  # of whatever library it is
        raise ConfigError(
            name,
            expected="a URL that can be opened",
            found=" ".join(str(error).split())[:200],
            remedy="check the URL and the environment, or pass a store of Zarr's, such as ObjectStore",
        ) from error
    return ZarrBytes(store, name, None if parts.scheme == "memory" else (open_url, name))


def _opened(scheme: str, url: str) -> "Store":
    """A store of Zarr's for a URL, by obstore where that is installed and knows it. Raises ImportError."""
    from zarr.storage import FsspecStore, ObjectStore

    if scheme in _OBSTORE:
        try:
            from obstore.store import HTTPStore, from_url
        except ImportError:
            pass
        else:
            if (
                scheme in _WEB
            ):  # also where the host is that of a cloud, which `from_url` would ask for credentials
                options: Any = {**_CLIENT, "allow_http": scheme == "http"}
                http = HTTPStore.from_url(url, client_options=options, retry_config=_RETRY)
                return ObjectStore(http, read_only=True)
            # Without options of the client: they would replace those of the environment (AWS_ALLOW_HTTP, …).
            return ObjectStore(from_url(url, retry_config=_RETRY), read_only=True)
    return FsspecStore.from_url(url, read_only=True)
