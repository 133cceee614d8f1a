"""Servers that lie about lengths: a reader takes no more than it asked for, and waits no longer than it must.

A server answers with a length of 2**40 bytes and sends for as long as anybody reads, lists without an end, or sends a byte
at a time. A trial opens a store there, in an interpreter of its own, whose memory and time are measured.
"""

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock
from urllib.parse import unquote

from support import stores

MOST_GROWTH: Final = 128 << 20
MOST_SECONDS: Final = 30.0
"""The time of a trial on a machine with other work."""
PATIENCE_S: Final = 3.0
"""The limit of one answer in the trials; 600 s for a user."""
SENT: Final = 768 << 20
"""Bytes that a server sends at most, so that a reader without limits does not fill this machine."""
_LISTING: Final = b'<?xml version="1.0"?><ListBucketResult><Name>bucket</Name>'


class Connection:
    """One request of a reader, and the answers to it."""

    def __init__(self, server: "Liar", handle: socket.socket, method: str, path: str, span: str) -> None:
        self.server, self.handle, self.method, self.path, self.span = server, handle, method, path, span

    def head(self, status: int, *lines: str) -> None:
        fixed = ["Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT", 'ETag: "0"']
        self.handle.sendall("\r\n".join([f"HTTP/1.1 {status} X", *fixed, *lines, "", ""]).encode())

    def plain(self) -> None:
        """Answer as an honest server does."""
        file = self.server.root / self.path.removeprefix("/bucket").lstrip("/")
        if not file.is_file():
            self.head(404, "Content-Length: 0")
            return
        data, span, status = file.read_bytes(), [], 200
        if self.span:
            start, _, stop = self.span.removeprefix("bytes=").partition("-")
            part = data[int(start) : int(stop) + 1]
            span, status = [f"Content-Range: bytes {start}-{int(start) + len(part) - 1}/{len(data)}"], 206
            data = part
        self.head(status, f"Content-Length: {len(data)}", *span)
        if self.method != "HEAD":
            self.handle.sendall(data)

    def flood(self, piece: bytes = b" " * (1 << 16)) -> None:
        """Send for as long as anybody reads."""
        while self.server.sent < SENT:
            self.handle.sendall(piece)
            self.server.sent += len(piece)

    @property
    def range_line(self) -> str:
        start, _, stop = self.span.removeprefix("bytes=").partition("-")
        size = (self.server.root / self.path.lstrip("/")).stat().st_size
        return f"Content-Range: bytes {start}-{min(int(stop), size - 1)}/{size}"


Lie = Callable[[Connection], bool]
"""Answers a request, and returns whether it did; an honest answer follows where it did not."""


def _of_metadata(lie: Callable[[Connection], None]) -> Lie:
    def answer(one: Connection) -> bool:
        if one.method == "HEAD" or not one.path.endswith("zarr.json"):
            return False
        lie(one)
        return True

    return answer


def _of_listing(lie: Callable[[Connection], None]) -> Lie:
    def answer(one: Connection) -> bool:
        if one.path.rstrip("/") != "/bucket":
            return False
        lie(one)
        return True

    return answer


def _long_range(one: Connection) -> None:
    one.head(206, one.range_line, f"Content-Length: {1 << 40}")
    one.flood()


def _long_whole(one: Connection) -> None:
    one.head(200, f"Content-Length: {1 << 40}")
    one.flood()


def _chunked(one: Connection) -> None:
    one.head(206, one.range_line, "Transfer-Encoding: chunked")
    one.flood(b"10000\r\n" + b" " * (1 << 16) + b"\r\n")


def _slow(one: Connection) -> None:
    one.head(206, one.range_line, "Content-Length: 143")
    for _ in range(143):
        one.handle.sendall(b" ")
        time.sleep(0.5)


def _long_size(one: Connection) -> bool:
    if one.method != "HEAD" and one.path.endswith("zarr.json"):
        line, _, size = one.range_line.rpartition("/")
        data = (one.server.root / one.path.lstrip("/")).read_bytes()
        one.head(206, f"{line}/{1 << 60}", f"Content-Length: {size}")
        one.handle.sendall(data)
        return True
    return False


def _long_listing(one: Connection) -> None:
    one.head(200, f"Content-Length: {1 << 40}")
    one.handle.sendall(_LISTING)
    one.flood()


def _endless_listing(one: Connection) -> None:
    page = one.server.pages = one.server.pages + 1
    keys = "".join(
        f"<Contents><Key>__logitstore__/log/{page}-{i}.json</Key><Size>1</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>0</ETag></Contents>"
        for i in range(1000)
    )
    token = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{page}</NextContinuationToken>"
    body = _LISTING + f"{token}{keys}</ListBucketResult>".encode()
    one.head(200, f"Content-Length: {len(body)}")
    one.handle.sendall(body)


def _long_key(one: Connection) -> None:
    one.head(200, f"Content-Length: {1 << 40}")
    one.handle.sendall(_LISTING + b"<Contents><Key>")
    one.flood(b"k" * (1 << 16))


