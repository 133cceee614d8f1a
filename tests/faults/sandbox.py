"""A watch on a process that opens a stranger's store: its code, files, memory and time.

`Sandbox` starts one server, which imports everything and reads a clean store once, so that nothing is left to import.
For each request it forks a child that watches itself (an audit hook, PEP 578, and every file descriptor that is
opened, by what it is open on), opens the store in every way that there is, and answers with what it saw:

    the test ── path, guard to take out ──> server ── fork ──> child: inspect, verify --deep, read, stream, dask
             <── outcomes, events, bytes, seconds ────────────┘

`python sandbox.py CLEAN_STORE` is the server.
"""

import contextlib
import gc
import hashlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

HANGS_AFTER = 5.0
"""Seconds after which a child is killed."""
ADDRESS_SPACE = 4 << 30
"""Bytes that a child may map more than the server: a runaway ends by itself."""
FORBIDDEN = (
    "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.forkpty", "pty.spawn", "socket.", "ctypes.", "code.__new__", "shutil.", "os.remove",
    "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime",
    "os.setxattr", "tempfile.", "urllib.Request", "webbrowser.open", "sys.addaudithook",
)  # fmt: skip
"""Audit events (prefixes) that no reading of a store raises."""


# The child: what is watched


class Watch:
    """Everything that this process does from `start` on and that a reader has no reason for."""

    def __init__(self, root: str) -> None:
        self.events: list[str] = []
        """What was done, in words, at most a hundred of them."""
        own = {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())}
        modules = [
            module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)
        ]
        ours = {os.path.dirname(os.path.realpath(file)) for file in modules if file and "logitstore" in file}
        self._code = tuple(sorted(own | ours))
        # Zone names and the like: what the system itself reads anywhere.
        self._readable = (
            *self._code,
            os.path.realpath(root),
            "/proc",
            "/sys",
            "/dev/null",
            "/usr",
            "/lib",
            "/etc/localtime",
        )
        self._known = set(sys.modules)
        self._on = False

    def note(self, event: str) -> None:
        if len(self.events) < 100:
            self.events.append(event[:300])

    def start(self) -> None:
        """Watch. It cannot be undone in this process."""
        opens = os.open

        def watched(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            handle = opens(path, flags, mode, dir_fd=dir_fd)
            if self._on:
                self._check_path(os.readlink(f"/proc/self/fd/{handle}"), "os.open")
            return handle

        os.open = watched  # type: ignore[assignment]
        sys.addaudithook(self._hook)
        self._on = True

    def stop(self) -> None:
        """Note modules that came, and watch no more."""
        self._on = False
        for name in sorted(set(sys.modules) - self._known):
            file = getattr(sys.modules[name], "__file__", None)
            if file and not os.path.realpath(file).startswith(self._code):
                self.note(f"import of {name} from {file}")

    def _check_path(self, path: str, how: str) -> None:
        real = os.path.realpath(path)
        if not any(real == good or real.startswith(good + "/") for good in self._readable):
            self.note(f"{how}: {path}")

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        self._on = False  # what the hook itself does is not watched
        try:
            if event.startswith(FORBIDDEN):
                self.note(f"{event} {arguments!r}")
            elif event in ("exec", "compile"):
                code = arguments[0] if event == "exec" else None
                name = getattr(code, "co_filename", arguments[-1] if event == "compile" else "")
                name = name.decode() if isinstance(name, bytes) else str(name)
                if not name.startswith(("<frozen", *self._code)):
                    self.note(f"{event} of {name}")
            elif event == "open" and isinstance(arguments[0], (str, bytes)):
                # What os.open gives is looked at by its descriptor: there the path may be relative to another one.
                path, mode = os.fsdecode(arguments[0]), arguments[1]
                if mode is not None:
                    self._check_path(path, "open")
                    if any(letter in str(mode) for letter in "wax+"):
                        self.note(f"open for writing: {path}")
                elif arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                    self.note(f"open for writing: {path}")
            elif event in ("os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes)):
                self._check_path(os.fsdecode(arguments[0]), event)
        finally:
            self._on = True


# The child: what is done


def steps(location: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every way in which a store is opened: (name, what to call). Numbers come back as digests."""
    from click.testing import CliRunner

    from logitstore.cli.main import cli
    from logitstore.storage.api import open_store
    from logitstore.storage.parts.clusterings import ClusteringReader
    from logitstore.storage.parts.reader import sets_of

    def command(*arguments: str) -> Callable[[], Any]:
        def call() -> Any:
            # As on a terminal: elsewhere click itself takes escapes out.
            found = CliRunner().invoke(cli, [*arguments], color=True)
            return {"exit": found.exit_code, "stdout": found.stdout, "stderr": found.stderr}

        return call

    yield "inspect", command("inspect", location)
    yield "inspect json", command("inspect", location, "--json")
    yield "verify", command("verify", location, "--deep")
    opened: list[Any] = []
    yield "open", lambda: opened.append(open_store(location)) or (opened[0].digest and "")
    if not opened:
        return
    store = opened[0]
    rows = slice(0, min(store.num_rows, 64))
    yield "labels", lambda: _digest(store.samples.labels)
    yield "source", lambda: _digest(store.samples.source)
    yield "digests", lambda: _digest(store.samples.digests)
    yield "names", lambda: _digest("\n".join(store.class_names))
    yield "ids", lambda: _digest("\n".join(store.samples.ids or []))
    yield "inputs", lambda: _digest(store.samples.inputs[rows]) if store.samples.inputs is not None else ""
    for name in list(store.teachers):
        yield f"{name}: logits", lambda name=name: _digest(store.teachers[name].read(rows))
        yield f"{name}: peak", lambda name=name: _peak(store.teachers[name], rows)
        yield f"{name}: seen", lambda name=name: _digest(store.teachers[name].seen(rows))
        yield f"{name}: classes", lambda name=name: _digest(store.teachers[name].classes)
        yield f"{name}: provenance", lambda name=name: _digest(json.dumps(store.teachers[name].provenance))
        yield f"{name}: dask", lambda name=name: _dask(store.teachers[name])
    for name in store.clusterings:
        yield f"{name}: sets", lambda name=name: _digest(sets_of(store.clustering(name), store.num_classes))
        yield f"{name}: all", lambda name=name: ClusteringReader(store.root, name).check() or ""
        for array in ("covariance", "assignment", "centres"):
            yield (
                f"{name}: {array}",
                lambda name=name, array=array: _digest(store.clustering(name).small(array)),
            )
    yield "stream", lambda: _stream(store)


def _peak(capture: Any, rows: slice) -> str:
    return _digest(capture.peak(rows)) if capture.has_peak else ""


def _dask(capture: Any) -> str:
    array = capture.dask()
    return _digest(array[0, :4].compute(scheduler="synchronous"))


def _stream(store: Any) -> str:
    batch = next(iter(store.stream(4, shuffle=False, augment=lambda inputs, view, rows: inputs, views=0)))
    arrays = [batch.rows, batch.labels, *(batch.logits[name] for name in sorted(batch.logits))]
    return _digest(b"".join(array.tobytes() for array in arrays))


def _digest(value: Any) -> str:
    data = (
        value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else value.tobytes()
    )
    return hashlib.sha256(data).hexdigest()[:16]


def exercise(location: str) -> dict[str, Any]:
    """Call every step; the outcome of each: {"ok": …} or {"error": type, "typed": whether it is ours, "text": line}."""
    from logitstore.storage.errors import LogitStoreError

    outcomes: dict[str, Any] = {}
    for name, call in steps(location):
        try:
            outcomes[name] = {"ok": call()}
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome
            typed = isinstance(error, LogitStoreError)
            outcomes[name] = {"error": type(error).__name__, "typed": typed, "text": str(error)[:500]}
    return outcomes


def misdeed(what: str, location: str) -> dict[str, Any]:
    """Something that the watch must see; for its negative controls."""
    import pickle
    import socket

    if what == "pickle":
        pickle.loads(b"cos\ngetpid\n(tR.")
    elif what == "outside":
        with open("/etc/hostname", "rb") as file:
            file.read()
    elif what == "outside by descriptor":
        directory = os.open(location, os.O_RDONLY | os.O_DIRECTORY)
        os.close(os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory))
    elif what == "socket":
        with contextlib.suppress(OSError), socket.socket() as one:
            one.settimeout(0.1)
            one.connect(("127.0.0.1", 9))
    elif what == "subprocess":
        subprocess.run(["true"], check=False)
    elif what == "exec":
        exec(compile("1 + 1", "<a store>", "exec"))  # noqa: S102 - so that it is seen
    elif what == "writing":
        with contextlib.suppress(OSError):
            os.mkdir(os.path.join(location, "made"))
    elif what == "memory":
        return {"bomb": {"ok": _digest(b"\1" * (400 << 20))}}
    elif what == "sleep":
        time.sleep(2.2)
    elif what == "unpickle":
        pickle.loads(Path(location, "teachers/wide/logits/0").read_bytes())
    elif what == "gunzip":
        import gzip

        shard = Path(location, "teachers/wide/logits/c.0.0.0").read_bytes()
        return {"bomb": {"ok": _digest(gzip.decompress(shard))}}
    elif what == "bug":
        return {"open": {"error": "KeyError", "typed": False, "text": "logits"}}
    return {}


# The child: which guard is taken out


def without(guard: str) -> Any:
    """A context in which one guard of the product does nothing."""
    from logitstore.storage.backends import local as files
    from logitstore.storage.format import constants, documents, layouts
    from logitstore.storage.format import metadata as format
    from logitstore.storage.format.metadata import ArrayLayout
    from logitstore.storage.parts import clusterings, journal, reader, sealed_part, stored_basis
    from logitstore.storage.parts import root as store

    stack = contextlib.ExitStack()

    def patch(target: Any, name: str, value: Any) -> None:
        if hasattr(target, name):
            stack.enter_context(mock.patch.object(target, name, value))

    def any_array(name: str, data: bytes, where: str) -> ArrayLayout:
        value = json.loads(data)
        layout = ArrayLayout._from_json(name, value)
        assert layout is not None
        return layout

    if guard == "allow-list":
        patch(ArrayLayout, "from_bytes", staticmethod(any_array))
    elif guard == "limits":
        patch(ArrayLayout, "check_sizes", lambda self, where: None)
        for module in (format, store, sealed_part, layouts):
            patch(module, "check_part", lambda *_, **__: None)
            patch(module, "check_layout", lambda *_, **__: None)
        for module in (documents, format, layouts):
            patch(module, "beyond", lambda *_: RuntimeError("no limit"))
        for name in [name for name in vars(constants) if name.startswith("MAX_")]:
            for module in (documents, format, layouts, journal, sealed_part):
                patch(module, name, 1 << 62)
    elif guard == "links":
        patch(files, "_FILE", os.O_RDONLY | os.O_CLOEXEC)
        patch(files, "_BELOW", files.DIRECTORY)
    elif guard == "names":
        patch(files, "components", lambda key, where: key.split("/"))
        patch(journal, "_file_key", lambda key, where: key)
    elif guard == "canonical JSON":
        for module in (documents, format, journal, store, sealed_part):
            patch(module, "parse_json", lambda data, where: json.loads(data))
    elif guard == "clusterings":
        patch(clusterings, "in_range", lambda values, *_: values)
        patch(clusterings, "check_shapes", lambda *_: None)
        for name in ("_number", "_count", "_text"):
            patch(clusterings.Stated, name, lambda self, value, key: value)
    elif guard == "numbers of a basis":
        patch(stored_basis, "check_numbers", lambda *_: None)
    elif guard == "digest of a basis":
        patch(stored_basis, "check_digest", lambda *_: None)
        patch(stored_basis, "digest_noted", lambda *_: "")
    elif guard == "rows":
        patch(reader, "in_range", lambda values, *_: values)
    elif guard == "terminal":
        for module in ("errors", "printing.text"):
            stack.enter_context(mock.patch(f"logitstore.cli.{module}.printable", lambda text, keep="": text))
    elif guard:
        raise ValueError(guard)
    return stack


# The server


def _child(request: dict[str, Any], answer: int) -> None:
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (virtual + ADDRESS_SPACE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    location = request["path"]
    watch = Watch(location.replace("\0", ""))
    outcomes: dict[str, Any] = {}
    with without(request.get("without", "")):
        watch.start()
        start = time.perf_counter()
        try:
            wanted = request.get("misdeed")
            with contextlib.suppress(Exception) if wanted else contextlib.nullcontext():
                outcomes = misdeed(wanted, location) if wanted else exercise(location)
        finally:
            seconds = time.perf_counter() - start
            watch.stop()
    text = json.dumps({"outcomes": outcomes, "events": watch.events, "seconds": seconds})
    with os.fdopen(answer, "w") as file:
        file.write(text)


def _fork(request: dict[str, Any]) -> dict[str, Any]:
    """Run a request in a child; its answer, and its memory."""
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            _child(request, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    data, deadline = b"", time.monotonic() + HANGS_AFTER
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            break
        piece = os.read(reading, 1 << 20)
        if not piece:
            break
        data += piece
    os.close(reading)
    _, status, usage = os.wait4(child, 0)
    found = json.loads(data) if data else {"outcomes": {}, "events": [], "seconds": HANGS_AFTER}
    growth = max(0, usage.ru_maxrss * 1024 - before)
    return {**found, "status": status, "growth": growth}


def serve(clean: str) -> None:
    """Import everything, read the clean store, and then answer requests, a line each, until there are no more."""
    import warnings

    import dask.array
    import numpy

    import logitstore.cli.commands.inspect
    import logitstore.cli.commands.verify
    import logitstore.storage.stream.stream  # noqa: F401

    warnings.simplefilter("error")
    assert dask.array and numpy
    for location in (clean, clean + ".nothing", "http://nowhere/store.zarr"):
        exercise(location)
    without("limits").close()
    gc.collect()
    gc.freeze()  # so that a child's collector does not copy every page of this process
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


class Sandbox:
    """The server, from the outside. A context manager."""

    def __init__(self, clean: Path) -> None:
        command = [sys.executable, __file__, str(clean)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n", "the sandbox did not start"

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()

    def open(self, path: Path | str, **request: str) -> dict[str, Any]:
        """What a child saw. request: `without`, a guard to take out, or `misdeed`, what to do instead."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps({"path": str(path), **request}) + "\n")
        self._server.stdin.flush()
        found: dict[str, Any] = json.loads(self._server.stdout.readline())
        return found


if __name__ == "__main__":
    serve(sys.argv[1])
