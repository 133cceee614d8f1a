"""The search for faults of one part, as far as sealed and unsealed parts share it."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from ..format.constants import SAMPLES
from ..parts.root import Root
from ..parts.sealed_part import KINDS
from ..progress import Progress
from .checks import FAILURES, typed
from .faults import Cure, Fault, curable

_SHARD_NAME = re.compile(r"c((?:\.(?:0|[1-9]\d{0,8}))+)")


@dataclass
class Search:
    """A search for the faults of a store: its settings, and counts of the files that it compared."""

    root: Root
    """The store, opened."""
    deep: bool
    """Whether shards are read, beyond their sizes."""
    repairs: bool
    """Whether it is for `repair`, which needs the bytes of lost files, and not for `verify`."""
    progress: Progress
    """Called after each block."""
    objects: int = 0
    """Files of every kind that were compared so far."""
    bytes: int = 0
    """Bytes of the shards among them."""


class PartDiagnosis:
    """The search for the faults of one part."""

    def __init__(self, search: Search, name: str) -> None:
        self.search, self.name = search, name
        self.root, self.deep = search.root, search.deep
        self.folder = search.root.folder.sub(name)
        self.kind = KINDS[name.partition("/")[0]]
        self._shards_of = cache(self._listed_shards)

    def progress(self, done: int, total: int) -> None:
        """Report progress in blocks."""
        doing = "repairing" if self.search.repairs else "verifying"
        self.search.progress(f"{doing} {self.name}", done, total, "blocks")

    def where(self, key: str) -> str:
        """Return the path of a file, for errors."""
        return str(self.folder.path / key)

    def compare(
        self,
        key: str,
        check: Callable[..., object],
        *arguments: object,
        cure: Cure = None,
        digest: str = "",
        block: tuple[int, int] | None = None,
    ) -> Iterator[Fault]:
        """Call a check of a file, and yield its fault if it fails."""
        try:
            check(*arguments)
        except FAILURES as failure:
            error = typed(failure, self.where(key))
            yield Fault(self.name, key, error, curable(error, cure), digest, block)

    def shard_key(self, array: str, view: int, block: int) -> str:
        """Return the key of a shard by the names on the disk, for an array whose metadata are damaged.

        Only an array's `zarr.json` has its number of dimensions, and a shard's name ends in a zero for each dimension
        of a row: `c.1.2.0` is block 2 of view 1. A missing shard gets the name of an array without such dimensions.
        """
        place = (block,) if self.name == SAMPLES else (view, block)
        name = self._shards_of(array).get(place) or f"c.{'.'.join(map(str, place))}"
        return f"{array}/{name}"

    def _listed_shards(self, array: str) -> dict[tuple[int, ...], str]:
        leading = 1 if self.name == SAMPLES else 2
        shards = {}
        for name in self.folder.names(array):
            if match := _SHARD_NAME.fullmatch(name):
                index = tuple(map(int, match[1].split(".")[1:]))
                if not any(index[leading:]):
                    shards[index[:leading]] = name
        return shards
