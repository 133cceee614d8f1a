"""File systems of a test of its own: a small one, and one that cannot be written.

Mounts are made in a mount namespace of the calling process (an interpreter of its own: `children.apart`), so that
no other process sees them and they end with it, whatever happens. That needs root.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS = 0x20000
"""A mount namespace of one's own (unshare)."""


def enter_namespace() -> None:
    """From now on mounts of this process are seen by it and its children alone. Raises OSError without the right."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(CLONE_NEWNS):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _run("mount", "--make-rprivate", "/")


def may_mount() -> str:
    """Why no file system can be mounted here; empty where it can. Asked in a process of its own."""
    try:
        enter_namespace()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"needs the right to mount a file system (root): {error}"
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """An empty file system in memory that holds `size` bytes."""
    folder.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield folder
    finally:
        _run("umount", "-l", str(folder))


def resize(folder: Path, size: int) -> None:
    """Give a tmpfs more room."""
    _run("mount", "-o", f"remount,size={size}", str(folder))


@contextlib.contextmanager
def read_only(source: Path, folder: Path) -> Iterator[Path]:
    """A folder, at another place, where it cannot be written."""
    folder.mkdir(exist_ok=True)
    _run("mount", "--bind", str(source), str(folder))
    try:
        _run("mount", "-o", "remount,bind,ro", str(folder))
        yield folder
    finally:
        _run("umount", "-l", str(folder))


@contextlib.contextmanager
def image(file: Path, folder: Path) -> Iterator[Path]:
    """A file that holds a file system (squashfs, ext4), mounted so that it cannot be written."""
    folder.mkdir(exist_ok=True)
    _run("mount", "-o", "loop,ro", str(file), str(folder))
    try:
        yield folder
    finally:
        _run("umount", "-l", str(folder))
