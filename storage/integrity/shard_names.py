"""Names of shards on a disk, for arrays whose metadata are damaged."""

import re
from functools import cache

from ..backends.local import Folder
from ..format.constants import SAMPLES

_NAME = re.compile(r"c((?:\.(?:0|[1-9]\d{0,8}))+)")


class ShardNames:
    """The shards of a part, by view and block, as their file names give them.

    Only an array's `zarr.json` has its number of dimensions. A shard's name ends in a zero for each dimension of a
    row: `c.1.2.0` is block 2 of view 1.
    """

    def __init__(self, folder: Folder, part: str) -> None:
        self._folder = folder
        self._leading = 1 if part == SAMPLES else 2
        self._names_of = cache(self._list)

    def key(self, array: str, view: int, block: int) -> str:
        """Return the key of a shard; of one that is missing, its key in an array without dimensions of a row."""
        place = (view, block)[-self._leading :]
        name = self._names_of(array).get(place) or f"c.{'.'.join(map(str, place))}"
        return f"{array}/{name}"

    def _list(self, array: str) -> dict[tuple[int, ...], str]:
        names = {}
        for name in self._folder.names(array):
            if match := _NAME.fullmatch(name):
                index = tuple(map(int, match[1].split(".")[1:]))
                if not any(index[self._leading :]):
                    names[index[: self._leading]] = name
        return names
