"""How do bytes get under a name, once and for good, and come back?

`Folder` is a directory and its keys ("peak/c.0.3"). Its one way to write is `put_new`: the object
appears whole or not at all, under a name that was free, and is durable before the call returns.

    temporary file (O_EXCL) ─ write ─ fsync ─ link to the name ─ unlink ─ fsync the directory
                                                 └─ the name is taken: somebody else was first

Errors of the operating system become the typed errors of `errors`, with the key in the message.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from .errors import ConfigError, StorageError, StorageFull, TransientIOError
from .format import STAGING

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ATTEMPTS = 8
"""How often a writer stages an object anew where others tidy the staging folder under its hands."""
_TRANSIENT = {errno.EIO, errno.EINTR, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}


@contextlib.contextmanager
def _typed(where: Path) -> Iterator[None]:
    """Turn OSError into the error that says what to do. FileNotFoundError and the like pass."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, NotADirectoryError, StorageError):
        raise
    except OSError as error:
        found = f"{error.strerror or error} (errno {error.errno})"
        if error.errno in _FULL:
            raise StorageFull(
                str(where),
                expected="room to write",
                found=found,
                remedy="free space and run the same command again; what was committed is intact",
            ) from error
        if error.errno in _TRANSIENT:
            raise TransientIOError(
                str(where),
                expected="a working file system",
                found=found,
                remedy="run the same command again; what was committed is intact",
            ) from error
        raise StorageError(
            str(where),
            expected="a path that can be read and written",
            found=found,
            remedy="check the path and its permissions",
        ) from error


def local_path(location: str | os.PathLike[str]) -> Path:
    """The path that `location` names. Raises ConfigError for the URL of another machine.

    >>> local_path("file:///data/store.zarr").as_posix()
    '/data/store.zarr'
    """
    text = os.fspath(location)
    parts = urlsplit(text)
    if parts.scheme == "file":
        return Path(parts.path)
    if "://" in text:
        raise ConfigError(
            text,
            expected="a local path",
            found=f"a {parts.scheme}:// URL",
            remedy="copy the store to a local disk first; this version reads local stores alone",
        )
    return Path(text)


class Folder:
    """A directory, as a place for objects that are written once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """Where it is."""

    def __repr__(self) -> str:
        return f"Folder({str(self.path)!r})"

    def sub(self, name: str) -> "Folder":
        """The folder of a part, with staging of its own."""
        return Folder(self.path / name)

    def read(self, key: str) -> bytes:
        """The whole object. Raises FileNotFoundError."""
        path = self.path / key
        with _typed(path):
            return path.read_bytes()

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int]:
        """`length` bytes from `offset` (fewer at the end), and the size of the object. Raises FileNotFoundError."""
        path = self.path / key
        with _typed(path):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(handle).st_size
                pieces, end = [], min(size, offset + length)
                while offset < end:
                    piece = os.pread(handle, end - offset, offset)
                    if not piece:
                        break
                    pieces.append(piece)
                    offset += len(piece)
                return b"".join(pieces), size
            finally:
                os.close(handle)

    def exists(self, key: str) -> bool:
        """Whether there is an object of that name."""
        path = self.path / key
        with _typed(path):
            return path.exists()

    def names(self, prefix: str = ".") -> list[str]:
        """Names directly under `prefix`, sorted; none where there is no such folder."""
        path = self.path / prefix
        with _typed(path):
            try:
                return sorted(os.listdir(path))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object under a name that is free. Returns False where the name is taken.

        When it returns True the object is durable, and so is its name.
        Raises StorageFull, TransientIOError or StorageError; nothing is then left behind.
        """
        final = self.path / key
        try:
            with _typed(final):
                for _ in range(_ATTEMPTS):
                    with contextlib.suppress(FileNotFoundError):
                        return self._stage_and_link(final, data)
        except NotADirectoryError as error:
            raise StorageError(
                str(final),
                expected="folders all the way",
                found="a file on the way",
                remedy="choose another path",
            ) from error
        raise TransientIOError(
            str(final),
            expected="a staging folder that stays",
            found=f"one that vanished {_ATTEMPTS} times",
            remedy="run the same command again; what was committed is intact",
        )

    def _stage_and_link(self, final: Path, data: bytes) -> bool:
        """One attempt of `put_new`. Raises FileNotFoundError where another writer tidied the staging folder."""
        staging = self.path / STAGING
        self._make(staging)
        self._make(final.parent)
        temporary = staging / secrets.token_hex(12)
        won = True
        try:
            _write_durably(temporary, data)
            os.link(temporary, final)
        except FileExistsError:
            won = False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        # Also where the name was taken: whoever took it may not have come as far as this.
        _sync_directory(final.parent)
        return won

    def remove(self, key: str) -> None:
        """Take away an object that no record speaks of. Gone already is fine."""
        path = self.path / key
        with _typed(path):
            path.unlink(missing_ok=True)
            _sync_directory(path.parent)

    def drop_staging(self) -> None:
        """Take away the staging folder and what killed writers left there; live ones make it anew."""
        with contextlib.suppress(OSError):
            for name in self.names(STAGING):
                (self.path / STAGING / name).unlink(missing_ok=True)
            (self.path / STAGING).rmdir()

    @staticmethod
    def _make(directory: Path) -> None:
        """Make a directory and its parents, each durable in the one above it."""
        missing = []
        current = directory
        while not current.is_dir():
            missing.append(current)
            current = current.parent
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                path.mkdir()
            _sync_directory(path.parent)


def _write_durably(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
