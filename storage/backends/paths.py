"""A local store's folders, read by their paths: on systems that do not walk by descriptors (Windows).

Each component below the top is looked at before the file is opened: a link, a junction or a device is an error, as in
`local`. A folder that somebody exchanges for a link between the look and the opening is followed; `local` never does.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Final

from ..errors import UnsupportedSystem
from .local import MOST_LEVELS, Folder, untrusted
from .place import Place, components
from .plain_files import PlainFiles
from .posix import close_quietly, kind_of, typed_errors
from .system import WRITES, flags, leads_elsewhere

_FILE: Final = flags("O_RDONLY", "O_NONBLOCK", "O_NOFOLLOW")
_PLAIN: Final = re.compile(r"\w[\w.-]*(?<!\.)", re.ASCII)
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|conin|conout|(com|lpt)\d)(\..*)?", re.IGNORECASE)
"""Names that Windows takes for devices, in any folder and with any suffix."""


def _is_plain(name: str) -> bool:
    """Return whether a name is that of a file on every system.

    >>> [_is_plain(name) for name in ("c.0.1", "__logitstore__", "aux", "nul.json", "a:b", "wide.")]
    [True, True, False, False, False, False]
    """
    return bool(_PLAIN.fullmatch(name)) and not _RESERVED.fullmatch(name)


def local_folder(path: Path) -> Place:
    """Return the folder at a local path, to be written to where the system can."""
    return Folder(path) if WRITES else PathFolder(path)


class PathFolder(PlainFiles):
    """A folder of a local store, which is read by paths and never written to."""

    def __init__(self, path: Path, inside: Sequence[str] = ()) -> None:
        """Name a folder by the store's path, in which links are followed, and its place `inside` the store."""
        self._top = path.absolute()
        self._inside = tuple(inside)
        self.path: PurePath = path.joinpath(*inside)

    def __repr__(self) -> str:
        return f"PathFolder({str(self.path)!r})"

    def sub(self, name: str) -> "PathFolder":
        # `self.path` is as the user wrote it: the top stays absolute.
        made = PathFolder(self._top, (*self._inside, *components(name, self.path)))
        made.path = self.path.joinpath(*components(name, self.path))
        return made

    def kind(self) -> str:
        with typed_errors(self.path):
            try:
                return kind_of(os.stat(self._top).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return "nothing"

    def _flags(self) -> int:
        """Return the flags of `os.open` for a file that was looked at."""
        return _FILE

    def _look(self, within: Sequence[str]) -> tuple[str, os.stat_result]:
        """Return the path of a folder or a file below this one, and its status; no folder on the way is a link.

        Raises FileNotFoundError, NotADirectoryError, UntrustedStoreError.
        """
        current = str(self._top)
        status = os.stat(current)
        for name in (*self._inside, *within):
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), current)
            self._check_name(name, current)
            current = os.path.join(current, name)
            status = os.lstat(current)
            if leads_elsewhere(status):
                raise untrusted(
                    PurePath(current),
                    kind_of(status.st_mode) if stat.S_ISLNK(status.st_mode) else "a junction",
                )
        return current, status

    @staticmethod
    def _check_name(name: str, current: str) -> None:
        """Refuse a name of which Windows makes another one, or a device. Raises UnsupportedSystem."""
        if not _is_plain(name):
            raise UnsupportedSystem(
                str(PurePath(current, name)),
                expected="a name that is a file's on Windows, too",
                found=repr(name)[:80],
                remedy="read this part on Linux or macOS",
            )

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open a plain file; yield its descriptor and size."""
        with typed_errors(self.path / key):
            try:
                path, seen = self._look(components(key, self.path))
            except NotADirectoryError as error:  # a file on the way: the key does not exist
                raise FileNotFoundError(
                    errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / key)
                ) from error
            if not stat.S_ISREG(seen.st_mode):
                raise untrusted(self.path / key, kind_of(seen.st_mode))
            handle = os.open(path, self._flags())
            try:
                status = os.fstat(handle)
                if not os.path.samestat(seen, status):
                    raise untrusted(self.path / key, "another file, put in its place while it was opened")
                yield handle, status.st_size
            finally:
                close_quietly(handle)

    def exists(self, key: str) -> bool:
        *within, name = components(key, self.path)
        with typed_errors(self.path / key):
            try:
                folder, status = self._look(within)
                if not stat.S_ISDIR(status.st_mode):
                    return False
                self._check_name(name, folder)
                os.lstat(os.path.join(folder, name))
            except (FileNotFoundError, NotADirectoryError, UnsupportedSystem):
                return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        within = components(prefix, self.path) if prefix else []
        with typed_errors(self.path / prefix):
            try:
                return sorted(os.listdir(self._look(within)[0]))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def files(self) -> list[str]:
        """Return the keys of every file below the folder, and of every link; links are not followed."""
        keys: list[str] = []
        todo: list[tuple[str, ...]] = [()]
        while todo:
            within = todo.pop()
            with typed_errors(self.path.joinpath(*within)):
                try:
                    folder = self._look(within)[0]
                    for name in os.listdir(folder):
                        inner = (*within, name)
                        status = os.lstat(os.path.join(folder, name))
                        is_folder = stat.S_ISDIR(status.st_mode) and not leads_elsewhere(status)
                        if is_folder and len(inner) <= MOST_LEVELS and _is_plain(name):
                            todo.append(inner)
                        else:
                            keys.append("/".join(inner))
                except (FileNotFoundError, NotADirectoryError):
                    keys += ["/".join(within)] if within else []
        return sorted(keys)
