"""The place of the cache of remote reads and its bytes, by argument, environment or default."""

import os
import re
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError
from ..format.documents import shorten
from .shard_cache import CacheLimits
from .system import WRITES
from .urls import is_url

FOLDER, SIZE = "LOGITSTORE_CACHE", "LOGITSTORE_CACHE_SIZE"
"""Variables of the environment: the folder, or "off"; its bytes, such as "50GB"."""
DEFAULT_BYTES: Final = 32 << 30
_OFF: Final = frozenset({"", "0", "off", "no", "none", "false"})
_ON: Final = frozenset({"1", "on", "yes", "true"})
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def cache_limits(cache: Any = None, cache_size: Any = None) -> CacheLimits | None:
    """Return where shards are kept, and how many bytes of them; None if none are.

    cache: a folder, True or False; None for the environment's, and without one the user's own cache. cache_size: bytes, or
    a text such as "50GB". Raises ConfigError.
    """
    if cache is None:
        text = os.environ.get(FOLDER)
        word = "on" if text is None else text.strip().lower()
        cache = word in _ON or (text if word not in _OFF else False)
    if not isinstance(cache, bool | str | os.PathLike):
        raise ConfigError(
            "cache",
            expected="a folder, True or False",
            found=f"a {type(cache).__name__}",
            remedy="pass a path",
        )
    if not isinstance(cache, bool) and is_url(os.fspath(cache)):
        raise ConfigError(
            "cache", expected="a folder of this machine", found="a URL", remedy="pass a local path"
        )
    most = bytes_of(os.environ.get(SIZE, DEFAULT_BYTES), SIZE) if cache_size is None else bytes_of(cache_size)
    if cache is False or not WRITES:
        return None
    return CacheLimits(user_cache() if cache is True else Path(cache).expanduser().absolute(), most)


def user_cache() -> Path:
    """Return the folder of this user's caches for logitstore."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("logitstore", appauthor=False))


def bytes_of(value: Any, name: str = "cache_size") -> int:
    """Return a number of bytes. Raises ConfigError. name: the argument, for messages.

    >>> bytes_of("50GB"), bytes_of("1.5 GiB"), bytes_of(4096)
    (50000000000, 1610612736, 4096)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(
            name,
            expected="a number of bytes, such as 50GB or 32GiB",
            found=shorten(value),
            remedy=f"correct {name}",
        )
    number, unit, binary = match.groups()
    power = " kmgt".index(unit.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)
