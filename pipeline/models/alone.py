"""One training of a model at a time, where several processes run the same experiment.

A process holds a lock beside the weights while it trains. The system releases the lock of a process that dies. The second
process waits, and finds the model trained. On a file system without locks nobody waits.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...storage.backends.system import check_writes, fcntl, flags
from ...storage.errors import WriterBusy

log = logging.getLogger(__name__)
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_FLAGS: Final = flags("O_CREAT", "O_RDWR", "O_NOFOLLOW")
_POLL_S: Final = 0.2


@contextlib.contextmanager
def alone(weights: Path, where: str, *, waits: bool = True) -> Iterator[bool]:
    """Hold the lock of a model while the block trains it; yield whether another process held it before.

    weights: its file. where: the training in messages. waits: whether to wait for another process.
    Raises WriterBusy if another process holds the lock and `waits` is false.
    """
    check_writes(where)
    path, waited = weights.with_name(f".{weights.stem}.lock"), False
    made = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    handle = _open(path)
    try:
        while not _lock(handle) or not _is_there(path, handle):
            if not waits:
                raise WriterBusy(
                    where,
                    expected="one training of this model at a time",
                    found=f"another process that trains it ({path})",
                    remedy="run the same command again when it has ended",
                )
            if not waited:
                log.warning("%s: another process trains this model; waiting until it has ended", where)
            waited = True
            time.sleep(_POLL_S)
            handle, before = _open(path), handle  # the holder may have removed the file
            os.close(before)
        try:
            yield waited
        finally:
            with contextlib.suppress(OSError):  # folders stay if a model is in them
                path.unlink()
                for folder in made:
                    folder.rmdir()
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    """Open the lock's file, and make it and its folders; a process that ends may remove them at any moment."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, _FLAGS, 0o666)


def _lock(handle: int) -> bool:
    """Take the lock, unless another process holds it; return whether it was taken, or there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_there(path: Path, handle: int) -> bool:
    """Return whether the locked file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
