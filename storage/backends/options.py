"""Options of the libraries that open URLs: `open_store(url, storage_options={…})`.

They may hold credentials. So no message shows them, and no file of logitstore's does; whoever pickles an open store sends
them along, since the other process opens it anew.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from ..errors import ConfigError

CLIENT: Final = "client_options"
_OF_CLIENT: Final = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "default_headers",
        "http1_only",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_url",
        "timeout",
        "user_agent",
    }
)
"""Options of obstore's client, which may stand beside those of the cloud."""
_SHORT: Final = 5
"""Characters of a text that is no secret."""


def check_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of names and plain values. Raises ConfigError, without their values."""
    try:
        copied = json.loads(json.dumps(dict(options or {})))
        if all(isinstance(key, str) for key in options or {}):
            return dict(copied)
        found = "a name that is no text"
    except (TypeError, ValueError):
        found = "values of other kinds, or no table"
    raise ConfigError(
        "storage_options",
        expected="a dict of names with texts, numbers, flags, or dicts of these",
        found=found,
        remedy="pass such values; or pass a store of Zarr's, such as ObjectStore, with a credential provider",
    )


def for_obstore(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `obstore.store.from_url`.

    Options of a client replace those of the environment, of which AWS_ALLOW_HTTP is therefore added again.
    """
    client = dict(options.get(CLIENT, {}))
    config = {}
    for key, value in options.items():
        plain = key.lower().removeprefix("aws_").removeprefix("azure_").removeprefix("google_")
        if plain in _OF_CLIENT:
            client[plain] = value
        elif key != CLIENT:
            config[key] = str(value).lower() if isinstance(value, bool) else value
    if client and "allow_http" not in client:
        flags = (os.environ.get(f"{cloud}_ALLOW_HTTP", "") for cloud in ("AWS", "AZURE", "GOOGLE"))
        client["allow_http"] = any(flag.lower() in ("1", "true", "yes", "on") for flag in flags)
    for name in ("allow_http", "allow_invalid_certificates", "http1_only", "http2_only"):
        if isinstance(value := client.get(name), str):
            client[name] = value.lower() in ("1", "true", "yes", "on")
    return {**({"config": config} if config else {}), **({"client_options": client} if client else {})}


def secrets_of(options: Any) -> tuple[str, ...]:
    """Return the texts in options that no message may show, the longest first.

    >>> secrets_of({"secret_access_key": "abcdefgh", "client_options": {"default_headers": {"a": "bearer x"}}})
    ('abcdefgh', 'bearer x')
    """
    return tuple(sorted(set(_texts(options)), key=lambda text: (-len(text), text)))


def without(text: str, secrets: Iterable[str]) -> str:
    """Return a text without others.

    >>> without("user abcdefgh is unknown", ["abcdefgh"])
    'user … is unknown'
    """
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, str) and len(value) > _SHORT:
        yield value
