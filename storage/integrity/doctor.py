"""The doctor of file systems: tests whether several processes may write a store there at once.

The guarantees that `part_writer` rests on are tested in a temporary folder, by this process and a second one:

    every writer       a file and a directory can be synced; a name is given once (by a link, or else by a rename that
                       replaces nothing); a file is created once (O_EXCL)
    several writers    of two processes that link to one name at the same moment exactly one succeeds, thousands of
                       times; a lock of one excludes the other; each sees at once what the other links or removes

One machine cannot test another's view, nor a power cut: `Findings.not_tested` lists that.
"""

import contextlib
import errno
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from ..backends.system import check_writes, fcntl, rename_noreplace, sync
from ..errors import REFUSED, ConfigError, StorageError, StorageRefused

ROUNDS: Final = 1000
"""Races of two processes for a name."""
SAFE, UNSAFE, IO_ERROR = 0, 1, 4
"""Exit codes of `logitstore doctor`."""
SAFE_VERDICT: Final = "safe for several writers"
EVERY, SEVERAL, NOBODY = "every writer", "several writers", "nobody"
"""Who needs what is tested; a failure that nobody needs is good to know."""
_TIMEOUT_S: Final = 60.0
"""Seconds to wait for one answer of the second process."""
_LEAD_S: Final = 200e-6
"""Seconds from the announcement of a race to its start."""
_NO_VERDICT: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
"""Errors that end the examination instead of failing a check."""
_NETWORK: Final = re.compile(
    r"nfs|cifs|smb|lustre|ceph|gpfs|beegfs|afs|9p|virtiofs|fuse\.(?!portal)|fuse$|gluster|pvfs|orangefs|ocfs|gfs2|weka"
)
"""Types, as the kernel names them, of file systems that other machines may write to."""


@dataclass(frozen=True)
class Mount:
    """The file system that a path is on."""

    kind: str
    """Its type, as the kernel names it: "ext4", "nfs4"."""
    point: str
    """The mount point."""
    source: str
    """The device or server."""
    options: str
    """The mount options: "rw,relatime"."""

    @property
    def is_network(self) -> bool:
        """Whether other machines may write to it, too."""
        return bool(_NETWORK.match(self.kind))


@dataclass(frozen=True)
class Check:
    """One test of the file system, with its result."""

    name: str
    """What is tested: "link: one winner of a race"."""
    passed: bool
    """Whether the file system keeps the guarantee."""
    found: str
    """Its behaviour."""
    needed_by: str
    """`EVERY`, `SEVERAL` or `NOBODY`."""


def verdict_of(checks: Sequence[Check]) -> str:
    """Return "safe for several writers", "one writer at a time" or "not safe"."""
    failed = {check.needed_by for check in checks if not check.passed}
    if EVERY in failed:
        return "not safe"
    return "one writer at a time" if SEVERAL in failed else SAFE_VERDICT


@dataclass
class Findings:
    """All that was found about a file system."""

    path: Path
    """The folder that was examined."""
    mount: Mount
    """The file system it is on."""
    free_bytes: int
    """Bytes that are free."""
    checks: list[Check] = field(default_factory=list)
    """The tests, in order."""

    @property
    def verdict(self) -> str:
        """ "safe for several writers", "one writer at a time" or "not safe"."""
        return verdict_of(self.checks)

    @property
    def exit_code(self) -> int:
        """0 safe for several writers, 1 for fewer."""
        return SAFE if self.verdict == SAFE_VERDICT else UNSAFE

    @property
    def not_tested(self) -> list[str]:
        """The guarantees that this machine alone cannot test."""
        power = "a real power cut: whether the disk keeps what it reports as synced"
        others = (
            f"another machine: {self.mount.kind} is a network file system, with a server and a cache on each machine; "
            "run this on each, and begin with writers on one"
        )
        return [others, power] if self.mount.is_network else [power]


