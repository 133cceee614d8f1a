"""Servers that misbehave: a reader gets the right values or an error, and no answer takes longer than it may.

Each kind of answer is given to one kind of request: to metadata while a store is opened, to a few rows, or to all rows
with and without a cache. Everything else is answered honestly.
"""

import gzip
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
from support import stores
from support.stores import Teacher

from faults.lying import Connection, Liar

ROWS: Final = 40
MOST_SECONDS: Final = 60.0
"""Of a trial, on a machine with other work; a user's limits are 20 times those below."""
READS: Final = ("metadata", "a few rows", "all rows", "all rows, cached", "an epoch, cached")
_HTML: Final = b"<html><body>Please log in</body></html>" * 40


def _status(code: int, times: int = 1 << 30, body: bytes = b"") -> Callable[[Connection, list[int]], bool]:
    def answer(one: Connection, told: list[int]) -> bool:
        told.append(code)
        if len(told) > times:
            return False
        one.head(code, f"Content-Length: {len(body)}")
        if one.method != "HEAD":
            one.handle.sendall(body)
        return True

    return answer


def _body(
    change: Callable[[bytes], bytes], *lines: str, stated: bool = True
) -> Callable[[Connection, list[int]], bool]:
    """Answer a range with other bytes. stated: whether the length is that of the bytes."""

    def answer(one: Connection, told: list[int]) -> bool:
        path = one.server.root / one.path.lstrip("/")
        if one.method == "HEAD" or not path.is_file() or not one.span:
            return False
        start, _, stop = one.span.removeprefix("bytes=").partition("-")
        data = path.read_bytes()[int(start) : int(stop) + 1]
        sent = change(data)
        one.head(206, one.range_line, f"Content-Length: {len(sent if stated else data)}", *lines)
        one.handle.sendall(sent)
        if len(sent) < len(data) and not stated:
            one.handle.close()
        return True

    return answer


def _whole(body: Callable[[bytes], bytes]) -> Callable[[Connection, list[int]], bool]:
    def answer(one: Connection, told: list[int]) -> bool:
        path = one.server.root / one.path.lstrip("/")
        if not path.is_file():
            return False
        sent = body(path.read_bytes())
        one.head(200, f"Content-Length: {len(sent)}")
        if one.method != "HEAD":
            one.handle.sendall(sent)
        return True

    return answer


