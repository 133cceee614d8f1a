"""Versions of augmentations: a stated one for ours, the source's sha256 for a user's.

A capture keeps the digest of the file that defines its augmentation, and resumes only with the same digest. An edit of
the file, even of a comment, would end all captures. `source_version` replaces the digest by the author's promise: with
the same version, the same (seed, view, row) gives the same bytes.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from ...storage.errors import ConfigError

_Factory = TypeVar("_Factory", bound=Callable[..., Any])


def source_version(text: str) -> Callable[[_Factory], _Factory]:
    """State the version of a factory's augmentation, which replaces the digest of its source file.

    text: any text that is not empty. To resume captures without a version, pass their digest ("sha256:…", as
    `logitstore inspect` shows it). Change the version whenever the bytes of a view change.
    Raises ConfigError for an empty text.

    >>> @source_version("darker 1")
    ... def darker():
    ...     return lambda example, generator: example // 2
    >>> stated_version(darker)
    'darker 1'
    """
    if not text.strip():
        raise ConfigError(
            "source_version",
            expected="a text that is not empty",
            found=repr(text),
            remedy="number the versions, as in 'mine 1'",
        )

    def state(factory: _Factory) -> _Factory:
        factory._source_version = text  # type: ignore[attr-defined]
        return factory

    return state


def stated_version(factory: object) -> str | None:
    """Return the version that a factory states, or None. A subclass must state its own."""
    version = getattr(factory, "__dict__", {}).get("_source_version")
    return version if isinstance(version, str) else None
