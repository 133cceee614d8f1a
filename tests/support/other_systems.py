"""Other operating systems on this one: the calls that they lack are taken away from a Python of its own.

    python -m support.other_systems windows read STORE

`windows` and `macos` take away; `native` is the system as it is, on which the same actions run in continuous integration
of the real ones. An action prints its result as JSON. Libraries are imported before anything is taken away: they bring
code of their own for each system, and only ours is tried.
"""

import contextlib
import ctypes
import errno
import importlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

LIBRARIES: Final = (
    "asyncio", "concurrent.futures.thread", "http.client", "importlib.metadata", "multiprocessing.connection", "shutil",
    "tempfile", "numpy", "zarr.storage", "zarr.abc.store", "click", "rich.progress", "rich.live", "numcodecs.zstd",
    "numcodecs.blosc", "google_crc32c", "xxhash", "threadpoolctl", "dask.array", "jaxtyping", "pydantic",
)  # fmt: skip
"""Imported beforehand; others, such as obstore, ask for nothing that is taken away."""
WINDOWS_LACKS: Final = (
    *(f"O_{name}" for name in ("DIRECTORY", "NOFOLLOW", "NONBLOCK", "CLOEXEC", "TMPFILE", "SYNC", "DSYNC", "PATH")),
    "pread", "preadv", "pwrite", "pwritev", "posix_fadvise", "posix_fallocate", "fork", "forkpty", "register_at_fork",
    "sched_getaffinity", "sched_setaffinity", "statvfs", "fstatvfs", "fchdir", "fchmod", "mkfifo", "mknod", "sendfile",
    "killpg", "setsid", "sysconf", "getuid", "geteuid", "memfd_create", "nice", "getloadavg", "wait4", "sync",
)  # fmt: skip
"""Names of `os`."""
MACOS_LACKS: Final = (
    "O_TMPFILE", "O_PATH", "O_DIRECT", "O_NOATIME", "preadv", "pwritev", "posix_fadvise", "posix_fallocate",
    "sched_getaffinity", "sched_setaffinity", "memfd_create", "copy_file_range", "eventfd", "splice", "pidfd_open",
)  # fmt: skip
"""Names of `os`; the first to have preadv is macOS 11."""
SIGNALS: Final = (
    "SIGHUP",
    "SIGKILL",
    "SIGALRM",
    "SIGUSR1",
    "SIGPIPE",
    "SIGCHLD",
    "SIGQUIT",
    "pthread_sigmask",
    "alarm",
)
MODULES: Final = ("fcntl", "resource", "pwd", "grp", "termios")
FULL_SYNC: Final = 51
"""F_FULLFSYNC of macOS."""
synced: list[str] = []
"""Calls that made a file durable, on macOS."""


def _take(module: Any, *names: str) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def _refuse_descriptors(name: str) -> None:
    """Refuse a directory's descriptor in a function of `os`, as its name or beside it."""
    real = getattr(os, name)

    def call(*arguments: Any, **named: Any) -> Any:
        by_name = name in ("listdir", "scandir") and arguments and isinstance(arguments[0], int)
        if by_name or any(key.endswith("dir_fd") for key in named):
            raise NotImplementedError(f"{name}: dir_fd unavailable on this platform")
        if name == "open" and os.path.isdir(arguments[0]):
            raise PermissionError(errno.EACCES, "Permission denied", str(arguments[0]))
        return real(*arguments, **named)

    setattr(os, name, call)


def windows() -> None:
    """Take away what Windows lacks: descriptors of directories, forks, locks of POSIX, most signals."""
    for library in LIBRARIES:
        importlib.import_module(library)
    subprocess.Popen.kill = lambda self: os.kill(self.pid, 9)  # type: ignore[method-assign] # has its own there
    _take(os, *WINDOWS_LACKS)
    _take(signal, *SIGNALS)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    vars(shutil).update(_use_fd_functions=False, _USE_CP_SENDFILE=False)
    os.supports_dir_fd.clear()
    os.supports_fd.clear()
    for name in (
        "open",
        "stat",
        "lstat",
        "mkdir",
        "rmdir",
        "unlink",
        "link",
        "access",
        "readlink",
        "listdir",
        "scandir",
    ):
        _refuse_descriptors(name)
    real = ctypes.CDLL

    def library(name: Any, *arguments: Any, **named: Any) -> Any:
        if name is None:
            raise TypeError("expected the name of a library")
        return real(name, *arguments, **named)

    ctypes.CDLL = library  # type: ignore[misc, assignment]
    import select

    def no_pipes(*arguments: Any) -> Any:
        raise OSError(errno.ENOTSOCK, "an operation was attempted on something that is not a socket")

    select.select = no_pipes
    platform.system = lambda: "Windows"


