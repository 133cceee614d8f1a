"""Shards of remote stores on a local disk, by the sha256 that their seals have of them.

    <folder>/v1/objects/ab/ab12…    a shard, whole: it was compared with its sha256 before it got this name
                parts/ab12…         one that is being fetched, by the process that has it locked
                open/<random>       the shards that an open store uses, 32 bytes each; locked while it is open
                total, lock         bytes of all, counted anew when the cache is full

Processes share the folder by locks of files, which end with their processes: a killed one blocks nobody. A shard that an
open store uses is not removed. The bytes of every read are compared with the seal again, so that a shard that has changed
on the disk is noticed.

Nothing here fails a read: whoever gets no shard from the cache reads it from where it lies.
"""

import contextlib
import errno
import logging
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import Final

from .posix import close_quietly
from .system import fcntl, flags

log = logging.getLogger(__name__)
VERSION: Final = "v1"
SPARE_BYTES: Final = 256 << 20
"""Bytes of the disk that are left free."""
STALL_SECONDS: Final = 10.0
"""Seconds without a new byte after which another process's fetch is not waited for."""
_LOCK_SECONDS: Final = 5.0
"""Seconds to wait for the lock of the count."""
_POLL_SECONDS: Final = 0.02
_MARGIN: Final = 20
"""A full cache is emptied by one part in so many, beside the room of the next shard."""
_DIGEST_BYTES: Final = 32
_TAG: Final = b"Signature: 8a477f597d28d172789f06886806bc55\n# Shards of remote stores, which logitstore fetches again.\n"
_READ: Final = flags("O_RDONLY", "O_NOFOLLOW")
_OPEN: Final = flags("O_RDWR", "O_CREAT", "O_NOFOLLOW")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
Download = Callable[[Callable[[memoryview], None]], None]
"""Passes the bytes of a shard to a function, piece after piece."""


@dataclass(frozen=True)
class CacheLimits:
    """The place of the shards, and the most bytes of them."""

    folder: Path
    """The folder of the cache; it is made with the first shard."""
    most_bytes: int
    """Bytes of all shards together."""