def examine(path: Path, *, rounds: int = ROUNDS) -> Findings:
    """Examine the file system that a folder is on; leave the folder as it was.

    rounds: races of two processes for a name. Raises ConfigError if the folder does not exist, StorageError if nothing
    can be written there, UnsupportedSystem.
    """
    check_writes(str(path))
    try:
        if not path.is_dir():
            raise ConfigError(
                str(path),
                expected="a folder",
                found="a file" if path.exists() else "nothing",
                remedy="name a folder on the disk where the store will be",
            )
        disk = os.statvfs(path)
        findings = Findings(path, mount_of(path), disk.f_bavail * disk.f_frsize)
        with (
            tempfile.TemporaryDirectory(prefix="__logitstore_doctor_", dir=path) as name,
            _start_peer() as peer,
        ):
            probe = _Probe(Path(name), peer, rounds)
            findings.checks += _run_checks(probe)
    except StorageError:
        raise
    except OSError as error:
        raise (StorageRefused if error.errno in REFUSED else StorageError)(
            str(path),
            expected="a folder in which files can be created",
            found=f"{error.strerror} (errno {error.errno})",
            remedy="name a folder on the disk where the store will be",
        ) from error
    return findings


def mount_of(path: Path, table: str | None = None) -> Mount:
    """Return the mount that a path is on. table: the text of /proc/self/mountinfo, read by default.

    >>> mount_of(Path("/data/a"), "22 1 0:21 / / rw - ext4 /dev/vda rw\\n23 22 0:22 / /data rw - nfs4 host:/d rw")
    Mount(kind='nfs4', point='/data', source='host:/d', options='rw')
    """
    if table is None:
        try:
            table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return Mount("unknown", "", "", "")
        path = path.resolve()
    best = Mount("unknown", "", "", "")
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        words, kinds = fields.split(" "), rest.split(" ")
        if len(words) < 6 or len(kinds) < 2:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[4])
        # A later mount at the same place hides an earlier one.
        if path.is_relative_to(point) and len(point) >= len(best.point):
            best = Mount(kinds[0], point, kinds[1], words[5])
    return best


