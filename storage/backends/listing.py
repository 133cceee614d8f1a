"""Listings of object stores, in a process of its own whose memory, time and answers are bounded.

obstore reads a page of a listing whole, however long the server says it is, and joins pages as long as there are more.
Nothing in this process could stop it: a server that lies would take all memory, and Rust ends a process that has none.
The child lists; when it is over its limits, it ends, and only it.

    parent  ──["names", "teachers"]──▶  child: obstore
            ◀──["wide","deep"]────────
"""

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from ..errors import LogitStoreError
from .store_errors import ListingFailed, typed
from .system import end_process, limit_memory
from .zarr_bytes import MOST_KEYS, MOST_NAMES, gathered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from zarr.abc.store import Store

MEMORY_BYTES: Final = 4 << 30
"""Address space of the child, of which it uses a tenth for a million names."""
_MOST_BYTES: Final = 512 << 20
"""Bytes of an answer of the child."""
_PIECE: Final = 1 << 20
_POLL_SECONDS: Final = 0.2


class Lister:
    """A child process that lists the objects of a store; started at the first listing."""

    def __init__(self, url: str, serve: str, options: "Mapping[str, Any] | None" = None) -> None:
        """Name the store by its URL, which the child opens itself. serve: its "module:function", which calls `serve`.

        options: of the library that opens it; they go through a pipe, which nobody else reads.
        """
        self._url, self._serve, self._options = url, serve, dict(options or {})
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, what: str, prefix: str, where: str, seconds: float) -> list[str]:
        """List the `names` directly under a prefix, or all `keys`; none if there is no such prefix.

        where: the place in messages. Raises ListingFailed, StorageError.
        """
        with self._lock:
            child = self._child or self._start()
            try:
                answer = _answer_of(child, json.dumps([what, prefix, where]).encode() + b"\n", seconds)
            except BaseException:
                self.close()
                raise
        if "error" in answer:
            name, fields = answer["error"]
            raise getattr(errors, name)(**fields)
        return list(answer["names"])

    def _start(self) -> "subprocess.Popen[bytes]":
        import logitstore

        # -P: a module of the working directory is not imported.
        module, _, function = self._serve.partition(":")
        code = f"from {module} import {function}; {function}()"
        folder = os.path.dirname(os.path.dirname(os.path.abspath(logitstore.__file__)))
        paths = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._child = child = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
        )
        weakref.finalize(self, _end, child)
        assert child.stdin is not None
        child.stdin.write(json.dumps([self._url, self._options]).encode() + b"\n")
        child.stdin.flush()
        return child

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _answer_of(child: "subprocess.Popen[bytes]", request: bytes, seconds: float) -> Any:
    """Send a request and return the answer: 8 bytes of length, then JSON. A child that is late is ended."""
    assert child.stdin is not None and child.stdout is not None
    late = threading.Event()

    def give_up() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        child.stdin.write(request)
        child.stdin.flush()
        size = int.from_bytes(_read(child, 8), "little")
        if size > _MOST_BYTES:
            raise ListingFailed(f"a listing of {size} bytes")
        answer = _read(child, size)
    except (ListingFailed, OSError):
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise ListingFailed(f"no end of the listing within {seconds:.0f} s")
    return json.loads(answer)


def _read(child: "subprocess.Popen[bytes]", length: int) -> bytes:
    assert child.stdout is not None
    handle, pieces, missing = child.stdout.fileno(), [], length
    while missing:
        piece = os.read(handle, min(missing, _PIECE))
        if not piece:
            raise ListingFailed("a listing that took more than the memory for it")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


# The child


def serve(open_store: "Callable[[str, Mapping[str, Any]], Store]") -> None:
    """Answer the requests of the parent, one after another, until it ends: the child. open_store: opens its URL by options."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    limit_memory(MEMORY_BYTES)
    answers = os.fdopen(os.dup(1), "wb")
    store = open_store(*json.loads(sys.stdin.buffer.readline()))
    for line in _requests():
        data = json.dumps(_listed(store, *json.loads(line))).encode()
        answers.write(len(data).to_bytes(8, "little") + data)
        answers.flush()


def _requests() -> "Iterator[bytes]":
    """Yield the requests, which a thread reads; the end of them ends this process, also during a listing."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        end_process()

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def _end_with(parent: int) -> None:
    """End this process soon after its parent: a forked process may hold the pipe of the requests open.

    On Windows, which does not fork, the number of the parent stays the same.
    """
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    end_process()


def _listed(store: "Store", what: str, prefix: str, where: str) -> dict[str, Any]:
    most = MOST_NAMES if what == "names" else MOST_KEYS
    try:
        return {"names": asyncio.run(gathered(store, what, prefix, most))}
    except Exception as error:  # noqa: BLE001 - of the library
        found = typed(error, where)
        if not isinstance(found, LogitStoreError):  # FileNotFoundError
            return {"names": []}
        fields = {key: getattr(found, key) for key in ("where", "expected", "found", "remedy")}
        return {"error": [type(found).__name__, fields]}