class ShardCache:
    """The cache as one open store uses it, from any number of threads."""

    def __init__(self, limits: CacheLimits) -> None:
        """Name the cache; nothing is made or read yet."""
        self.limits = limits
        self._top = limits.folder / VERSION
        self._lease: _Lease | None = None
        self._lock = threading.Lock()
        self._running: dict[str, threading.Event] = {}
        self._used: set[str] = set()
        self._refused = False
        self._bad: set[str] = set()  # shards that have changed, or cannot be read, and stay where they are
        self._left_out: set[str] = set()  # shards of other bytes than sealed, and those whose fetcher stalls
        self.announced: set[str] = set()
        """Shards that a stream needs whole."""

    def __reduce__(self) -> tuple[object, ...]:
        return ShardCache, (self.limits,)

    @property
    def takes_no_more(self) -> bool:
        """Whether a shard found no room: a full disk, or no other shards that are not in use."""
        return self._refused

    def _object(self, sha256: str) -> str:
        return os.path.join(self._top, "objects", sha256[:2], sha256)

    def open(self, sha256: str, size: int) -> int | None:
        """Open a shard of `size` bytes that is held, for a reader, which closes the descriptor; None if it is not held."""
        if sha256 in self._bad:
            return None
        try:
            handle = os.open(self._object(sha256), _READ)
        except OSError:
            return None
        if sha256 not in self._used:
            if os.fstat(handle).st_size != size:  # cut short by a power cut
                close_quietly(handle)
                self._use(sha256)
                self.forget(sha256)
                return None
            self._use(sha256)
            with contextlib.suppress(OSError):
                os.utime(handle)
        return handle

    def holds(self, sha256: str) -> bool:
        """Return whether a shard is held."""
        return sha256 not in self._bad and os.path.exists(self._object(sha256))

    def leave_out(self, sha256: str) -> None:
        """Read a shard over the network from now on: it cannot be read here, or not be removed."""
        if sha256 not in self._bad:
            self._bad.add(sha256)
            log.warning("%s: a shard is read over the network, since it cannot be read here", self._top)

    def forget(self, sha256: str) -> bool:
        """Remove a shard whose bytes have changed; return whether a reader had it from here, and may read it again.

        Another thread may have fetched it anew meanwhile: one of the right bytes stays.
        """
        was_used = sha256 in self._used
        path = self._object(sha256)
        try:
            with open(path, "rb") as file:
                if file_digest(file, "sha256").hexdigest() == sha256:
                    return was_used
            os.unlink(path)
            log.warning("%s: a shard has changed on the disk and is fetched again", self._top)
        except FileNotFoundError:
            pass
        except OSError:
            self.leave_out(sha256)
        return was_used

    def fetch(self, sha256: str, size: int, download: Download) -> bool:
        """Fetch a shard, unless it is held or another thread or process fetches it; return whether it is held then.

        False for a cache without room, a disk that fails, bytes that differ from the sha256, or another process that
        stalls. Raises what `download` raises.
        """
        if self._refused or sha256 in self._left_out or sha256 in self._bad:
            return self.holds(sha256)
        with self._lock:
            running = self._running.get(sha256)
            if running is None:
                self._running[sha256] = threading.Event()
        if running is not None:
            running.wait()
            return self.holds(sha256)
        try:
            return self.holds(sha256) or self._fetch(sha256, size, download)
        except OSError as error:
            if not isinstance(error, DiskError):
                raise
            self._refuse(str(error))
            return False
        finally:
            with self._lock:
                self._running.pop(sha256).set()

    def _fetch(self, sha256: str, size: int, download: Download) -> bool:
        with _disk():
            self._make()
        part = os.path.join(self._top, "parts", sha256)
        with self._locked_part(part, sha256) as handle:
            if handle is None or self.holds(sha256):
                return self.holds(sha256)
            try:
                with _disk():
                    os.ftruncate(handle, size)  # whoever counts anew sees it
                full = self._reserve(sha256, size)
                if full is None:
                    self._left_out.add(sha256)
                    return False
                if full:
                    self._refuse(full)
                    return False
                with _disk():
                    _allocate(handle, size)
                found = _Written(handle)
                download(found.write)
                if found.sha256.hexdigest() != sha256 or found.size != size:
                    self._left_out.add(sha256)
                    return False
                self._use(sha256)  # before it has its name, so that nobody removes it
                with _disk():
                    os.makedirs(os.path.dirname(self._object(sha256)), mode=0o700, exist_ok=True)
                    os.rename(part, self._object(sha256))
                return True
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(part)

    @contextmanager
    def _locked_part(self, part: str, sha256: str) -> Iterator[int | None]:
        """Open and lock the file of a shard that is fetched; None once another process has fetched it, or stalls."""
        handle, changed, seen = -1, time.monotonic(), None
        try:
            while True:
                with _disk():
                    handle = os.open(part, _OPEN, 0o600)
                    locked = _lock(handle)
                if locked:
                    if _is_at(handle, part):
                        yield handle
                        return
                else:
                    status = os.fstat(handle)
                    if status.st_mtime_ns != seen:
                        seen, changed = status.st_mtime_ns, time.monotonic()
                    elif time.monotonic() - changed > STALL_SECONDS:
                        log.warning("%s: another process stopped fetching; read without the cache", part)
                        self._left_out.add(sha256)
                        break
                    time.sleep(_POLL_SECONDS)
                close_quietly(handle)
                handle = -1
                if self.holds(sha256):
                    break
            yield None
        finally:
            if handle >= 0:
                close_quietly(handle)

    def _make(self) -> None:
        """Make the folders of the cache."""
        if self._lease is not None:
            return
        for name in ("objects", "parts", "open"):
            os.makedirs(self._top / name, mode=0o700, exist_ok=True)
        tag = self.limits.folder / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_bytes(_TAG)

    def _use(self, sha256: str) -> None:
        """Note that this store uses a shard, which no process then removes."""
        with self._lock:
            if sha256 in self._used:
                return
            with contextlib.suppress(
                OSError
            ):  # of a folder that cannot be written to, nobody removes anything
                if self._lease is None:
                    self._lease = _Lease(self._top / "open")
                    weakref.finalize(self, self._lease.end)
                self._lease.add(sha256)
            self._used.add(sha256)

    def _refuse(self, why: str) -> None:
        with self._lock:
            if self._refused:
                return
            self._refused = True
        log.warning("%s: no more shards are kept (%s); they are read over the network", self._top, why)

    # Room

    def _reserve(self, sha256: str, size: int) -> str | None:
        """Count a shard of `size` bytes, for which others are removed if need be; return why there is no room, or "".

        None if that is not known, because another process holds the count. Nothing is removed in vain.
        """
        most = self.limits.most_bytes
        with _disk(), self._counting() as count:
            if count is None:
                return None
            total = _number(count)
            disk = os.statvfs(self._top)
            short = size + SPARE_BYTES - disk.f_bavail * disk.f_frsize
            if total is None or total + size > most or short > 0:
                total, removable = self._counted(sha256)
                free = sum(bytes_there for _, bytes_there in removable)
                if full := _why_full(most, size, total - free, short - free):
                    os.pwrite(count, b"%020d" % total, 0)
                    return full
                # A little more than this one needs, so that not each shard is counted anew.
                goal = most if _MARGIN * size > most else most - most // _MARGIN
                for path, bytes_there in removable:
                    if total + size <= goal and short <= 0:
                        break
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                    total, short = total - bytes_there, short - bytes_there
            full = _why_full(most, size, total, short)
            os.pwrite(count, b"%020d" % (total if full else total + size), 0)
            return full

    @contextmanager
    def _counting(self) -> Iterator[int | None]:
        """Hold the count alone; None if another process does for too long."""
        handle = os.open(self._top / "total", _OPEN, 0o600)
        try:
            until = time.monotonic() + _LOCK_SECONDS
            while not (locked := _lock(handle)) and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
            yield handle if locked else None
        finally:
            close_quietly(handle)

    def _counted(self, own: str) -> tuple[int, list[tuple[str, int]]]:
        """Count all bytes but those of one shard; return them and the shards that no open store uses, the oldest first.

        Shards that are fetched come first: one that gets its name meanwhile is then counted once, and not missed.
        """
        in_use = self._in_use()
        sizes: dict[str, int] = {}
        for entry in _entries(self._top / "parts"):
            with contextlib.suppress(OSError):
                if entry.name != own and not _remove_unlocked(entry.path):
                    sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
        removable = []
        for folder in _entries(self._top / "objects"):
            for entry in _entries(folder.path):
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    sizes[entry.name] = status.st_size
                    if entry.name not in in_use:
                        removable.append((status.st_mtime_ns, entry.path, status.st_size))
        return sum(sizes.values()), [(path, size) for _, path, size in sorted(removable)]

    def _in_use(self) -> set[str]:
        """Return the shards that open stores use; remove the notes of those that were killed."""
        in_use = set(self._used)
        for entry in _entries(self._top / "open"):
            with contextlib.suppress(OSError):
                if not _remove_unlocked(entry.path):
                    data = Path(entry.path).read_bytes()
                    digests = range(0, len(data), _DIGEST_BYTES)
                    in_use.update(data[at : at + _DIGEST_BYTES].hex() for at in digests)
        return in_use


