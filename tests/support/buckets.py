"""A bucket on the loopback: as much of S3 as a store takes, with faults in its answers.

`serving_bucket()` keeps the objects in memory; `serving_bucket(Upstream(…))` is a proxy before a real server of S3. A
`Fault` is an answer that is not what happened:

    before   503, 409, 412, 429, 403 (expired), reset    nothing was stored
    after    500, reset, hang                            the object was stored, and nobody is told
    slow                                                 the object is stored, late
"""

import contextlib
import hashlib
import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from obstore.store import S3Store
from zarr.storage import ObjectStore

NAME: Final = "bucket"
_CODES: Final = {
    403: "ExpiredToken",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
}
BEFORE: Final = ("503", "409", "412", "429", "403", "reset before")
AFTER: Final = ("500 after", "reset after", "hang after", "slow")
KINDS: Final = BEFORE + AFTER
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Fault:
    """What is wrong with the answers to some PUTs."""

    kind: str
    """One of `KINDS`."""
    first: int
    """The number of the first PUT that it happens to, from 0."""
    times: int = 1
    """How many PUTs in succession it happens to."""


class MemoryS3:
    """Objects in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.is_conditional = True
        """Whether it heeds If-None-Match."""
        self._lock = threading.Lock()

    def __call__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        parts = urlsplit(path)
        key = unquote(parts.path).removeprefix(f"/{NAME}").lstrip("/")
        with self._lock:
            if not key and method == "POST":
                keys = re.findall(r"<Key>([^<]*)</Key>", body.decode())
                for name in map(unescape, keys):
                    self.objects.pop(name, None)
                done = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in keys)
                return (
                    200,
                    {"Content-Type": "application/xml"},
                    f"<DeleteResult>{done}</DeleteResult>".encode(),
                )
            if not key:
                return 200, {"Content-Type": "application/xml"}, self._listing(parse_qs(parts.query))
            if method == "PUT":
                if headers.get("if-none-match") == "*" and self.is_conditional and key in self.objects:
                    return error_of(412)
                self.objects[key] = body
                return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""
            if method == "DELETE":
                self.objects.pop(key, None)
                return 204, {}, b""
            if key not in self.objects:
                return 404, {}, b""
            data = self.objects[key]
        common = {
            "ETag": f'"{hashlib.md5(data).hexdigest()}"',
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if found is None:
            return 200, common, data
        start, stop = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
        if start >= len(data):
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        return 206, {**common, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop]

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        """The answer to ListObjectsV2, on one page."""
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        contents, folders = [], set()
        for key in sorted(key for key in self.objects if key.startswith(prefix)):
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                folders.add(f"{prefix}{head}{delimiter}")
            else:
                contents.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;0&quot;</ETag>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
        shared = [
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        ]
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
            f'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{NAME}</Name>'
            f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(contents) + len(shared)}</KeyCount>"
            f"<MaxKeys>100000</MaxKeys><IsTruncated>false</IsTruncated>{''.join([*contents, *shared])}"
            "</ListBucketResult>"
        ).encode()


@dataclass
class Upstream:
    """A real server, which the requests are passed on to as they are: their signature names the proxy's own host."""

    host: str
    port: int

    def __call__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name not in ("connection", "transfer-encoding"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            data = answer.read()
            kept = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server")
            }
            if method == "HEAD" and (length := answer.getheader("Content-Length")):
                kept["Content-Length"] = length
            return answer.status, kept, data
        finally:
            connection.close()


def error_of(status: int) -> Answer:
    """The answer of S3 to a request that fails."""
    text = f"<Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>"
    return status, {"Content-Type": "application/xml"}, text.encode()


