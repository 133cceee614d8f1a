"""Calls that some operating systems lack. No other module of storage asks on which one it runs.

|                                      | Linux       | macOS          | Windows                  |
| ------------------------------------ | ----------- | -------------- | ------------------------ |
| walk by descriptors of directories   | yes         | yes            | no: `paths.PathFolder`   |
| lock a file (`flock`)                | yes         | yes            | no: nothing is written   |
| sync a file to the disk              | `fsync`     | `F_FULLFSYNC`  | not needed               |
| rename that replaces nothing         | `renameat2` | `renameatx_np` | not needed               |
| open a file without a name           | `O_TMPFILE` | no             | not needed               |
| read into a buffer at an offset      | `preadv`    | from macOS 11  | seek and read            |
| limit the memory of a process        | `RLIMIT_AS` | no             | no                       |
"""

import contextlib
import ctypes
import errno
import importlib
import io
import os
import platform
import re
import signal
import stat
from typing import Any, Final

from ..errors import UnsupportedSystem


def _imported(name: str) -> Any:
    """Import a module of the standard library; None on a system without it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl: Final = _imported("fcntl")
_resource: Final = _imported("resource")

WALKS: Final = bool(os.supports_dir_fd) and all(
    hasattr(os, f"O_{name}") for name in ("DIRECTORY", "NOFOLLOW")
)
"""Whether a folder is walked by descriptors, so that no link is followed, also while somebody exchanges folders."""
WRITES: Final = WALKS and fcntl is not None
"""Whether stores are written: a writer needs descriptors of its folders, links and locks."""
LINK_ERRORS: Final = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EMLINK})
"""Errors of `open` for a link that is not to be followed: of Linux for a directory, else, and of BSD."""
UNOPENED: Final = frozenset({errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EOPNOTSUPP})
"""Errors of `open` for a link, a socket or a device in the place of a file."""
NAMELESS: Final = getattr(os, "O_TMPFILE", 0)
"""Flag that opens a file without a name in a folder; 0 where there is none."""
_RENAMES: Final = (("renameat2", 1), ("renameatx_np", 4))
"""Renames that replace nothing, each with its flag: RENAME_NOREPLACE of Linux, RENAME_EXCL of macOS."""
_NAME_SURROGATE: Final = 0x2000_0000
"""Bit in the tag of a reparse point of Windows that leads elsewhere: a link or a junction."""


def check_writes(where: str) -> None:
    """Refuse to write on a system that lacks the calls. Raises UnsupportedSystem."""
    if not WRITES:
        raise UnsupportedSystem(
            where,
            expected="Linux or macOS, which writing needs",
            found=platform.system() or "an unknown system",
            remedy="write there and copy the store here, where it is opened, streamed, verified and inspected",
        )


def flags(*names: str) -> int:
    """Return flags of `os.open` together, without those that this system lacks.

    Inheritance and conversion of line ends, which Windows has instead, are switched off.
    """
    value = 0
    for name in (*names, "O_CLOEXEC", "O_NOINHERIT", "O_BINARY"):
        value |= getattr(os, name, 0)
    return value


def leads_elsewhere(status: Any) -> bool:
    """Return whether the status of a path, of which no link was followed, is that of a link or a junction."""
    return stat.S_ISLNK(status.st_mode) or bool(getattr(status, "st_reparse_tag", 0) & _NAME_SURROGATE)


def sync(handle: int) -> None:
    """Make a file or the names in a directory durable. macOS' own fsync leaves data in the cache of the disk."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # a file system without it, such as a network's
            fcntl.fcntl(handle, full)
            return
    os.fsync(handle)


def read_some(handle: int, length: int, offset: int) -> bytes:
    """Read at most `length` bytes from `offset`. Without `pread`, a descriptor belongs to one thread."""
    if hasattr(os, "pread"):
        return os.pread(handle, length, offset)
    os.lseek(handle, offset, os.SEEK_SET)
    return os.read(handle, length)


def read_into(handle: int, piece: memoryview, offset: int) -> int:
    """Read bytes from `offset` into `piece`; return their number, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [piece], offset)
    if hasattr(os, "pread"):
        data = os.pread(handle, len(piece), offset)
        piece[: len(data)] = data
        return len(data)
    os.lseek(handle, offset, os.SEEK_SET)
    return io.FileIO(handle, closefd=False).readinto(piece)


def rename_noreplace(from_directory: int, source: str, to_directory: int, target: str) -> None:
    """Rename a file to a free name. Raises FileExistsError; OSError if the system lacks the call."""
    library = ctypes.CDLL(None, use_errno=True)
    for name, flag in _RENAMES:
        if hasattr(library, name):
            names = (from_directory, os.fsencode(source), to_directory, os.fsencode(target))
            if getattr(library, name)(*names, flag):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            return
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def limit_memory(most: int) -> None:
    """Limit the address space of this process, where the system can, and write no core dumps."""
    if _resource is None:
        return
    _resource.setrlimit(_resource.RLIMIT_CORE, (0, 0))
    _, hard = _resource.getrlimit(_resource.RLIMIT_AS)
    most = most if hard == _resource.RLIM_INFINITY else min(most, hard)
    # macOS refuses limits below the address space that it reserves.
    with contextlib.suppress(ValueError, OSError):
        _resource.setrlimit(_resource.RLIMIT_AS, (most, hard))


def end_process() -> None:
    """End this process at once, whatever its threads do."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def path_of_url(path: str) -> str:
    r"""Return the path of a file:// URL: on Windows the slash before a drive is none of it.

    >>> path_of_url("/data/store.zarr")
    '/data/store.zarr'
    """
    return path if WALKS else re.sub(r"^/(?=[A-Za-z]:)", "", path)