@dataclass(frozen=True)
class _Probe:
    """The folder of the tests, and the second process."""

    folder: Path
    peer: Connection
    rounds: int

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the second process and return its result."""
        self.peer.send((function, *arguments))
        return self.answer()

    def answer(self) -> Any:
        """Return the result of the last call that was sent. Raises StorageError if it takes a minute."""
        if not self.peer.poll(_TIMEOUT_S):
            raise StorageError(
                str(self.folder),
                expected="an answer of the second process",
                found=f"no answer within {_TIMEOUT_S:.0f} s",
                remedy="try again; if it happens again, the file system hangs",
            )
        return self.peer.recv()


@contextlib.contextmanager
def _start_peer() -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()  # which ends the process
        process.join(5)
        process.kill()
        process.join()


def _serve(pipe: Connection) -> None:
    """Call the functions that are sent, until the pipe is closed: the second process."""
    with contextlib.suppress(EOFError):
        while True:
            function, *arguments = pipe.recv()
            pipe.send(function(*arguments))


# Tests: each returns whether the guarantee is kept (None if the file system lacks the call), and what was seen


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))


def _create_twice(probe: _Probe) -> tuple[bool, str]:
    _create(probe.folder / "excl")
    try:
        _create(probe.folder / "excl")
    except FileExistsError:
        return True, "the second is refused"
    return False, "it was made twice"


def _sync(path: Path) -> tuple[bool, str]:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start = time.perf_counter()
        sync(handle)
        return True, f"{1e3 * (time.perf_counter() - start):.2f} ms"
    finally:
        os.close(handle)


def _sync_file(probe: _Probe) -> tuple[bool, str]:
    (probe.folder / "sync").write_bytes(bytes(4096))
    return _sync(probe.folder / "sync")


def _case(probe: _Probe) -> tuple[bool, str]:
    _create(probe.folder / "case")
    folded = (probe.folder / "CASE").exists()
    return not folded, "no; names of the format differ in more than case" if folded else "yes"


def _long_name(probe: _Probe) -> tuple[bool, str]:
    _create(probe.folder / ("n" * 255))
    return True, "yes"


def _contend(folder: Path, who: str, kind: str, number: int, start: float) -> bool | str:
    """Give a file a name at a given moment; return whether it succeeded, or the error if there is no such call."""
    source, target = folder / f"{kind}-{who}-{number}", folder / f"{kind}-{number}"
    source.write_text(who)
    while time.monotonic() < start:
        pass
    try:
        if kind == "link":
            os.link(source, target)
        else:
            # Of absolute paths, no directory counts.
            rename_noreplace(-1, os.path.abspath(source), -1, os.path.abspath(target))
    except FileExistsError:
        return False
    except OSError as error:
        return error.strerror or str(error)
    return True


def _race(probe: _Probe, kind: str) -> tuple[bool | None, str]:
    """Run races of both processes for one name: exactly one must succeed in each."""
    wins, bad = [0, 0], 0
    for number in range(probe.rounds):
        start = time.monotonic() + _LEAD_S
        probe.peer.send((_contend, probe.folder, "theirs", kind, number, start))
        results = _contend(probe.folder, "ours", kind, number, start), probe.answer()
        for who, result in enumerate(results):
            if isinstance(result, str):
                return None, result
            wins[who] += result
        target = probe.folder / f"{kind}-{number}"
        bad += results[0] == results[1] or target.read_text() != ("ours" if results[0] else "theirs")
        for name in (target.name, f"{kind}-ours-{number}", f"{kind}-theirs-{number}"):
            (probe.folder / name).unlink(missing_ok=True)
    found = f"{probe.rounds:,} races, {wins[0]:,} to {wins[1]:,}"
    return not bad, f"{found}, {bad:,} without one winner" if bad else found


@cache
def _opened(path: Path) -> int:
    """Open a file once: in the second process, which holds it to its end."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _flock(file: int | Path, kind: int) -> bool | str:
    """Try once to lock; return whether it succeeded, or the error on a file system without locks."""
    try:
        fcntl.flock(_opened(file) if isinstance(file, Path) else file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.strerror or str(error)
    return True


def _locks(probe: _Probe) -> tuple[bool | None, str]:
    """Test that shared locks coexist and an exclusive one does not, in both directions, until released."""
    path, shared, exclusive, released = probe.folder / "lock", fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN
    _create(path)
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        error = _flock(handle, shared)
        if isinstance(
            error, str
        ):  # no writer then counts as alone, and nothing is removed: writers stay safe
            return None, f"{error}: torn files are not taken away"
        steps = (
            (probe.ask(_flock, path, shared), True),
            (_flock(handle, exclusive), False),
            (probe.ask(_flock, path, released), True),
            (_flock(handle, exclusive), True),
            (probe.ask(_flock, path, shared), False),
            (_flock(handle, released), True),
            (probe.ask(_flock, path, exclusive), True),
            (_flock(handle, shared), False),
        )
    finally:
        os.close(handle)
    passed = all(result == expected for result, expected in steps)
    return passed, "shared and exclusive" if passed else "a lock does not keep the other process out"


def _sees(path: Path) -> list[bool]:
    return [path.exists(), path.name in os.listdir(path.parent)]


def _visibility(probe: _Probe) -> tuple[bool, str]:
    """Test that a name that one process makes or removes is seen by the other's next look, in both directions."""
    late = 0
    for number in range(20):
        path = probe.folder / f"seen-{number}"
        late += any(probe.ask(_sees, path))
        _create(path)
        late += not all(probe.ask(_sees, path))
        probe.ask(os.unlink, path)
        late += any(_sees(path))
        probe.ask(_create, path)
        late += not all(_sees(path))
        path.unlink()
    return not late, f"{late} of 80 looks were too early" if late else "always"


_LINK, _RENAME = "link: one winner of a race", "rename that replaces nothing: one winner"
_CHECKS: Final[tuple[tuple[str, Callable[[_Probe], tuple[bool | None, str]], str], ...]] = (
    ("O_EXCL: a file is made once", _create_twice, EVERY),
    ("fsync of a file", _sync_file, EVERY),
    ("fsync of a directory", lambda probe: _sync(probe.folder), EVERY),
    (_LINK, lambda probe: _race(probe, "link"), SEVERAL),
    (_RENAME, lambda probe: _race(probe, "rename"), NOBODY),
    ("flock between processes", _locks, SEVERAL),
    ("a name is seen at once by the other process", _visibility, SEVERAL),
    ("names differ by case", _case, NOBODY),
    ("names of 255 bytes", _long_name, NOBODY),
)
"""The tests in order: name, function, who needs it."""


def _run_checks(probe: _Probe) -> Iterator[Check]:
    """Run the tests; on a file system without links, writers need the rename instead."""
    has_links = True
    for name, test, needed_by in _CHECKS:
        try:
            passed, found = test(probe)
        except OSError as error:
            if isinstance(error, StorageError) or error.errno in _NO_VERDICT:
                raise
            passed, found = False, error.strerror or str(error)
        has_links &= name != _LINK or passed is not None
        stands_in = name == _RENAME and not has_links
        needed_by = NOBODY if passed is None else needed_by
        yield Check(name, bool(passed), found, SEVERAL if stands_in else needed_by)
        if stands_in:
            yield Check("a name is given once", bool(passed), "by rename" if passed else "by neither", EVERY)