def _why_full(most: int, size: int, total: int, short: int) -> str:
    """Return why a shard of `size` bytes has no room beside `total`; "" if it has. short: bytes that the disk lacks."""
    if size > most:
        return f"a shard has {size:,} bytes, of at most {most:,} for all"
    if total + size > most:
        return f"{most:,} bytes, all of them of shards that open stores use"
    return f"the disk lacks {short:,} bytes, of which {SPARE_BYTES:,} stay free" if short > 0 else ""


class DiskError(OSError):
    """A failure of the disk of the cache."""


@contextmanager
def _disk() -> Iterator[None]:
    """Tell failures of the cache's disk from those of the network."""
    try:
        yield
    except OSError as error:
        raise DiskError(error.strerror or str(error)) from error


class _Written:
    """A shard as it is written, and its sha256 so far."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.sha256 = new_sha256()
        self.size = 0

    def write(self, piece: memoryview) -> None:
        """Write the next bytes."""
        self.sha256.update(piece)
        with _disk():
            while len(piece):
                count = os.pwrite(self._handle, piece, self.size)
                self.size, piece = self.size + count, piece[count:]


class _Lease:
    """The file that names the shards of one open store, locked while it is open."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / secrets.token_hex(16))
        while True:
            self._handle = os.open(self._path, _OPEN | os.O_APPEND, 0o600)
            try:
                if _lock(self._handle) and _is_at(self._handle, self._path):
                    break
            except OSError:  # a file system without locks
                close_quietly(self._handle)
                raise
            close_quietly(self._handle)  # locked, and then removed, by another process
        self._process = os.getpid()

    def add(self, sha256: str) -> None:
        """Note one more shard."""
        os.write(self._handle, bytes.fromhex(sha256))

    def end(self) -> None:
        """Remove the file: the shards are free."""
        if os.getpid() == self._process:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        close_quietly(self._handle)


def _lock(handle: int) -> bool:
    """Lock a file for this process alone, if no other has it. Raises OSError on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: str) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _remove_unlocked(path: str) -> bool:
    """Remove a file that no process has locked; return whether that was so."""
    handle = os.open(path, _READ)
    try:
        if not _lock(handle):
            return False
        os.unlink(path)
        return True
    finally:
        close_quietly(handle)


def _entries(folder: "str | os.PathLike[str]") -> "list[os.DirEntry[str]]":
    """List a folder; none if there is none."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _number(handle: int) -> int | None:
    """Return the count; None for a new or a damaged one."""
    text = os.pread(handle, 64, 0)
    return int(text) if text.isdigit() else None


def _allocate(handle: int, size: int) -> None:
    """Take the room of a file, so that a full disk is noticed before anything is fetched."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(handle, 0, size)
            return
        except OSError as error:
            if error.errno in _FULL:
                raise
    os.ftruncate(handle, size)
