"""URLs of stores: the schemes that are read, and texts that were meant as URLs and are none.

| text | meaning |
| --- | --- |
| `s3://bucket/x`, `S3://bucket/x` | a URL |
| `s3:/bucket/x`, `s3:bucket/x`, `Path("s3://bucket/x")` | an error: a path of that name would be a folder `s3:` |
| `s3n://bucket/x` | an error, with the nearest scheme |
| `file:///data/x`, `file:/data/x` | the path `/data/x` |
| `./s3:/x`, `C:\\x` | a path |
"""

import difflib
import os
import re
from pathlib import PurePath
from typing import Any, Final

from ..errors import ConfigError
from .place import split_url

WEB: Final = frozenset({"http", "https"})
"""Schemes of web servers."""
AWS: Final = frozenset({"s3", "s3a"})
"""Schemes of S3."""
OBSTORE: Final = WEB | AWS | {"gs", "az", "azure", "abfs", "abfss", "adl"}
"""Schemes that obstore opens."""
REMOTE: Final = OBSTORE | {"memory", "hf"}
"""Schemes of stores that are read through Zarr; fsspec opens those that obstore does not."""
_LIKE_A_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)
"""A scheme has two letters or more: `C:` is a drive of Windows."""


def is_url(location: Any) -> bool:
    """Return whether a text, or an `Address`, is a URL of a remote store. Raises ConfigError for one without a meaning.

    >>> is_url("s3://bucket/store.zarr"), is_url("S3://bucket/store.zarr"), is_url("runs/store.zarr")
    (True, True, False)
    """
    text = os.fspath(location)
    return isinstance(text, str) and "://" in text and split_url(text).scheme in REMOTE


def plain_url(location: Any) -> str:
    """Return a URL with its scheme in lower case, as the libraries expect it.

    >>> plain_url("S3://Bucket/Store.zarr")
    's3://Bucket/Store.zarr'
    """
    scheme, colon, rest = str(os.fspath(location)).partition("://")
    return f"{scheme.lower()}{colon}{rest}"


def discreet(text: str) -> str:
    """Return a URL, or a text like one, without credentials, query and fragment, in at most 200 characters.

    >>> discreet("s3://user:password@host/x?signature=y")
    's3://host/x'
    """
    scheme, colon, rest = text.partition(":")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    slashes = re.match(r"/*", rest)
    assert slashes is not None
    host, slash, path = rest[slashes.end() :].partition("/")
    return f"{scheme}{colon}{slashes[0]}{host.rpartition('@')[2]}{slash}{path}"[:200]


def check_url(url: str) -> None:
    """Refuse a URL without a host or a bucket, and one with credentials, a query or a fragment. Raises ConfigError."""
    parts = split_url(url)
    expected = "a URL of scheme, host and path"
    user, at, account = parts.netloc.partition("@")
    is_container = parts.scheme in ("abfs", "abfss", "adl") and ":" not in user and "@" not in account
    if parts.query or parts.fragment or (at and not (is_container and user and account)):
        raise ConfigError(
            discreet(url),
            expected=expected,
            found="a URL with credentials, a query or a fragment, which messages would show",
            remedy="put credentials into the environment, or pass a store of Zarr's, such as ObjectStore",
        )
    if not parts.netloc and parts.scheme != "memory":
        raise ConfigError(
            discreet(url),
            expected=expected,
            found=f"no name after {parts.scheme}://",
            remedy="correct the URL",
        )


def check_spelling(location: Any) -> None:
    """Refuse a text that was meant as a URL, of which a path would make a local folder. Raises ConfigError.

    >>> check_spelling("runs/store.zarr"), check_spelling("./s3:/bucket"), check_spelling("12:30/store.zarr")
    (None, None, None)
    """
    text = os.fspath(location)
    found = _LIKE_A_URL.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return
    scheme, slashes, where = found[1].lower(), found[2], discreet(text)
    below = where[len(scheme) + 1 :].lstrip("/")
    if scheme in REMOTE and len(slashes) != 2:
        is_path = isinstance(location, PurePath)
        count = {0: "no slash", 1: "one slash"}.get(len(slashes), f"{len(slashes)} slashes")
        raise ConfigError(
            where,
            expected=f"a URL, {scheme}://…, or a local path",
            found=f"{count} after {scheme}:{', as pathlib.Path leaves it' if is_path else ''}",
            remedy=f"{'pass the text' if is_path else 'write'} {scheme}://{below}, or ./{where} for a local folder",
        )
    if slashes and scheme not in REMOTE | {"file"}:
        near = difflib.get_close_matches(scheme, sorted(REMOTE | {"file"}), n=1, cutoff=0.6)
        raise ConfigError(
            where,
            expected="a local path, or a URL of s3, gs, az, abfs, https, http, hf, memory or file",
            found=f"a {scheme}:// URL",
            remedy=f"write {near[0]}://{below}" if near else "correct the scheme, or write ./ before a path",
        )
