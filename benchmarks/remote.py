"""Batches out of a store behind a network, against a plain download and against the same store on the local disk.

A web server on the loopback, in a process of its own, answers each request after a latency. All connections share a
bandwidth, if one is given: on the loopback alone, the processor would be measured instead of the network.

1. Cold: an epoch of the stream with an empty cache, against a download of the same shards into memory by 16 threads.
2. Warm: an epoch out of the cache, against the same store opened on the local disk.
3. Without a cache: the same as 1, run by run.
4. Requests to open the store, those of an epoch, and memory beside what the stream states beforehand.

Both sides run in turn, and each ratio is of neighbours in one run.

Alone, with fewer rows: python benchmarks/remote.py [rows] [latency in ms] [MB/s, 0 for no limit] [rounds]
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import torch
from encoding import bar
from measured_stores import BATCH, make_store, random_inputs
from timing import seconds

import logitstore
from logitstore.pipeline import TorchStream

ROWS, LATENCY_MS, MEGABYTES, ROUNDS = 65_536, 20.0, 125.0, 5
COLD_BAR, WARM_BAR, OPEN_BAR = 0.8, 0.9, 10
THREADS = 16
MIB = 1 << 20
_PIECE = 1 << 18


# The server


class _Bandwidth:
    """Bytes a second that all connections share."""

    def __init__(self, rate: float) -> None:
        self._rate, self._lock, self._free_at = rate, threading.Lock(), 0.0

    def wait(self, count: int) -> None:
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            pause = self._free_at - now
        if pause > 0.002:  # less is no more than the clock of a sleep tells
            time.sleep(pause)


def serve(root: str, latency: float, rate: float) -> None:
    """Serve a folder for ever; print the port."""
    counts, bandwidth = [0, 0], _Bandwidth(rate)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def do_GET(self) -> None:
            if self.path == "/count":
                body = f"{counts[0]} {counts[1]}".encode()
                return self._head(200, len(body), body)
            counts[0] += 1
            time.sleep(latency)
            try:
                file = open(root + self.path, "rb")  # noqa: SIM115 - closed below
            except OSError:
                return self._head(404, 0)
            with file:
                size = os.fstat(file.fileno()).st_size
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                start, stop = (int(found[1]), min(int(found[2]) + 1, size)) if found else (0, size)
                self._head(206 if found else 200, stop - start, span=f"bytes {start}-{stop - 1}/{size}")
                counts[1] += stop - start
                while start < stop:
                    some = min(_PIECE, stop - start)
                    bandwidth.wait(some)
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, some)

        def _head(self, status: int, length: int, body: bytes = b"", span: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            if status == 206:
                self.send_header("Content-Range", span)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


@contextmanager
def serving(folder: Path, latency: float, rate: float) -> Iterator[str]:
    """Serve a folder from a process of its own; yield the URL."""
    call = [sys.executable, __file__, "serve", str(folder), str(latency), str(rate)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def asked(url: str) -> tuple[int, int]:
    """Return the requests and the bytes so far."""
    requests, count = urlopen(f"{url}/count").read().split()
    return int(requests), int(count)


# The two sides


def epoch(store: logitstore.Store, number: int) -> None:
    """Read one epoch."""
    stream = store.stream(BATCH, seed=0, decode=False)
    stream.set_epoch(number)
    assert sum(len(batch) for batch in TorchStream(stream)) == store.num_rows


def download(url: str, keys: list[str]) -> None:
    """Download objects into memory, and drop them."""
    import obstore
    from obstore.store import HTTPStore

    store = HTTPStore.from_url(url, client_options={"allow_http": True})
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda key: len(obstore.get(store, key).bytes()), keys))


def shards(path: Path) -> list[str]:
    """Return the keys of the shards that an epoch reads."""
    arrays = ("samples/label", "samples/input", "teachers/wide/logits")
    return [
        f.relative_to(path.parent).as_posix() for array in arrays for f in sorted((path / array).glob("c.*"))
    ]


def ratios(rounds: int, ours: Callable[[int], object], theirs: Callable[[], object]) -> list[float]:
    """Return their seconds / ours of each round, after one of each that is not counted."""
    ours(0), theirs()
    found = []
    for number in range(1, rounds + 1):
        if number % 2:
            mine, other = seconds(lambda: ours(number)), seconds(theirs)  # noqa: B023 - called at once
        else:
            other, mine = seconds(theirs), seconds(lambda: ours(number))  # noqa: B023
        found.append(other / mine)
    return found


def report(what: str, found: list[float], least: float | None) -> None:
    """Print a ratio and its bar."""
    text = f"{what} ({min(found):.2f} … {max(found):.2f})"
    if least is None:
        print(f"  {'':8s}{text:122s} {median(found):14.2f}", flush=True)
    else:
        bar(text, f"{median(found):.2f}", f">= {least:g}", median(found) >= least)


def peak_bytes() -> int:
    """Return the peak of this process's memory since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def main(
    rows: int = ROWS, latency: float = LATENCY_MS, rate: float = MEGABYTES, rounds: int = ROUNDS
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows, rounds = int(rows), int(rounds)
    limit = f"{rate:g} MB/s" if rate else "no limit of bandwidth"
    print(f"remote: {rows:,} rows, latency {latency:g} ms, {limit}, {rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "served" / "store.zarr"
        path.parent.mkdir()
        local = make_store(path, rows, {"wide": "float16"}, inputs=random_inputs(rows))
        keys = shards(path)
        size = sum((path.parent / key).stat().st_size for key in keys)
        print(f"  {len(keys)} shards, {size / MIB:.0f} MiB")
        with serving(path.parent, latency / 1000, rate * 1e6) as url:
            compare(f"{url}/store.zarr", url, Path(folder), local, keys, rounds)


def compare(
    address: str, url: str, folder: Path, local: logitstore.Store, keys: list[str], rounds: int
) -> None:
    """Measure the four."""
    before = asked(url)[0]
    store = logitstore.open_store(address, cache=folder / "cache")
    requests = asked(url)[0] - before
    bar("requests to open the store", str(requests), f"<= {OPEN_BAR}", requests <= OPEN_BAR)

    def cold(number: int) -> None:
        epoch(logitstore.open_store(address, cache=folder / f"cold{number}"), number)

    report(
        "cold: bandwidth of an epoch / of a plain download",
        ratios(rounds, cold, lambda: download(url, keys)),
        COLD_BAR,
    )
    epoch(store, 0)
    start = asked(url)
    found = ratios(rounds, lambda number: epoch(store, number), lambda: epoch(local, 1))
    repeated = asked(url)[1] - start[1]
    report("warm: rows/s of an epoch out of the cache / on the local disk", found, WARM_BAR)
    bar("bytes of shards that warm epochs fetched", str(repeated), "0", repeated == 0)
    uncached = logitstore.open_store(address, cache=False)
    found = ratios(rounds, lambda number: epoch(uncached, number), lambda: download(url, keys))
    report("without a cache: bandwidth of an epoch / of a plain download", found, None)
    start = asked(url)
    stream = logitstore.open_store(address, cache=folder / "counted").stream(BATCH, seed=0, decode=False)
    if (refs := Path("/proc/self/clear_refs")).exists():
        refs.write_text("5")
        held, stated = peak_bytes(), stream.memory_bytes
        assert sum(len(batch) for batch in TorchStream(stream)) == local.num_rows
        used = peak_bytes() - held
        bar(
            "MiB of a cold stream, stated beforehand",
            f"{used / MIB:.1f}",
            f"<= {stated / MIB:.1f}",
            used <= stated,
        )
        print(f"  {'':8s}{'requests of that epoch and what it opened':122s} {asked(url)[0] - start[0]:14d}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
    else:
        main(*map(float, sys.argv[1:5]))
