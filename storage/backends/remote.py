"""Places of stores: paths, URLs, and Zarr's own stores, through which all that is not on a local disk is read.

`folder_at` opens a path, a URL, or a store of Zarr's (`zarr.abc.store.Store`), as an `Access` says. A `RemoteFolder` is
read key by key, by the code that checks seals, sizes and checksums. Buckets that obstore opens can be written to
(`ObjectFolder`); all else is read-only.

| URL | library | credentials, region … |
| --- | --- | --- |
| `s3://bucket/path` | obstore, else fsspec | the environment, and the configuration of AWS (`aws`) |
| `gs://`, `az://` … | obstore, else fsspec | the environment, as the library reads it |
| `http://host/path`, `https://` | obstore, else fsspec | none |
| `hf://datasets/owner/name@revision/path` | huggingface_hub | its token: HF_TOKEN, or `hf auth login` |
| `memory://path` | fsspec | of this process alone |
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError
from .aws import with_configuration
from .cache_choice import cache_limits
from .links import LinkedFolder
from .listing import Lister, serve
from .local import local_path, writable
from .object_folder import ObjectFolder
from .options import check_options, for_obstore, secrets_of, without
from .paths import local_folder
from .place import Place, split_url
from .remote_folder import Address, RemoteFolder
from .shard_cache import CacheLimits, ShardCache
from .urls import AWS, OBSTORE, WEB, check_spelling, check_url, is_url, plain_url
from .writable import Writable
from .zarr_bytes import ZarrBytes, is_cloud

if TYPE_CHECKING:
    from zarr.abc.store import Store

_HUB_KINDS: Final = frozenset({"datasets", "spaces", "models", "buckets"})
_REMOTE: Final = "'logitstore[remote]'"
_LIBRARIES: Final = {"hf": "huggingface_hub"}
"""Packages that open the URLs of a scheme; by default those of `_REMOTE`."""
_CLIENT: Final[Any] = {"timeout": "120s", "connect_timeout": "10s"}
_RETRY: Final[Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
"""Retries before an error is raised; obstore's default takes minutes."""


@dataclass(frozen=True)
class Access:
    """The way to a store, besides its path or URL."""

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Options of the library that opens a URL; they may hold credentials."""
    cache: CacheLimits | None = None
    """The local disk for shards of a remote store; None keeps none."""
    follow_links: bool = False
    """Whether links in a local store are followed; it is then read alone."""


PLAIN: Final = Access()
"""No options, no cache, no links."""


def access_of(
    storage_options: Mapping[str, Any] | None = None,
    cache: Any = False,
    cache_size: Any = None,
    follow_links: bool = False,
) -> Access:
    """Return an access as a caller of `open_store` gives it; `cache` as for `cache_limits`. Raises ConfigError."""
    limits = None if cache is False else cache_limits(cache, cache_size)
    return Access(check_options(storage_options), limits, bool(follow_links))


def usual_access() -> Access:
    """Return an access without options, with the cache of the environment."""
    return access_of(cache=None)


def folder_at(location: Any, access: Access = PLAIN) -> Place:
    """Return the folder at a path, at a URL, or at the top of a `zarr.abc.store.Store`, without any request.

    Raises ConfigError for anything else, or if a library is not installed.
    """
    if isinstance(location, Place):
        return location
    if isinstance(location, str | os.PathLike):
        if is_url(location):
            return _folder_of(open_url(plain_url(location), access.options, access.cache))
        path = _local(location)
        if access.options:
            raise ConfigError(
                "storage_options",
                expected="no options for a path",
                found=", ".join(map(str, access.options))[:80],
                remedy="leave them out, or pass a URL",
            )
        return LinkedFolder(path) if access.follow_links else local_folder(path)
    from zarr.abc.store import Store  # zarr takes half a second to import

    if isinstance(location, Store):
        kept = None if access.cache is None else ShardCache(access.cache)
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


def folder_to_write(location: Any, access: Access = PLAIN) -> Writable:
    """Return the folder at a place that a store is written to, without any request. Raises ConfigError, UnsupportedSystem."""
    return writable(folder_at(location, access))


def path_of(location: str | os.PathLike[str]) -> PurePath:
    """Return the path of a store: a local one, or an `Address`. Raises ConfigError for a URL of an unknown scheme.

    >>> str(path_of("S3://bucket/store.zarr/").parent), str(path_of("runs/store.zarr").parent)
    ('s3://bucket', 'runs')
    """
    if not is_url(location):
        return _local(location)
    check_url(plain_url(location))
    return Address(plain_url(location))


def _local(location: str | os.PathLike[str]) -> Path:
    """Return a local path. Raises ConfigError; for an unknown scheme, with the nearest one."""
    check_spelling(location)
    return local_path(location)


def open_url(
    url: str, options: Mapping[str, Any] | None = None, cache: CacheLimits | None = None
) -> ZarrBytes:
    """Return the objects under a URL, without any request. Raises ConfigError if it cannot be opened."""
    options = dict(options or {})
    check_url(url)
    secrets = secrets_of(options)
    parts = split_url(url)
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
    except ConfigError:
        raise
    except ImportError as error:
        raise ConfigError(
            name,
            expected=f"a library that reads {parts.scheme}:// URLs",
            found=str(error),
            remedy=f"pip install {_LIBRARIES.get(parts.scheme, _REMOTE)}, or copy the store to a local disk",
        ) from None
    except Exception as error:  # noqa: BLE001 - the libraries' own classes
        raise ConfigError(
            name,
            expected="a URL that can be opened",
            found=without(" ".join(str(error).partition("Debug source")[0].split()), secrets)[:200],
            remedy="check the URL and the environment, or pass a store of Zarr's, such as ObjectStore",
        ) from (None if secrets else error)
    apart = Lister(name, f"{__name__}:serve_listings", options).ask if is_cloud(store) else None
    again = None if parts.scheme == "memory" else (open_url, (name, options, cache))
    # What lies in the memory of this machine is not kept on its disk.
    kept = None if cache is None or parts.scheme == "memory" else ShardCache(cache)
    return ZarrBytes(store, name, again, apart, kept, secrets)


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
    if scheme in WEB:  # not `from_url`: for a cloud's host it would ask for credentials
        client: Any = {**_CLIENT, "allow_http": scheme == "http", **options}
        http = HTTPStore.from_url(url, client_options=client, retry_config=_RETRY)
        return ObjectStore(http, read_only=True)
    if scheme in OBSTORE:
        # Without client options, which would replace those of the environment (AWS_ALLOW_HTTP, …).
        given, keys = with_configuration(options) if scheme in AWS else (options, None)
        provider: Any = {} if keys is None else {"credential_provider": keys}
        return ObjectStore(from_url(url, retry_config=_RETRY, **for_obstore(given), **provider))
    return FsspecStore.from_url(url, storage_options=dict(options) or None, read_only=True)
