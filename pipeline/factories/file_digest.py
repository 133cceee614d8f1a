"""Digests of files and folders that a result follows from."""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...storage.backends.posix import open_plain
from ...storage.format.documents import canonical_json

_SETTLED_SECONDS: Final = 2.0
"""Age of a file from which a new write changes its modification time, on any file system."""
_known: dict[tuple[str, int, int, int, int], str] = {}
"""Digests of files by place, size and time."""
MOST_BYTES: Final = 64 << 20
"""Bytes of a folder that is digested in full."""
MOST_FILES: Final = 10_000
"""Files of a folder that is digested in full."""
_SAMPLED_FILES: Final = 256
"""Files of a larger folder whose first and last bytes are digested."""
_SAMPLED_BYTES: Final = 1 << 16
"""Bytes of such a file that are read at either end."""


def file_digest(path: Path) -> str:
    """Return "sha256:…" of a file, hashed again only after a change of the file. Raises OSError."""
    before = path.stat()
    if not stat.S_ISREG(before.st_mode):  # a pipe would wait for ever
        raise OSError(errno.EINVAL, "no regular file")
    key = (os.path.realpath(path), before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns)
    if key in _known:
        return _known[key]
    with open_plain(path) as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    # A younger file may be written again without a change of its modification time.
    if time.time() - before.st_mtime >= _SETTLED_SECONDS:
        _known[key] = digest
    return digest


def folder_digest(folder: Path) -> str:
    """Return "sha256:…" of the names, sizes and contents of a folder's files. Raises OSError.

    A link inside it counts by its target's name, and is not followed. Of a folder of more than `MOST_FILES` or `MOST_BYTES`,
    contents count as a sample: the first and last 64 KiB of 256 files, evenly spaced by name. Times do not count, because a
    copy has others. Python's `__pycache__` is left out.
    """
    entries = sorted(_entries(folder))
    sizes = [size for _, size, _ in entries if size is not None]
    is_whole = len(entries) <= MOST_FILES and sum(sizes) <= MOST_BYTES
    files = [(name, size) for name, size, _ in entries if size is not None]
    step = 1 if is_whole else max(1, len(files) // _SAMPLED_FILES)
    read = [
        (name, file_digest(folder / name) if is_whole else _ends(folder / name, size))
        for name, size in files[::step]
    ]
    listed = [[name, size, link] for name, size, link in entries]
    content = canonical_json({"entries": listed, "contents": [list(one) for one in read]})
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _entries(folder: Path, prefix: str = "") -> Iterator[tuple[str, int | None, str]]:
    """Yield name, size and link target of everything in a folder: no size for what is no regular file."""
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        name = f"{prefix}{entry.name}"
        shown = name.encode(errors="backslashreplace").decode()  # a name may be no UTF-8
        if entry.is_symlink():
            yield shown, None, os.readlink(entry.path).encode(errors="backslashreplace").decode()
        elif entry.is_dir(follow_symlinks=False):
            if entry.name != "__pycache__":
                yield from _entries(Path(entry.path), f"{name}/")
        elif entry.is_file(follow_symlinks=False):
            yield shown, entry.stat(follow_symlinks=False).st_size, ""


def _ends(path: Path, size: int) -> str:
    """Digest the first and the last bytes of a file. Raises OSError."""
    with open_plain(path) as file:
        content = file.read(_SAMPLED_BYTES)
        file.seek(max(0, size - _SAMPLED_BYTES))
        content += file.read(_SAMPLED_BYTES)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
