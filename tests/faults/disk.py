"""A disk that is a model: every call seen, every name and byte known, any call refused.

`Disk` stands in for the modules `os` and `fcntl` in `storage/backends/`: `local.py`, `posix.py`, `system.py` and `lease.py`, so that the real
code runs on it with no line of it changed:

    disk = Disk()
    with disk.mounted():
        create_store(STORE, …)

It keeps files and directories (no links but hard ones), open descriptors, and the locks of open file descriptions
(a lock that is converted is let go of first, as in Linux). What is not modelled falls back to the real modules.
`trace` lists the calls that change something, and each fsync, in order: `crash` makes of it what a power loss leaves.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

from logitstore.storage.backends import lease, posix, staged, system
from logitstore.storage.backends import local as files

MOUNT: Final = "/disk"
"""The directory in which everything happens; it is durable."""
STORE: Final = Path(MOUNT, "store.zarr")
"""Where the store of these tests stands."""
_DISKS: Final = itertools.count()
_FIRST_HANDLE: Final = 1_000_000
"""Descriptors that no real call takes for its own."""


class Named(NamedTuple):
    """A name in a directory was given to a node, or taken away."""

    directory: int
    name: str
    node: int | None
    """Number of the node; None where the name was taken away."""
    folder: bool
    """Whether the node is a directory."""


class Written(NamedTuple):
    """A file now holds these bytes."""

    node: int
    data: bytes


class Synced(NamedTuple):
    """An fsync of a file or a directory came back."""

    node: int


class Said(NamedTuple):
    """A note of the test: a block was acknowledged, a part was sealed."""

    what: tuple[object, ...]


Step = Named | Written | Synced | Said


class Node:
    """A file or a directory."""

    __slots__ = ("data", "names", "number", "parts")

    def __init__(self, number: int, directory: bool) -> None:
        self.number = number
        self.parts: dict[str, Node] | None = {} if directory else None
        """What is in it, by name; None for a file."""
        self.data = b""
        self.names = 1
        """How many names it has; a directory without one was removed."""


@dataclass
class Handle:
    """An open file description."""

    node: Node
    writable: bool
    lock: int | None = None
    """fcntl.LOCK_SH or LOCK_EX, where it holds one."""


class Saved(NamedTuple):
    """A disk as it was, to go back to."""

    nodes: list[tuple[Node, dict[str, Node] | None, bytes, int]]
    handles: dict[int, tuple[Node, bool, int | None]]
    counters: tuple[int, int, int]
    steps: int


def _error(number: int, name: object = "") -> OSError:
    return OSError(number, os.strerror(number), str(name))


class Disk:
    """An in-memory POSIX disk with the interface of the modules `os` and `fcntl`."""

    def __init__(self) -> None:
        self.trace: list[Step] = []
        """What changed, in order."""
        self.before: Callable[[str, Node | None], None] | None = None
        """Called before each call with its name and, where it has one, its file; may raise what the call then raises."""
        self.deaf: Callable[[Node], bool] = lambda node: False
        """For which nodes an fsync does nothing: a disk that lies, or a writer that does not ask."""
        self.links = True
        """Whether the file system has hard links."""
        self.renames = True
        """Whether it has a rename that replaces nothing."""
        self._number = next(_DISKS)
        self._handles: dict[int, Handle] = {}
        self._num_nodes = self._num_handles = self._num_names = 0
        self._seconds = 0.0
        self.root = self._node(directory=True)
        mount = self._node(directory=True)
        assert self.root.parts is not None
        self.root.parts[MOUNT.strip("/")] = mount
        self.mount = mount.number
        """Number of the directory that everything is in."""

    def __getattr__(self, name: str) -> Any:
        """Constants and pure functions of the real modules. Anything that reached a real disk would be a gap."""
        if name.startswith(("O_", "LOCK_", "E")) or name in (
            "path",
            "fspath",
            "fsencode",
            "strerror",
            "PathLike",
            "getpid",
        ):
            return getattr(os, name) if hasattr(os, name) else getattr(fcntl, name)
        raise AttributeError(f"os.{name} is not modelled")

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """While this lasts, the storage code runs on this disk. It must close what it opens."""
        with contextlib.ExitStack() as stack:
            for module in (files, staged, posix, system, lease):
                stack.enter_context(mock.patch.object(module, "os", self))
            stack.enter_context(mock.patch.object(lease, "fcntl", self))
            stack.enter_context(mock.patch.object(lease, "time", self))
            for module in (files, staged):
                stack.enter_context(mock.patch.object(module, "secrets", self))
            stack.enter_context(mock.patch.object(staged, "rename_noreplace", self.rename_noreplace))
            yield

    # Time and chance: none.

    def token_hex(self, size: int) -> str:
        """A name that no other file has."""
        self._num_names += 1
        return f"{self._number:012x}{self._num_names:0{2 * size - 12}x}"

    def monotonic(self) -> float:
        """Seconds that were slept."""
        return self._seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass, and others work."""
        self._seconds += seconds
        self.wait("sleep")

    # What the tests ask of it.

    def say(self, *what: object) -> None:
        """Note something in the trace."""
        self.trace.append(Said(what))

    @property
    def num_open(self) -> int:
        """Descriptors that are open."""
        return len(self._handles)

    def drop_handles(self) -> None:
        """Close everything, as the operating system does for a process that is no more."""
        self._handles.clear()

    def files(self) -> dict[str, bytes]:
        """Every file by its path from the mount, and "<folder>/" for each folder that is empty."""
        assert self.root.parts is not None
        return dict(_walk(self.root.parts[MOUNT.strip("/")], ""))

    def save(self) -> Saved:
        """The disk as it is."""
        nodes, seen, todo = [], set[int](), [self.root, *(handle.node for handle in self._handles.values())]
        while todo:
            node = todo.pop()
            if node.number not in seen:
                seen.add(node.number)
                parts = None if node.parts is None else dict(node.parts)
                nodes.append((node, parts, node.data, node.names))
                todo += (parts or {}).values()
        handles = {number: (h.node, h.writable, h.lock) for number, h in self._handles.items()}
        counters = (self._num_nodes, self._num_handles, self._num_names)
        return Saved(nodes, handles, counters, len(self.trace))

    def restore(self, saved: Saved) -> None:
        """Go back; descriptors that were open then are open again."""
        for node, parts, node.data, node.names in saved.nodes:
            node.parts = None if parts is None else dict(parts)
        self._handles = {number: Handle(*handle) for number, handle in saved.handles.items()}
        self._num_nodes, self._num_handles, self._num_names = saved.counters
        del self.trace[saved.steps :]

    def put(self, path: str, data: bytes | None) -> Node:
        """Set up a file (a directory where `data` is None), by its path from the mount, with the directories above."""
        assert self.root.parts is not None
        node = self.root.parts[MOUNT.strip("/")]
        *above, name = path.strip("/").split("/")
        for part in above if data is not None else [*above, name]:
            assert node.parts is not None
            node = node.parts.get(part) or node.parts.setdefault(part, self._node(directory=True))
        if data is not None:
            assert node.parts is not None
            node.parts[name] = node = self._node(directory=False)
            node.data = data
        return node

    # The calls.

    def _node(self, directory: bool) -> Node:
        self._num_nodes += 1
        return Node(self._num_nodes, directory)

    def wait(self, call: str, node: Node | None = None) -> None:
        """What comes before each call; `before` may hold it up."""
        if self.before is not None:
            self.before(call, node)

    def _handle(self, handle: int) -> Handle:
        try:
            return self._handles[handle]
        except KeyError:
            raise _error(errno.EBADF) from None

    def _parts(self, node: Node, name: object) -> dict[str, Node]:
        if node.parts is None:
            raise _error(errno.ENOTDIR, name)
        return node.parts

    def _place(self, path: Any, dir_fd: int | None) -> tuple[Node, str]:
        """The directory that `path` is in, and its last component."""
        text = os.fspath(path)
        node = self.root if dir_fd is None else self._handle(dir_fd).node
        if dir_fd is None and not text.startswith("/"):
            raise _error(errno.ENOENT, path)
        *above, name = ("" if text == "." else text).strip("/").split("/")
        for part in above:
            if part not in self._parts(node, path):
                raise _error(errno.ENOENT, path)
            node = self._parts(node, path)[part]
        self._parts(node, path)
        return node, name

    def _found(self, path: Any, dir_fd: int | None) -> Node:
        node, name = self._place(path, dir_fd)
        found = self._parts(node, path).get(name) if name else node
        if found is None:
            raise _error(errno.ENOENT, path)
        return found

    def _name(self, directory: Node, name: str, node: Node | None) -> None:
        parts = self._parts(directory, name)
        if node is None:
            del parts[name]
        elif directory.names == 0:
            raise _error(errno.ENOENT, name)
        else:
            parts[name] = node
        is_folder = node is not None and node.parts is not None
        self.trace.append(Named(directory.number, name, None if node is None else node.number, is_folder))

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """open(2), with O_CREAT, O_EXCL, O_DIRECTORY and the modes of access."""
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        self.wait("create" if exclusive else "open")
        directory, name = self._place(path, dir_fd)
        node = self._parts(directory, path).get(name) if name else directory
        if node is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT, path)
            node = self._node(directory=False)
            self._name(directory, name, node)
        elif exclusive:
            raise _error(errno.EEXIST, path)
        if flags & os.O_DIRECTORY and node.parts is None:
            raise _error(errno.ENOTDIR, path)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if writable and node.parts is not None:
            raise _error(errno.EISDIR, path)
        self._num_handles += 1
        number = _FIRST_HANDLE + self._num_handles
        self._handles[number] = Handle(node, writable)
        return number

    def close(self, handle: int) -> None:
        """close(2): the descriptor is gone, whatever is raised."""
        node = self._handle(handle).node
        del self._handles[handle]
        self.wait("close", node)

    def pread(self, handle: int, length: int, offset: int) -> bytes:
        """pread(2)."""
        node = self._handle(handle).node
        self.wait("pread", node)
        return node.data[offset : offset + length]

    def preadv(self, handle: int, buffers: Sequence[memoryview], offset: int) -> int:
        """preadv(2)."""
        node = self._handle(handle).node
        self.wait("preadv", node)
        first = offset
        for buffer in buffers:
            piece = node.data[offset : offset + len(buffer)]
            buffer[: len(piece)] = piece
            offset += len(piece)
        return offset - first

    def write(self, handle: int, data: Any) -> int:
        """write(2), at the end of the file, where all of ours write."""
        opened = self._handle(handle)
        self.wait("write", opened.node)
        if not opened.writable:
            raise _error(errno.EBADF)
        opened.node.data += bytes(data)
        self.trace.append(Written(opened.node.number, opened.node.data))
        return len(data)

    def fsync(self, handle: int) -> None:
        """fsync(2), of a file or a directory."""
        node = self._handle(handle).node
        self.wait("fsync", node)
        if not self.deaf(node):
            self.trace.append(Synced(node.number))

    def link(
        self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool = True
    ) -> None:
        """linkat(2)."""
        node = self._found(source, src_dir_fd)
        self.wait("link", node)
        if not self.links:
            raise _error(errno.EPERM, target)
        directory, name = self._place(target, dst_dir_fd)
        if name in self._parts(directory, target):
            raise _error(errno.EEXIST, target)
        self._name(directory, name, node)
        node.names += 1

    def rename_noreplace(self, from_directory: int, source: str, to_directory: int, target: str) -> None:
        """renameat2(2) with RENAME_NOREPLACE."""
        self.wait("rename")
        if not self.renames:
            raise _error(errno.EINVAL, target)
        if target in self._parts(self._handle(to_directory).node, target):
            raise _error(errno.EEXIST, target)
        self.rename(source, target, src_dir_fd=from_directory, dst_dir_fd=to_directory)

    def rename(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        """rename(2), which replaces. The product never calls it: for the mutants."""
        node = self._found(source, src_dir_fd)
        self._name(self._handle(dst_dir_fd).node, target, node)
        self._name(self._handle(src_dir_fd).node, source, None)

    def unlink(self, path: str, *, dir_fd: int) -> None:
        """unlinkat(2)."""
        self.wait("unlink")
        node = self._found(path, dir_fd)
        if node.parts is not None:
            raise _error(errno.EISDIR, path)
        self._name(*self._place(path, dir_fd), None)
        node.names -= 1

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        """mkdirat(2)."""
        self.wait("mkdir")
        directory, name = self._place(path, dir_fd)
        if name in self._parts(directory, path):
            raise _error(errno.EEXIST, path)
        self._name(directory, name, self._node(directory=True))

    def rmdir(self, path: str, *, dir_fd: int) -> None:
        """unlinkat(2) with AT_REMOVEDIR."""
        self.wait("rmdir")
        node = self._found(path, dir_fd)
        if self._parts(node, path):
            raise _error(errno.ENOTEMPTY, path)
        self._name(*self._place(path, dir_fd), None)
        node.names = 0

    def listdir(self, handle: int) -> list[str]:
        """The names in a directory."""
        node = self._handle(handle).node
        self.wait("listdir", node)
        return list(self._parts(node, handle))

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        """fstatat(2)."""
        self.wait("stat")
        return _status(self._found(path, dir_fd))

    def fstat(self, handle: int) -> os.stat_result:
        """fstat(2)."""
        node = self._handle(handle).node
        self.wait("fstat", node)
        return _status(node)

    def statvfs(self, path: Any) -> Any:
        """statvfs(2): there is room."""
        self.wait("statvfs")
        self._found(path, None)
        return mock.Mock(f_bavail=1 << 30, f_frsize=4096)

    def flock(self, handle: int, operation: int) -> None:
        """flock(2) with LOCK_NB."""
        mine = self._handle(handle)
        self.wait("flock", mine.node)
        assert operation & fcntl.LOCK_NB, "a call that blocks would stop all writers of this model"
        mine.lock = None
        wanted = operation & ~fcntl.LOCK_NB
        for other in self._handles.values():
            if other.node is mine.node and other.lock is not None and fcntl.LOCK_EX in (wanted, other.lock):
                raise _error(errno.EWOULDBLOCK)
        mine.lock = wanted


def _status(node: Node) -> os.stat_result:
    kind = stat.S_IFREG if node.parts is None else stat.S_IFDIR
    return os.stat_result((kind | 0o755, node.number, 1, node.names, 0, 0, len(node.data), 0, 0, 0))


def _walk(node: Node, path: str) -> Iterator[tuple[str, bytes]]:
    if node.parts is None:
        yield path, node.data
    elif not node.parts and path:
        yield f"{path}/", b""
    else:
        for name in sorted(node.parts):
            yield from _walk(node.parts[name], f"{path}/{name}" if path else name)