def _slow_listing(one: Connection) -> None:
    one.head(200, "Content-Length: 100000")
    for byte in _LISTING:
        one.handle.sendall(bytes([byte]))
        time.sleep(0.5)


KINDS: Final[dict[str, tuple[str, Lie]]] = {
    "a range of 2**40 bytes": ("http", _of_metadata(_long_range)),
    "2**40 bytes for a range": ("http", _of_metadata(_long_whole)),
    "chunks without an end": ("http", _of_metadata(_chunked)),
    "a byte at a time": ("http", _of_metadata(_slow)),
    "a size of 2**60 bytes": ("http", _long_size),
    "a range of 2**40 bytes from a bucket": ("s3", _of_metadata(_long_range)),
    "a listing of 2**40 bytes": ("s3", _of_listing(_long_listing)),
    "a listing of pages without an end": ("s3", _of_listing(_endless_listing)),
    "a listing of one key without an end": ("s3", _of_listing(_long_key)),
    "a listing a byte at a time": ("s3", _of_listing(_slow_listing)),
}
"""What a server does: the protocol, and its lie."""


class Liar:
    """A server on the loopback that answers by `lie`, else honestly from a folder."""

    def __init__(self, root: Path, lie: Lie) -> None:
        self.root, self.lie, self.sent, self.pages = root, lie, 0, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                handle, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(handle,), daemon=True).start()

    def _serve(self, handle: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), handle:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    piece = handle.recv(1 << 16)
                    if not piece:
                        return
                    data += piece
                text, _, data = data.partition(b"\r\n\r\n")
                first, *lines = text.decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines)
                method, path, _ = first.split(" ")
                path = unquote(path.split("?")[0])
                one = Connection(self, handle, method, path, headers.get("range", ""))
                if not self.lie(one):
                    one.plain()


@contextlib.contextmanager
def _without(guard: str) -> Iterator[None]:
    """Take a guard of the product out."""
    from logitstore.storage.backends import remote, store_errors, zarr_bytes

    async def as_obstore_reads(store: Any, key: str, offset: int, length: int, take: Any) -> int:
        import obstore

        data = await obstore.get_range_async(store.store, key, start=offset, end=offset + length)
        take(memoryview(bytes(data)))
        return offset + len(data)

    patches: dict[str, Any] = {
        "bytes of a range": ("_stream", as_obstore_reads),
        "process of listings": ("is_cloud", lambda store: False),
        "time of an answer": ("TIMEOUT_S", 3 * PATIENCE_S),
    }
    modules = {"process of listings": remote, "time of an answer": store_errors}
    module = modules.get(guard, zarr_bytes)
    with mock.patch.object(module, *patches[guard]) if guard else contextlib.nullcontext():
        yield


def _peak_bytes() -> int:
    """Return the most memory that this interpreter has had, in bytes.

    Not `ru_maxrss`: a new program inherits that of its parent, and pytest has more than any trial takes.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10


def opened(url: str, guard: str = "") -> dict[str, Any]:
    """Open what is there, measured: in an interpreter of its own."""
    import obstore  # noqa: F401 - imported before memory is measured
    import zarr.storage  # noqa: F401

    from logitstore.storage.api import open_store
    from logitstore.storage.backends import remote, store_errors
    from logitstore.storage.errors import LogitStoreError

    address = {"AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "x", "AWS_SKIP_SIGNATURE": "true"}
    os.environ.update(address)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (virtual + (4 << 30), resource.RLIM_INFINITY))
    before, start = _peak_bytes(), time.monotonic()
    location = "s3://bucket" if url.endswith("/bucket") else url
    os.environ["AWS_ENDPOINT"] = url.removesuffix("/bucket")
    retry = mock.patch.object(remote, "_RETRY", {"max_retries": 1})
    with mock.patch.object(store_errors, "TIMEOUT_S", PATIENCE_S), retry, _without(guard):
        try:
            store = open_store(location)
            outcome = f"opened {store.digest}"
        except LogitStoreError as error:
            outcome = f"typed: {error}"
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome
            outcome = f"{type(error).__name__}: {error}"
    return {"outcome": outcome, "growth": _peak_bytes() - before, "seconds": time.monotonic() - start}


def harm_of(found: dict[str, Any], liar: Liar, most_seconds: float = MOST_SECONDS) -> list[str]:
    """Return what a lie did that it must not."""
    harm = []
    if not found["outcome"].startswith("typed: "):
        harm.append(found["outcome"][:200])
    if found["growth"] > MOST_GROWTH:
        harm.append(f"{found['growth'] >> 20} MiB of memory")
    if found["seconds"] > most_seconds:
        harm.append(f"{found['seconds']:.0f} s")
    time.sleep(0.5)  # a child notices in that time that its parent has ended
    pages = liar.pages
    time.sleep(0.5)
    if liar.pages > pages + 4:  # those that were under way
        harm.append("it goes on in the background")
    return harm


def make(path: Path) -> None:
    """Make the store that is served."""
    stores.make(path, rows=9, classes=3, block_rows=4, teachers={})