def macos() -> None:
    """Take away what macOS lacks, and put its own in the place: F_FULLFSYNC, renameatx_np, ELOOP for a link."""
    import builtins
    import fcntl
    import resource

    for library in LIBRARIES:
        importlib.import_module(library)
    multiprocessing.set_start_method("spawn", force=True)
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    _take(os, *MACOS_LACKS)
    open_file, open_text, fsync, control = os.open, builtins.open, os.fsync, fcntl.fcntl

    class Library:
        """The C library of macOS."""

        @staticmethod
        def renameatx_np(*arguments: Any) -> int:
            *names, flag = arguments
            assert flag == 4, "RENAME_EXCL"
            synced.append("renameatx_np")
            return int(renameat2(*names, 1))

    def without_proc(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            # threadpoolctl looks there for what it finds by other means on macOS.
            if str(path).startswith(("/proc", "/dev/shm")) and path != "/proc/self/maps":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return real(path, *arguments, **named)

        return call

    def opened(path: Any, opening: int, *arguments: Any, **named: Any) -> int:
        if opening & os.O_NOFOLLOW and not opening & os.O_CREAT:
            with contextlib.suppress(FileNotFoundError):
                mode = os.lstat(path, dir_fd=named.get("dir_fd")).st_mode
                if stat.S_ISLNK(mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if stat.S_ISSOCK(mode):
                    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return open_file(path, opening, *arguments, **named)

    def controlled(handle: int, command: int, *arguments: Any) -> Any:
        if command == FULL_SYNC:
            synced.append("F_FULLFSYNC")
            return fsync(handle)
        return control(handle, command, *arguments)

    def cached(handle: int) -> None:
        synced.append("fsync")

    def no_limit(kind: int, limits: Any) -> None:
        if kind == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")

    ctypes.CDLL = lambda *arguments, **named: Library  # type: ignore[misc, assignment]
    os.open, builtins.open = without_proc(opened), without_proc(open_text)  # type: ignore[assignment]
    os.stat, os.readlink = without_proc(os.stat), without_proc(os.readlink)  # type: ignore[assignment]
    fcntl.F_FULLFSYNC = FULL_SYNC  # type: ignore[attr-defined]
    fcntl.fcntl, os.fsync, resource.setrlimit = controlled, cached, no_limit  # type: ignore[assignment]
    platform.system = lambda: "Darwin"


SYSTEMS: Final[dict[str, Callable[[], None]]] = {"native": lambda: None, "windows": windows, "macos": macos}


# Actions


def lacks() -> list[str]:
    """List the names that are not there: the proof that they were taken away."""
    missing = [f"os.{name}" for name in (*WINDOWS_LACKS, *MACOS_LACKS) if not hasattr(os, name)]
    missing += [f"signal.{name}" for name in SIGNALS if not hasattr(signal, name)]
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if not os.supports_dir_fd:
        missing.append("dir_fd")
    with contextlib.suppress(TypeError):  # of Windows
        missing += [] if hasattr(ctypes.CDLL(None), "renameat2") else ["renameat2"]
    try:
        os.stat("/proc/self/mountinfo")
    except FileNotFoundError:
        missing.append("/proc")
    return sorted(set(missing))


def read(*places: str) -> dict[str, Any]:
    """Read stores in every way: as a record, as the commands print it, and `content`; list what this system lacks."""
    from click.testing import CliRunner

    import logitstore
    from logitstore.cli.main import cli
    from logitstore.storage.describe import describe

    found: dict[str, Any] = {"lacks": lacks()}
    for place in places:
        record, errors = describe(place, expect=logitstore.open_store(place).digest)
        commands = ["inspect", place], ["inspect", place, "--json"], ["verify", place, "--deep"]
        printed = [CliRunner().invoke(cli, command) for command in commands]
        found[place] = {
            "record": json.loads(json.dumps(record, default=str)),
            "errors": [str(error) for error in errors],
            "printed": [[done.exit_code, done.output] for done in printed],
            **content(place),
        }
    return found


def content(place: str, *_: str) -> dict[str, Any]:
    """Return digests of all that a store holds, read by rows and by batches, and what `verify` finds."""
    import logitstore
    from logitstore.storage.backends.remote import folder_at
    from logitstore.storage.integrity.verify import verify

    folder: Any = folder_at(place)
    store = logitstore.open_store(folder)
    rows, batches = sha256(), sha256()
    for name, capture in store.teachers.items():
        temperature = 2.0 if capture.encoding.kind == "top-k" else None
        for view in range(capture.num_views):
            rows.update(name.encode() + capture.read(slice(None), view, temperature=temperature).tobytes())
    names = [name for name, capture in store.teachers.items() if capture.shape[2] == store.num_classes]
    stream = store.stream(batch_size=7, teachers=names[:1], views=0, temperature=2.0, window=20, inputs=False)
    for batch in stream:
        batches.update(batch.rows.tobytes() + batch.logits[names[0]].tobytes())
    report = verify(folder, deep=True) if folder.can_list else None
    return {
        "unsealed": store.unsealed(),
        "labels": sha256(store.samples.labels.tobytes()).hexdigest(),
        "rows": rows.hexdigest(),
        "batches": batches.hexdigest(),
        "verified": report and [report.exit_code, report.bytes, report.objects, report.strays],
        "folder": type(folder).__name__,
    }


def torch_batches(place: str, *_: str) -> dict[str, Any]:
    """Stream as tensors, with a loss; then make the calls that write, with things in hand."""
    import torch

    import logitstore
    from logitstore.pipeline import TorchStream, losses

    store, total = logitstore.open_store(place), 0.0
    (name,) = list(store.teachers)[:1]
    for batch in TorchStream(store.stream(batch_size=4, teachers=[name], views=0, shuffle=False)):
        student = torch.zeros(len(batch.rows), store.num_classes)
        soft = losses.soft_targets(batch.logits, 2.0)
        total += float(losses.Distillation(temperature=2.0)(student, soft, batch.labels))
    network, inputs = torch.nn.Linear(4, 3), torch.zeros(9, 4)
    new = Path(place).parent / "new"
    calls: dict[str, Callable[[], Any]] = {
        "cache": lambda: logitstore.cache(new, {"a": network}, (inputs, torch.arange(9) % 3)),
        "cluster": lambda: logitstore.cluster(place, clusters=2, classes_per_cluster=2, teachers=name),
        "distill": lambda: logitstore.distill(
            place, network, teachers=name, lr=0.1, epochs=1, dataset=inputs
        ),
    }
    return {"loss": total, "errors": [_error_of(one, call) for one, call in calls.items()]}


def _error_of(name: str, call: Callable[[], Any]) -> list[str]:
    """Return a name with the type and the text of the error of a call."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return [name, type(error).__name__, str(error)]
    return [name, "no error", ""]


def refuse(place: str, *_: str) -> list[list[str]]:
    """Call everything that writes, and return the name, the type and the text of each error."""
    import numpy as np
    from click.testing import CliRunner

    import logitstore
    from logitstore.cli.main import COMMANDS, cli
    from logitstore.cli.options import READING
    from logitstore.storage.api import begin_store
    from logitstore.storage.backends.local import Folder
    from logitstore.storage.backends.posix import check_writable, replace_file
    from logitstore.storage.integrity.doctor import examine
    from logitstore.storage.integrity.repair import repair

    store, new = logitstore.open_store(place), Path(place).parent / "new"
    digests = np.arange(9, dtype=np.uint64)
    small: dict[str, Any] = {"num_classes": 3}
    calls: dict[str, Callable[[], Any]] = {
        "create_store": lambda: logitstore.create_store(new, digests=digests, **small),
        "create_store, resumed": lambda: logitstore.create_store(
            place, digests=digests, exist_ok=True, **small
        ),
        "begin_store": lambda: begin_store(new, num_rows=9, **small),
        "capture": lambda: store.capture("more", provenance={}),
        "samples_writer": lambda: store.samples_writer(identity={}),
        "write_clustering": lambda: store.write_clustering("more", {}, identity={}),
        "check_writable": store.check_writable,
        "tidy_up": store.tidy_up,
        "repair": lambda: repair(Path(place)),
        "examine": lambda: examine(Path(place).parent),
        "replace_file": lambda: replace_file(new, b""),
        "check_writable of a folder": lambda: check_writable(new),
        "Folder": lambda: Folder(new),
        "copy_store": lambda: logitstore.copy_store(place, new),
        "concat_stores": lambda: logitstore.concat_stores([place, place], new, allow_duplicates=True),
        "remove_parts": lambda: logitstore.remove_parts(place, teachers=["wide"]),
        "write_card": lambda: logitstore.write_card(place),
        "export_logits": lambda: logitstore.export_logits(place, "wide", f"{new}.npy"),
        "import_logits": lambda: logitstore.import_logits(f"{place}.npy", new, "more"),
    }
    found = [_error_of(name, call) for name, call in calls.items()]
    arguments = {
        "demo": [], "run": ["a.toml"], "plan": ["a.toml"], "doctor": ["."], "repair": [place],
        "cluster": [place, "--teacher", "wide", "--clusters", "2", "--classes-per-cluster", "2"],
        "combine": [place, "--generalist", "wide", "--specialist", "a", "--name", "b"],
        "copy": [place, str(new)], "merge": [place, str(new)], "concat": [place, place, str(new)],
        "rm": [place, "--teacher", "wide"], "card": [place],
        "compress": [place, "--teacher", "wide", "--name", "b", "--max-kl", "0.1"],
        "export": [place, "--teacher", "wide", f"{new}.npy"],
        "import": [f"{place}.npy", "--out", str(new), "--teacher", "more"],
    }  # fmt: skip
    for command in COMMANDS:
        if command not in READING:
            done = CliRunner().invoke(cli, [command, *arguments.get(command, ["a.toml", place])])
            found.append([f"logitstore {command}", str(done.exit_code), done.output])
    return found


def write(place: str, after: str = "-1", links: str = "") -> dict[str, Any]:
    """Write a store; end this process as a power cut does after so many files were made durable. Run again, it resumes.

    links: "no links" for a disk without hard links.
    """
    import numpy as np

    import logitstore
    from logitstore.storage.backends import local, posix, staged, system

    count, sync = int(after), system.sync

    def counted(handle: int) -> None:
        nonlocal count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), 9)
        sync(handle)

    for module in (local, posix, staged) if count > 0 else ():
        vars(module)["sync"] = counted
    if links:

        def none(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        os.link = none
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (300, 4), dtype=np.uint8)
    store = logitstore.create_store(
        place, num_classes=5, inputs=inputs, labels=np.arange(300) % 5, block_rows=64, exist_ok=True
    )
    with store.capture("wide", provenance={"model": "random"}, views=2) as capture:
        for view in range(2):
            for rows in capture.missing_blocks(view):
                logits = np.arange(rows.start * 5, rows.stop * 5, dtype=np.float32).reshape(-1, 5) % 89 / 8
                capture.write(rows, logits + view, view=view)
    return {"digest": store.digest, "synced": {name: synced.count(name) for name in synced}}


READINGS: Final = {
    "plain-v1.0": "aeed098ec7cd6d5a35fd6a41c482533796faae0cb5a99ec0b90d82ca1d624729",
    "store-v1.0": None,
    "transform-v1.1": None,
}
"""Stores of `tests/data`, and the digest of their rows; None where decoding rounds as the machine does."""
WRITTEN: Final = "sha256:f7b777f8110e217da02ca97408fb484cda52b178fc48235fc09bbbd18dff829a"
"""Digest of the store that `write` makes."""


def check() -> dict[str, Any]:
    """Read the stores of earlier versions, then write one, killed and resumed, or see that it is refused: a real system."""
    import tempfile

    from logitstore.storage.backends.system import WRITES

    data = Path(__file__).resolve().parent.parent / "data"
    for name, digest in READINGS.items():
        found = content(str(data / name))
        assert (digest or found["rows"], found["verified"][0]) == (found["rows"], 0), found
    with tempfile.TemporaryDirectory() as folder:
        place = os.path.join(folder, "store.zarr")
        if not WRITES:
            shutil.copytree(data / "store-v1.0", place)
            errors = refuse(place)
            assert all(kind in ("UnsupportedSystem", "64") for _, kind, _ in errors), errors
            return {"system": platform.system(), "refused": len(errors)}
        command = [sys.executable, "-m", "support.other_systems", "native", "write", place, "11"]
        assert subprocess.run(command, check=False).returncode == -9
        made = write(place)
        assert made["digest"] == WRITTEN, made
        return {"system": platform.system(), "written": made["digest"]}


def main() -> None:
    """Become a system, and run an action there."""
    name, action, *arguments = sys.argv[1:]
    if action == "torch_batches":
        importlib.import_module("torch.utils.data")
    SYSTEMS[name]()
    print(json.dumps(globals()[action](*arguments)))


if __name__ == "__main__":
    main()