@dataclass
class Bucket:
    """A bucket that is served, and what has happened there."""

    serve: Callable[[str, str, dict[str, str], bytes], Answer]
    faults: list[Fault] = field(default_factory=list)
    url: str = ""
    puts: int = 0
    """PUTs that have come."""
    stored: list[str] = field(default_factory=list)
    """The key of each PUT that was stored, in their order."""
    requests: list[str] = field(default_factory=list)
    """"PUT /bucket/key", as they came."""
    hangs_s: float = 2.5
    """How long an answer hangs: longer than its client waits."""
    watch: "Callable[[str, bool], None] | None" = None
    """Called at each PUT with the client's access key, before and after it is stored (True)."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def stored_twice(self) -> set[str]:
        """The keys that were stored more than once, but for probes, which another writer may take away at any time."""
        counts = Counter(key for key in self.stored if "/__logitstore__/tmp/" not in key)
        return {key for key, count in counts.items() if count > 1}

    def fault_of(self) -> str:
        """The kind of fault of the PUT that has just come; "" for none."""
        with self.lock:
            number, self.puts = self.puts, self.puts + 1
            return next((f.kind for f in self.faults if f.first <= number < f.first + f.times), "")

    def store(self, prefix: str = "store.zarr", key: str = "key", **options: Any) -> "ObjectStore[S3Store]":
        """The objects under a prefix, through a client of its own that is soon out of patience. key: its access key."""
        return client_of(self.url, prefix, key, **options)


def client_of(url: str, prefix: str, key: str = "key", **options: Any) -> "ObjectStore[S3Store]":
    """The objects under a prefix of the bucket at a URL, through a client that is soon out of patience."""
    backoff = {
        "init_backoff": timedelta(milliseconds=5),
        "max_backoff": timedelta(milliseconds=20),
        "base": 2,
    }
    retries: Any = {"max_retries": 1, "backoff": backoff, "retry_timeout": timedelta(seconds=5)}
    client: Any = {"allow_http": True, "timeout": "1s", **options}
    return ObjectStore(
        S3Store(
            NAME,
            prefix=prefix,
            endpoint=url,
            region="us-east-1",
            access_key_id=key,
            secret_access_key="secret",
            client_options=client,
            retry_config=retries,
        )
    )


@contextlib.contextmanager
def serving_bucket(
    serve: Callable[[str, str, dict[str, str], bytes], Answer] | None = None,
) -> Iterator[Bucket]:
    """Serve a bucket while the block runs, on a free port of the loopback."""
    bucket = Bucket(serve or MemoryS3())

    class Handler(_Handler):
        served = bucket

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Bucket
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: two of them wait 40 ms for each other
    timeout = 20

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_PUT(self) -> None:
        kind, watch = self.served.fault_of(), self.served.watch
        client = re.search(r"Credential=([^/]*)/", self.headers.get("Authorization", ""))
        who = client[1] if client else ""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kind == "reset before":
            return self._reset()
        if kind.isdigit():
            return self._send(*error_of(int(kind)))
        if kind == "slow":
            time.sleep(0.3)
        if watch is not None:
            watch(who, False)
        answer = self._pass_on(body)
        if watch is not None:
            watch(who, True)
        if kind == "500 after":
            return self._send(*error_of(500))
        if kind == "reset after":
            return self._reset()
        if kind == "hang after":
            time.sleep(self.served.hangs_s)
            return self._reset()
        self._send(*answer)

    def do_GET(self) -> None:
        self._send(*self._pass_on(b""))

    do_HEAD = do_DELETE = do_GET

    def do_POST(self) -> None:
        self._send(*self._pass_on(self.rfile.read(int(self.headers.get("Content-Length") or 0))))

    def _pass_on(self, body: bytes) -> Answer:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.served.requests.append(f"{self.command} {unquote(self.path)}")
        answer = self.served.serve(self.command, self.path, headers, body)
        if self.command == "PUT" and answer[0] == 200:
            self.served.stored.append(unquote(urlsplit(self.path).path).removeprefix(f"/{NAME}/"))
        return answer

    def _reset(self) -> None:
        self.close_connection = True
        # With a linger of no seconds, closing sends a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
