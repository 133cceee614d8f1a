"""Versions of augmentations: a stated one for ours, the source's sha256 for a user's.

A capture keeps the digest of the file that its augmentation is defined in, and a resumed one is refused where that is
another. So an edit of the file, even of a comment, would refuse all captures. `source_version` puts the author's word
in place of the digest: as long as the version stands, the same (seed, view, row) gives the same bytes.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from ...storage.errors import ConfigError

_Factory = TypeVar("_Factory", bound=Callable[..., Any])


def source_version(text: str) -> Callable[[_Factory], _Factory]:
    """State the version of what a factory makes; it stands where the digest of its source file would.

    text: any text but the empty one. Who had captures before gives the digest that they have ("sha256:…", as
    `logitstore inspect` shows it), and they go on. Change it with every change of the bytes of a view.
    Raises ConfigError for an empty one.

    >>> @source_version("darker 1")
    ... def darker():
    ...     return lambda example, generator: example // 2
    >>> stated_version(darker)
    'darker 1'
    """
    if not text.strip():
        raise ConfigError(
            "source_version",
            expected="a text",
            found=repr(text),
            remedy="number the versions, as in 'mine 1'",
        )

    def state(factory: _Factory) -> _Factory:
        factory._source_version = text  # type: ignore[attr-defined]
        return factory

    return state


def stated_version(factory: object) -> str | None:
    """Return the version that a factory states, or None. A subclass must state its own."""
    found = getattr(factory, "__dict__", {}).get("_source_version")
    return found if isinstance(found, str) else None
