"""A local store whose files are links, as other tools lay them; it is read, and never written to.

| tool | layout | what a link leads to |
| --- | --- | --- |
| Hugging Face's cache | `snapshots/<revision>/…` | `../../blobs/<sha>` |
| DVC, `cache.type = symlink` | the working tree | `.dvc/cache/files/md5/…` |
| git-annex | the working tree | `.git/annex/objects/…`, or nothing until `git annex get` |

Bytes are compared with the seals as ever. Links are not compared, they are followed: whoever laid them decides which files of
this machine lie under a name. So the caller asks for it.
"""

import os
from collections.abc import Sequence
from pathlib import PurePath

from ..errors import LimitExceeded, StorageRefused
from .local import MOST_LEVELS
from .paths import PathFolder
from .place import components
from .posix import typed_errors
from .system import WALKS, flags

MOST_FILES = 1 << 22
"""Files of a whole store; links may make more of a few."""


class LinkedFolder(PathFolder):
    """A folder of a local store whose links are followed, wherever they lead."""

    def __repr__(self) -> str:
        return f"LinkedFolder({str(self.path)!r})"

    def sub(self, name: str) -> "LinkedFolder":
        inner = components(name, self.path)
        made = LinkedFolder(self._top, (*self._inside, *inner))
        made.path = self.path.joinpath(*inner)
        return made

    def _flags(self) -> int:
        return flags("O_RDONLY", "O_NONBLOCK")

    def _look(self, within: Sequence[str]) -> tuple[str, os.stat_result]:
        """Return the path of a folder or a file below this one, and the status of what it leads to.

        Raises FileNotFoundError, NotADirectoryError, StorageRefused for a link that leads to nothing.
        """
        current = str(self._top)
        for name in (*self._inside, *within):
            if not WALKS:
                self._check_name(name, current)
            current = os.path.join(current, name)
        try:
            return current, os.stat(current)
        except FileNotFoundError:
            self._check_dangling(within)
            raise

    def _check_dangling(self, within: Sequence[str]) -> None:
        """Refuse a link on the way that leads to nothing. Raises StorageRefused."""
        current = str(self._top)
        for name in ("", *self._inside, *within):
            current = os.path.join(current, name) if name else current
            if os.path.islink(current) and not os.path.exists(current):
                raise StorageRefused(
                    str(PurePath(current)),
                    expected="a link to a file",
                    found=f"a link to {os.readlink(current)[:120]}, which is not there",
                    remedy="fetch the contents first: `git annex get`, `dvc pull`, or snapshot_download again",
                )

    def files(self) -> list[str]:
        """Return the keys of every file below the folder, those in linked folders among them.

        A link to a folder that it lies in is one key, and not listed. Raises LimitExceeded for more than `MOST_FILES`.
        """
        keys: list[str] = []
        todo: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [((), frozenset())]
        while todo:
            within, above = todo.pop()
            with typed_errors(self.path.joinpath(*within)):
                try:
                    folder, status = self._look(within)
                    names = os.listdir(folder)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                here = (status.st_dev, status.st_ino)
                if here in above:
                    keys.append("/".join(within))
                    continue
                for name in names:
                    inner = (*within, name)
                    if len(inner) <= MOST_LEVELS and os.path.isdir(os.path.join(folder, name)):
                        todo.append((inner, above | {here}))
                    else:
                        keys.append("/".join(inner))
            if len(keys) + len(todo) > MOST_FILES:
                raise LimitExceeded(
                    str(self.path),
                    expected=f"at most {MOST_FILES:,} files",
                    found="more of them, by links",
                    remedy="do not follow the links of this folder",
                )
        return sorted(keys)