def _other_shard(one: Connection, told: list[int]) -> bool:
    """Give the bytes of the next block."""
    for number in range(ROWS // 8 - 1):
        one.path = one.path.replace(f"c.0.{number}.0", "c.0.4.0").replace(f"label/c.{number}", "label/c.4")
    if "/c." not in one.path:
        one.path = one.path.replace("samples/", "teachers/wide/").replace("/log/1.", "/log/0.")
    one.plain()
    return True


def _new_tag(one: Connection, told: list[int]) -> bool:
    """Give half of the bytes, and on asking for the rest those of another version of the object."""
    path = one.server.root / one.path.lstrip("/")
    if one.method == "HEAD" or not path.is_file() or not one.span:
        return False
    told.append(1)
    data = path.read_bytes() if len(told) == 1 else bytes(len(path.read_bytes()))
    start, _, stop = one.span.removeprefix("bytes=").partition("-")
    part = data[int(start) : int(stop) + 1]
    one.handle.sendall(
        f'HTTP/1.1 206 X\r\nETag: "{len(told)}"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n'
        f"Content-Range: bytes {start}-{int(start) + len(part) - 1}/{len(data)}\r\n"
        f"Content-Length: {len(part)}\r\n\r\n".encode()
    )
    one.handle.sendall(part[: len(part) // 2] if len(told) == 1 else part)
    if len(told) == 1:
        one.handle.close()
    return True


def _stall(one: Connection, told: list[int]) -> bool:
    one.head(206, "Content-Range: bytes 0-99/100", "Content-Length: 100")
    one.handle.sendall(b"{")
    time.sleep(8)
    return True


def _redirect(one: Connection, told: list[int]) -> bool:
    """Send the reader to the same object again, without an end."""
    one.head(302, f"Location: {one.path}", "Content-Length: 0")
    return True


KINDS: Final[dict[str, Callable[[Connection, list[int]], bool]]] = {
    "404": _status(404),
    "403": _status(403),
    "429": _status(429),
    "503 once": _status(503, 1),
    "503 three times": _status(503, 3),
    "503 for ever": _status(503),
    "HTML with 200": _whole(lambda data: _HTML),
    "HTML with 206": _body(lambda data: (_HTML * 9)[: len(data)]),
    "empty": _body(lambda data: b""),
    "short": _body(lambda data: data[: len(data) // 2]),
    "cut": _body(lambda data: data[: len(data) // 2], stated=False),
    "an ignored range": _whole(lambda data: data),
    "another shard's bytes": _other_shard,
    "a changed ETag": _new_tag,
    "gzip": _body(gzip.compress, "Content-Encoding: gzip"),
    "a stall": _stall,
    "a redirect": _redirect,
}
"""What a server answers: 17 forms of 14 kinds."""
RIGHT: Final = frozenset({"503 once", "503 three times"})
"""Kinds after which the values are right: the request is made again."""


def _is_meant(read: str, path: str) -> bool:
    if read == "metadata":
        return path.endswith(("zarr.json", "1.json", "seal.json"))
    return "/c." in path and "classes" not in path and "class_name" not in path


def make(path: Path) -> None:
    """Make the store that is served."""
    stores.make(path, rows=ROWS, classes=5, block_rows=8, teachers={"wide": Teacher()})


def _values(url: Any, read: str, cache: Path) -> Any:
    from logitstore.storage.api import open_store

    store = open_store(url, cache=cache if "cached" in read else False)
    if read in ("metadata", "a few rows"):
        return store.digest, store.teachers["wide"].read([3, 9, 20])
    if read.startswith("all rows"):
        return store.samples.labels, store.teachers["wide"].read(slice(None))
    batches = list(store.stream(16, seed=1))
    return tuple(np.concatenate([b.rows for b in batches])), np.concatenate(
        [b.logits["wide"] for b in batches]
    )


def trial(folder: Path, kind: str, read: str, cache: Path) -> list[str]:
    """Read from a server that misbehaves in one way, and return the harm. folder: holds the store."""
    from logitstore.storage.errors import LogitStoreError

    told: dict[str, list[int]] = {}
    answered: list[int] = []

    def lie(one: Connection) -> bool:
        if not _is_meant(read, one.path):
            return False
        answered.append(1)  # before it may stall
        if KINDS[kind](one, told.setdefault(one.path, [])):
            return True
        answered.pop()
        return False

    liar, start = Liar(folder, lie), time.monotonic()
    what = f"{kind}, {read}"
    try:
        found = _values(f"{liar.url}/store.zarr", read, cache)
        wanted = _values(folder / "store.zarr", read, cache)
        same = all(np.array_equal(mine, other) for mine, other in zip(found, wanted, strict=True))
        harm = [] if same else [f"{what}: other values"]
    except LogitStoreError as error:
        harm = [f"{what}: {error}"] if kind in RIGHT or "\n" in str(error) else []
    except Exception as error:  # noqa: BLE001 - whatever it is, it is harm
        harm = [f"{what}: {type(error).__name__}: {error}"]
    finally:
        liar.close()
    seconds = time.monotonic() - start
    if not answered:
        harm.append(f"{what}: nothing was asked that it answers so")
    if seconds > MOST_SECONDS:
        harm.append(f"{what}: {seconds:.0f} s")
    return harm


def impatient() -> ExitStack:
    """Shorten every limit, so that a trial takes seconds."""
    from logitstore.storage.backends import remote, remote_folder, store_errors

    stack = ExitStack()
    for module, name, value in (
        (remote_folder, "PATIENCE_S", 0.0),
        (remote, "_CLIENT", {"timeout": "3s", "connect_timeout": "3s"}),
        (
            remote,
            "_RETRY",
            {
                "max_retries": 3,
                "backoff": {"init_backoff": timedelta(seconds=0.02)},
                "retry_timeout": timedelta(seconds=3),
            },
        ),
        (store_errors, "TIMEOUT_S", 6.0),
    ):
        stack.enter_context(mock.patch.object(module, name, value))
    return stack
