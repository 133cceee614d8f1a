"""Named points of the commit protocol, and a watch that acts when a writer reaches one.

`Watch` wraps the calls of `os` in a fork, for every module of the package. A point is "object: state": the object that is
being written (recognised by its name, or by its first bytes while it has none), and its progress.

    data: empty ─ half ─ written ─ synced ─ before link ─ linked ─ durable ─ record: half ─ … ─ log: linked

The basis of a capture in the transform encoding has points of its own, before those of the first block.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

STAGING: Final = "/__logitstore__/tmp/"
POINTS: Final = (
    "data: empty",
    "data: half",
    "data: written",
    "data: synced",
    "data: before link",
    "data: linked",
    "data: durable",
    "record: half",
    "record: before link",
    "record: linked",
    "record: durable",
    "seal.bin: before link",
    "seal.bin: linked",
    "seal.json: before link",
    "seal.json: linked",
    "log: before link",
    "log: linked",
    "lock: before unlink",
)
"""Points of a capture, in the order in which a writer passes them."""
BASIS_POINTS: Final = ("basis: before link", "basis: linked", "basis: durable")
"""Points of the basis of a capture in the transform encoding, before those of its first block."""


def path_of(name: Any, directory: int | None) -> str:
    """A path as `os` was given it, made absolute."""
    text = os.fsdecode(name)
    if os.path.isabs(text):
        return text
    base = os.getcwd() if directory is None else os.readlink(f"/proc/self/fd/{directory}")
    return os.path.join(base, text)


def kind_of_name(path: str) -> str:
    """What an object is, by the name that it gets.

    >>> kind_of_name("s/teachers/wide/logits/c.0.1.0"), kind_of_name("s/teachers/wide/__logitstore__/seal.bin")
    ('data', 'seal.bin')
    >>> kind_of_name("s/teachers/wide/basis/c.0.0")
    'basis'
    """
    if "/__logitstore__/commits/" in path:
        return "record"
    if "/__logitstore__/log/" in path:
        return "log"
    if re.search(r"/(basis|centre|step|weight)/c\.[\d.]+$", path):
        return "basis"
    if path.endswith(("/__logitstore__/seal.bin", "/__logitstore__/seal.json", "/__logitstore__/lock")):
        return path.rpartition("/")[2]
    return "data" if re.search(r"/c\.\d+\.\d+(\.\d+)*$", path) else "metadata"


def kind_of_bytes(data: Any) -> str:
    """What an object is, by its first bytes."""
    head = bytes(memoryview(data).cast("B")[:10])
    if not head.startswith(b"{"):
        return "data"
    return "record" if head.startswith(b'{"block":') else "metadata"


class Watch:
    """Calls `act` when this process reaches a point of `teachers/…` for the n-th time."""

    def __init__(self, point: str, nth: int, act: Callable[[], None]) -> None:
        self.point = point
        self.nth = nth
        self.act = act
        self.seen: Counter[str] = Counter()
        """How often each point was reached."""
        self._kinds: dict[int, str] = {}
        self._last = ""

    def _reach(self, point: str) -> None:
        self.seen[point] += 1
        if point == self.point and self.seen[point] == self.nth:
            self.act()

    def start(self) -> None:
        """Wrap the calls, for the rest of this process."""
        write, fsync, link, unlink = os.write, os.fsync, os.link, os.unlink

        def watched_write(handle: int, data: Any) -> int:
            path = os.readlink(f"/proc/self/fd/{handle}")
            if STAGING not in path or "/teachers/" not in path:
                return write(handle, data)
            if handle not in self._kinds:
                self._kinds[handle] = kind_of_bytes(data)
                self._reach(f"{self._kinds[handle]}: empty")
            view = memoryview(data).cast("B")
            done = write(handle, view[: len(view) // 2])
            self._reach(f"{self._kinds[handle]}: half")
            done += write(handle, view[done:])
            self._reach(f"{self._kinds[handle]}: written")
            return done

        def watched_fsync(handle: int) -> None:
            fsync(handle)
            if handle in self._kinds and STAGING in os.readlink(f"/proc/self/fd/{handle}"):
                self._reach(f"{self._kinds.pop(handle)}: synced")
            elif self._last:
                last, self._last = self._last, ""
                self._reach(f"{last}: durable")

        def watched_link(source: Any, target: Any, **others: Any) -> None:
            path = path_of(target, others.get("dst_dir_fd"))
            kind = kind_of_name(path)
            if "/samples/" in path:
                link(source, target, **others)
                return
            self._reach(f"{kind}: before link")
            link(source, target, **others)
            self._last = kind
            self._reach(f"{kind}: linked")

        def watched_unlink(name: Any, **others: Any) -> None:
            path = path_of(name, others.get("dir_fd"))
            if path.endswith("/lock") and "/teachers/" in path:
                self._reach("lock: before unlink")
            unlink(name, **others)

        os.write, os.fsync, os.link, os.unlink = watched_write, watched_fsync, watched_link, watched_unlink
