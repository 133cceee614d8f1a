"""The store under repair, and what its repair did."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..backends.lease import Lease
from ..backends.local import Folder
from ..errors import LimitExceeded, LogitStoreError, ManifestInvalid, StoreCorrupt
from ..format.constants import PRIVATE, STAGING
from .objects import check_file

DONE, BEYOND = 0, 1
"""What `logitstore repair` leaves with."""


@dataclass
class Repairs:
    """What repair did, or with `dry_run` would do. Keys are relative to the store."""

    dry_run: bool = False
    """Whether nothing was changed."""
    rebuilt: list[str] = field(default_factory=list)
    """Files that were made from others, with the bytes that they had."""
    removed: list[str] = field(default_factory=list)
    """Files that were torn, or not of this store, and can be made again."""
    adopted: list[str] = field(default_factory=list)
    """Commit records of blocks whose shards were whole and whose record was lost."""
    missing: list[str] = field(default_factory=list)
    """Metadata and small arrays of sealed parts that the next run of their writer puts back."""
    blocks: dict[str, int] = field(default_factory=dict)
    """Blocks of sealed parts that are to be made again, by part."""
    unsealed: list[str] = field(default_factory=list)
    """Parts that are not sealed; whatever wrote them goes on where it stopped."""
    beyond: list[LogitStoreError] = field(default_factory=list)
    """What only a copy brings back, and strays that plain readers take for data."""
    strays: list[str] = field(default_factory=list)
    """Files that nothing knows; they are left where they are."""

    @property
    def exit_code(self) -> int:
        """0 where nothing is wrong, or nothing that the next run of a writer does not mend; 1 otherwise."""
        return BEYOND if self.beyond else DONE


class _Site:
    """A part, or the root, while it is mended: every change goes through here, and is written down."""

    def __init__(self, folder: Folder, name: str, done: Repairs) -> None:
        self.folder = folder
        self.done = done
        self._prefix = f"{name}/" if name else ""

    def key(self, key: str) -> str:
        """A key as seen from the store."""
        return f"{self._prefix}{key}"

    def path(self, key: str) -> str:
        """Where a file is, for messages."""
        return str(self.folder.path / key)

    def remove(self, key: str) -> None:
        """Take a file away."""
        self.done.removed.append(self.key(key))
        if not self.done.dry_run:
            self.folder.remove(key)

    def rebuild(self, key: str, data: bytes) -> None:
        """Put a file back, in place of what is there."""
        self.done.rebuilt.append(self.key(key))
        if not self.done.dry_run:
            self.folder.remove(key)
            self.folder.put_new(key, data)

    def give_up(self, error: LogitStoreError) -> None:
        """Note what is beyond repair."""
        self.done.beyond.append(error)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the part alone, as long as it is changed. Raises WriterBusy."""
        if self.done.dry_run:
            yield
            return
        lease = Lease(self.folder)
        lease.take_alone()
        try:
            yield
        finally:
            lease.release()

    @property
    def has_litter(self) -> bool:
        """Whether killed writers left staged files, or a lock."""
        return bool({STAGING.rpartition("/")[2], "lock"} & set(self.folder.names(PRIVATE)))

    def damage(self, key: str, digest: str) -> StoreCorrupt | None:
        """What is wrong with a file that a seal lists; None where it is intact, or cannot be read."""
        try:
            check_file(self.folder, key, digest)
        except StoreCorrupt as error:
            return error
        except LimitExceeded as error:  # whatever it is, it is not what was sealed
            return ManifestInvalid(
                error.where, expected=error.expected, found=error.found, remedy=error.remedy
            )
        except LogitStoreError as error:
            self.give_up(error)
        return None


def _lost(where: str) -> ManifestInvalid:
    return ManifestInvalid(
        where,
        expected="a file that follows from others",
        found="one that does not",
        remedy="restore it from a copy",
    )
