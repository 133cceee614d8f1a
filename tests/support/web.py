"""A web server and a bucket for readers of stores, which misbehave on request.

`serving(folder)` serves the files of a folder on the loopback: as a web server with ranges and without listings, and, under
/bucket, as much of S3's protocol as reading takes (GET with ranges, HEAD, ListObjectsV2, no signatures).
"""

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "/bucket/"


@dataclass
class Web:
    """A server that runs, and how it shall behave."""

    root: Path
    """What is served."""
    url: str = ""
    """http://host:port"""
    ranges: bool = True
    """Whether it knows ranges; where not, it sends the whole."""
    answers: dict[str, int] = field(default_factory=dict)
    """Status to answer with, by the end of a path."""
    lists: bool = True
    """Whether the bucket may be listed; where not, it answers for a missing object as for one that must not be read."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request."""
    cut: int = 0
    """Bytes by which every answer of more than that is shorter than it says."""
    requests: list[str] = field(default_factory=list)
    """"GET /path bytes=0-9", as they came."""


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Web]:
    """Serve a folder while the block runs, on a free port of the loopback."""
    web = Web(root)

    class Handler(_Handler):
        served = web

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Web
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: two of them wait 40 ms for each other
    timeout = 20

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        web, parts = self.served, urlsplit(self.path)
        path, wanted = unquote(parts.path), self.headers.get("Range")
        web.requests.append(f"{self.command} {path}" + (f" {wanted}" if wanted else ""))
        status = next((code for end, code in web.answers.items() if path.endswith(end)), None)
        web.headers.append(dict(self.headers))
        if status is not None:
            return self._send(status, b"")
        if not web.lists and (
            path.rstrip("/") + "/" == BUCKET or not (web.root / path.removeprefix(BUCKET)).is_file()
        ):
            return self._send(
                403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            )
        if path.rstrip("/") + "/" == BUCKET:
            return self._send(200, _listing(web.root, parse_qs(parts.query)))
        file = web.root / path.removeprefix(BUCKET).lstrip("/")
        if not file.is_file() or ".." in path:
            return self._send(404, b"")
        data = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if found is None or not web.ranges:
            return self._send(200, data)
        start, stop = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
        if start >= len(data):
            return self._send(416, b"", f"bytes */{len(data)}")
        self._send(206, data[start:stop], f"bytes {start}-{stop - 1}/{len(data)}")

    def _send(self, status: int, body: bytes, span: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("ETag", '"0"')
        if span:
            self.send_header("Content-Range", span)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.served.cut
            if cut and len(body) > cut:
                body, self.close_connection = body[:-cut], True
            self.wfile.write(body)


def _listing(root: Path, query: dict[str, list[str]]) -> bytes:
    """The answer to ListObjectsV2, on one page."""
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    keys = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    contents, folders = [], set()
    for key in (key for key in keys if key.startswith(prefix)):
        head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        if cut:
            folders.add(f"{prefix}{head}{delimiter}")
        else:
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{(root / key).stat().st_size}</Size>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;0&quot;</ETag>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
    shared = [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
    body = "".join([*contents, *shared])
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
        'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
        f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(contents) + len(shared)}</KeyCount>"
        f"<MaxKeys>100000</MaxKeys><IsTruncated>false</IsTruncated>{body}</ListBucketResult>"
    ).encode()
