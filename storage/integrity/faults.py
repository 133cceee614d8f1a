"""Faults of a store, each with the error that it raises and its cure."""

from dataclasses import dataclass

from ..errors import LimitExceeded, LogitStoreError, StoreCorrupt


@dataclass(frozen=True)
class Rebuild:
    """A cure: put back the bytes that follow from other files."""

    data: bytes
    """The bytes that the file had."""


@dataclass(frozen=True)
class Remake:
    """A cure: remove damaged files, so that the next run of their writer makes them again."""

    remove: tuple[str, ...]
    """Keys in the part, in the order in which they are removed; a missing file is passed over."""


Cure = Rebuild | Remake | None
"""None: only a copy brings the file back."""


@dataclass(frozen=True)
class Fault:
    """A file that is damaged, missing, or read as data though no seal lists it."""

    part: str
    """Name of its part; "" for the root and the log."""
    key: str
    """Key of the file in its part."""
    error: LogitStoreError
    """The error, as a reader raises it."""
    cure: Cure = None
    """How `repair` mends it."""
    digest: str = ""
    """sha256 of the intact file; "" if unknown."""
    block: tuple[int, int] | None = None
    """(view, block) that the file is a shard of; None for all other files."""


def curable(error: LogitStoreError, cure: Cure) -> Cure:
    """Return a cure, unless the file cannot be read, or is a link or a pipe: `repair` touches none of these."""
    return cure if isinstance(error, StoreCorrupt | LimitExceeded) else None
