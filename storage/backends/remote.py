"""Stores that are not on a local disk, read through Zarr's stores.

`folder_at` opens a path, a URL, or a store of Zarr's (`zarr.abc.store.Store`). A `RemoteFolder` is read key by key, by
the code that checks seals, sizes and checksums. Buckets that obstore opens can be written to (`ObjectFolder`); all else
is read-only.

| URL | library | credentials, region … |
| --- | --- | --- |
| `s3://bucket/path`, `gs://`, `az://` … | obstore, else fsspec | the environment, as the library reads it |
| `http://host/path`, `https://` | obstore, else fsspec | none |
| `hf://datasets/owner/name@revision/path` | huggingface_hub | its token: HF_TOKEN, or `hf auth login` |
| `memory://path` | fsspec | of this process alone |
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError
from .cache_choice import cache_limits
from .listing import Lister, serve
from .local import local_path, writable
from .object_folder import ObjectFolder
from .options import check_options, for_obstore, secrets_of
from .paths import local_folder
from .place import Place, split_url
from .remote_folder import Address, RemoteFolder
from .shard_cache import CacheLimits, ShardCache
from .writable import Writable
from .zarr_bytes import ZarrBytes, is_cloud

if TYPE_CHECKING:
    from zarr.abc.store import Store

_WEB: Final = frozenset({"http", "https"})
_FSSPEC: Final = frozenset({"memory", "hf"})
"""Schemes that fsspec alone opens."""
_OBSTORE: Final = _WEB | {"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"}
_HUB_KINDS: Final = frozenset({"datasets", "spaces", "models", "buckets"})
_REMOTE: Final = "'logitstore[remote]'"
_LIBRARIES: Final = {"hf": "huggingface_hub"}
"""Packages that open the URLs of a scheme; by default those of `_REMOTE`."""
_CLIENT: Final[Any] = {"timeout": "120s", "connect_timeout": "10s"}
_RETRY: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
"""Retries before an error is raised; obstore's default takes minutes."""


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
        if split_url(text).scheme in _OBSTORE | _FSSPEC and "://" in text:
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
    is_remote = "://" in text and split_url(text).scheme in _OBSTORE | _FSSPEC
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
    if parts.scheme == "hf" and parts.path.strip("/").count("/") < (parts.netloc in _HUB_KINDS):
        raise ConfigError(
            name,
            expected="hf://datasets/OWNER/NAME, perhaps with @REVISION and a path",
            found="a URL without an owner and a name",
            remedy="name the data set as its page on the hub does",
        )
    try:
        store = _open_store(parts.scheme, name, options)
    except ImportError as error:
        raise ConfigError(
            name,
            expected=f"a library that reads {parts.scheme}:// URLs",
            found=str(error),
            remedy=f"pip install {_LIBRARIES.get(parts.scheme, _REMOTE)}, or copy the store to a local disk",
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
