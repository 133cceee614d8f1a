"""A stand-in for the HTTP surface of the Hugging Face hub, as far as data sets are read: on the loopback.

`serving_hub({"someone/digits": {"main": folder}})` serves the folder of each revision of each data set: its information, its
tree, and its files. A file that the hub would keep in its large storage is answered by a redirect to another path, the CDN,
which knows ranges and must not be given the token.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_LARGE = (".bin", "c.")
"""Beginnings or suffixes of the names of files that the CDN serves."""


@dataclass
class Hub:
    """A server that runs."""

    data_sets: Mapping[str, Mapping[str, Path]]
    """Folder by revision, by name of the data set."""
    token: str | None = None
    """The token that private data sets need; None for public ones."""
    url: str = ""
    """http://host:port"""
    broken: int = 0
    """Files whose GET is answered by 503, from now on."""
    requests: list[str] = field(default_factory=list)
    """"GET /path bytes=0-9", as they came."""
    leaks: list[str] = field(default_factory=list)
    """Requests of the CDN that brought a token."""


@contextlib.contextmanager
def serving_hub(data_sets: Mapping[str, Mapping[str, Path]], token: str | None = None) -> Iterator[Hub]:
    """Serve data sets while the block runs, on a free port of the loopback; the CDN has a host name of its own."""
    hub = Hub(data_sets, token)

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    timeout = 20

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = re.fullmatch(
            r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", unquote(urlsplit(self.path).path)
        )
        self._note()
        if found is None or (folder := self._folder(found[1], found[2])) is None:
            return self._missing("RepoNotFound")
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
        there = [path for path in paths if (folder / path).exists()]
        self._json([_entry(folder, folder / path) for path in there])

    def do_GET(self) -> None:
        self._note()
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            if "Authorization" in self.headers:
                self.served.leaks.append(path)
            return self._file(self.served.data_sets[found[1]][found[2]] / found[3])
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/revision/([^/]+))?", path):
            if (folder := self._folder(found[1], found[3] or "main")) is None:
                return self._missing("RevisionNotFound" if self._is_known(found[1]) else "RepoNotFound")
            return self._json({"id": found[1], "sha": _commit(folder), "private": False, "siblings": []})
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            folder = self._folder(found[1], found[2])
            if folder is None or not (folder / found[3]).is_dir():
                return self._missing("EntryNotFound")
            query = parse_qs(urlsplit(self.path).query)
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            inside = (folder / found[3]).rglob("*") if deep else (folder / found[3]).iterdir()
            return self._json([_entry(folder, item) for item in sorted(inside)])
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (folder := self._folder(found[1], found[2])) is None:
                return self._missing("RepoNotFound")
            file = folder / found[3]
            if not file.is_file():
                return self._missing("EntryNotFound")
            if _is_large(file.name):
                # Another host name of the loopback: a client must not send its token there.
                cdn = self.served.url.replace("127.0.0.1", "localhost")
                return self._send(
                    302,
                    b"",
                    {"Location": f"{cdn}/cdn/{found[1]}/{found[2]}/{found[3]}", **_tags(file, folder)},
                )
            return self._file(file, _tags(file, folder))
        return self._missing("EntryNotFound")

    def _note(self) -> None:
        wanted = self.headers.get("Range")
        path = unquote(urlsplit(self.path).path)
        self.served.requests.append(f"{self.command} {path}" + (f" {wanted}" if wanted else ""))

    def _is_known(self, name: str) -> bool:
        hub = self.served
        allowed = hub.token is None or self.headers.get("Authorization") == f"Bearer {hub.token}"
        return allowed and name in hub.data_sets

    def _folder(self, name: str, revision: str) -> Path | None:
        return self.served.data_sets[name].get(revision) if self._is_known(name) else None

    def _missing(self, code: str) -> None:
        # The hub does not tell a data set that is private from one that is not there.
        status = 401 if code == "RepoNotFound" else 404
        message = "Repository not found" if status == 401 else "Entry not found"
        self._send(
            status,
            json.dumps({"error": message}).encode(),
            {"X-Error-Code": code, "X-Error-Message": message},
        )

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, file: Path, headers: Mapping[str, str] | None = None) -> None:
        if self.served.broken:
            self.served.broken -= 1
            return self._send(503, b"")
        data = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if found is None:
            return self._send(200, data, headers)
        start, stop = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
        if start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        span = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self._send(206, data[start:stop], {**(headers or {}), **span})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_large(name: str) -> bool:
    return name.endswith(_LARGE[0]) or name.startswith(_LARGE[1])


def _commit(folder: Path) -> str:
    return hashlib.sha1(folder.as_posix().encode()).hexdigest()


def _tags(file: Path, folder: Path) -> dict[str, str]:
    """Headers by which a client knows the version of a file, and the size behind a redirect."""
    data = file.read_bytes()
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))} if _is_large(file.name) else {}
    return {"ETag": etag, "X-Repo-Commit": _commit(folder), **linked}


def _entry(folder: Path, item: Path) -> dict[str, Any]:
    path = item.relative_to(folder).as_posix()
    if item.is_dir():
        return {"type": "directory", "oid": _commit(item), "size": 0, "path": path}
    data = item.read_bytes()
    entry = {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}
    if _is_large(item.name):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry
