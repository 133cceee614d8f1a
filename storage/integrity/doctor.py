"""Is this file system safe for several writers?

What the protocol of `part_writer` rests on is tried in a folder made for it, by this process and a second one:

    every writer       a file and a directory can be synced; a name is given once (a link, or else a rename that
                       replaces nothing); a file is made once (O_EXCL)
    several writers    of two processes that link to the same name at the same moment just one succeeds, thousands of
                       times; a lock of one keeps the other out; what one links or removes the other sees at once

One machine cannot see what another does, nor what is left after a power cut: `Findings.not_tested` says so.
"""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from ..backends.posix import DIRECTORY, rename_noreplace, typed_errors
from ..errors import ConfigError, StorageError

ROUNDS: Final = 1000
"""How often two processes race for a name."""
SAFE, UNSAFE, IO_ERROR = 0, 1, 4
"""What `logitstore doctor` leaves with."""
SAFE_VERDICT: Final = "safe for several writers"
_TITLES: Final = {"link": "link: one winner of a race", "rename": "rename that replaces nothing: one winner"}
_PATIENCE_S: Final = 60.0
"""How long the other process may take for one thing."""
_LEAD_S: Final = 200e-6
"""How long before a race both are told when it begins."""
_NETWORK: Final = re.compile(
    r"nfs|cifs|smb|lustre|ceph|gpfs|beegfs|afs|9p|virtiofs|fuse\.(?!portal)|fuse$|gluster|pvfs|orangefs|ocfs|gfs2|weka"
)
"""Types of file systems that other machines may write to, as the kernel calls them."""


@dataclass(frozen=True)
class Mount:
    """The file system that a path is on."""

    kind: str
    """Its type, as the kernel calls it: "ext4", "nfs4"."""
    point: str
    """Where it is mounted."""
    source: str
    """What is mounted there."""
    options: str
    """With which options: "rw,relatime"."""

    @property
    def is_network(self) -> bool:
        """Whether other machines may write to it, too."""
        return bool(_NETWORK.match(self.kind))


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    """What: "link: one winner of a race"."""
    passed: bool
    """Whether the file system did what it must."""
    found: str
    """What it did."""
    needed_by: str
    """"every writer", "several writers", or "nobody": good to know."""


@dataclass
class Findings:
    """What was found out about a file system."""

    path: Path
    """The folder that was examined."""
    mount: Mount
    """What it is on."""
    free_bytes: int
    """Bytes that may still be written."""
    checks: list[Check] = field(default_factory=list)
    """What was tried, in order."""

    def _fails(self, needed_by: str) -> bool:
        return any(check.needed_by == needed_by and not check.passed for check in self.checks)

    @property
    def verdict(self) -> str:
        """ "safe for several writers", "one writer at a time" or "not safe"."""
        if self._fails("every writer"):
            return "not safe"
        return "one writer at a time" if self._fails("several writers") else SAFE_VERDICT

    @property
    def exit_code(self) -> int:
        """0 safe for several writers, 1 for fewer."""
        return SAFE if self.verdict == SAFE_VERDICT else UNSAFE

    @property
    def not_tested(self) -> list[str]:
        """What this machine alone cannot find out."""
        found = ["a real power cut: whether a disk keeps what it says it has synced"]
        if self.mount.is_network:
            found.insert(
                0,
                f"another machine: {self.mount.kind} is a network file system, and writers on several machines meet "
                "its server and their own caches; run this on each, and begin with writers on one",
            )
        return found


def examine(path: Path, *, rounds: int = ROUNDS) -> Findings:
    """Try out the file system that a folder is on; the folder is left as it was.

    rounds: how often two processes race for a name. Raises ConfigError where there is no such folder, StorageError
    where nothing can be written there.
    """
    if not path.is_dir():
        raise ConfigError(
            str(path),
            expected="a folder",
            found="none",
            remedy="name one on the disk where the store will be",
        )
    with _typed(path):
        room = os.statvfs(path)
        findings = Findings(path, mount_of(path), room.f_bavail * room.f_frsize)
        with tempfile.TemporaryDirectory(prefix="__logitstore_doctor_", dir=path) as name:
            folder = Path(name)
            findings.checks += [_excl(folder), _sync_file(folder), _sync_directory(folder)]
            with _peer(folder) as ask:
                link = _race(folder, ask, rounds, "link")
                rename = _race(folder, ask, rounds, "rename")
                findings.checks += _naming(link, rename)
                findings.checks += [_locks(folder, ask), _visibility(folder, ask)]
            findings.checks += [_case(folder), _long_names(folder)]
    return findings


@contextlib.contextmanager
def _typed(path: Path) -> Iterator[None]:
    """As `typed_errors`; a file of the probe that is not there, or is there already, is an error here, too."""
    try:
        with typed_errors(path):
            yield
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise StorageError(
            str(path),
            expected="a folder in which files can be made",
            found=f"{error.strerror} (errno {error.errno})",
            remedy="name a folder on the disk where the store will be",
        ) from error


def mount_of(path: Path, table: str | None = None) -> Mount:
    """The mount that a path is on. table: the text of /proc/self/mountinfo, read where not given.

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


# One process


def _try(what: str, needed_by: str, function: Callable[[], str]) -> Check:
    """What `function` says is found, where it raises nothing; errors that are no answer pass."""
    try:
        return Check(what, True, function(), needed_by)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES):
            raise
        return Check(what, False, f"{error.strerror or error}", needed_by)


def _make(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))


def _excl(folder: Path) -> Check:
    _make(folder / "excl")
    try:
        _make(folder / "excl")
    except FileExistsError:
        return Check("O_EXCL: a file is made once", True, "the second is refused", "every writer")
    return Check("O_EXCL: a file is made once", False, "it was made twice", "every writer")


def _sync_file(folder: Path) -> Check:
    def sync() -> str:
        handle = os.open(folder / "sync", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        try:
            os.write(handle, bytes(4096))
            start = time.perf_counter()
            os.fsync(handle)
            return f"{1e3 * (time.perf_counter() - start):.2f} ms"
        finally:
            os.close(handle)

    return _try("fsync of a file", "every writer", sync)


def _sync_directory(folder: Path) -> Check:
    def sync() -> str:
        handle = os.open(folder, DIRECTORY)
        try:
            start = time.perf_counter()
            os.fsync(handle)
            return f"{1e3 * (time.perf_counter() - start):.2f} ms"
        finally:
            os.close(handle)

    return _try("fsync of a directory", "every writer", sync)


def _case(folder: Path) -> Check:
    _make(folder / "case")
    sensitive = not (folder / "CASE").exists()
    found = "yes" if sensitive else "no; names of the format differ in more than case"
    return Check("names differ by case", sensitive, found, "nobody")


def _long_names(folder: Path) -> Check:
    def make() -> str:
        _make(folder / ("n" * 255))
        return "yes"

    return _try("names of 255 bytes", "nobody", make)


# Two processes


@contextlib.contextmanager
def _peer(folder: Path) -> Iterator[Callable[..., Any]]:
    """A second process; `ask("make", …)` has it do something and returns what came of it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, str(folder)), daemon=True)
    process.start()
    theirs.close()

    def ask(*request: Any, wait: bool = True) -> Any:
        ours.send(request)
        return answer() if wait else answer

    def answer() -> Any:
        if not ours.poll(_PATIENCE_S):
            raise StorageError(
                str(folder),
                expected=f"an answer of a second process within {_PATIENCE_S:.0f} s",
                found="none",
                remedy="try again; where it happens again, the file system hangs",
            )
        return ours.recv()

    try:
        yield ask
    finally:
        with contextlib.suppress(OSError):
            ours.send(("end",))
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def _serve(pipe: Connection, folder: str) -> None:
    """The second process: does what it is asked for, until it is told to end."""
    base, handles = Path(folder), {}
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        if request[0] == "end":
            return
        what, arguments = request[0], request[1:]
        answer: Any = None
        if what == "contend":
            answer = _contend(base, "theirs", *arguments)
        elif what == "lock":
            handles[arguments[0]] = os.open(base / "lock", os.O_RDWR | os.O_CLOEXEC)
            answer = _flock(handles[arguments[0]], arguments[1])
        elif what == "unlock":
            os.close(handles.pop(arguments[0]))
        elif what == "make":
            _make(base / arguments[0])
        elif what == "unlink":
            os.unlink(base / arguments[0])
        elif what == "sees":
            answer = [os.access(base / arguments[0], os.F_OK), arguments[0] in os.listdir(base)]
        pipe.send(answer)


def _contend(folder: Path, who: str, kind: str, number: int, start: float) -> bool | int:
    """Try at a given moment to give a file of one's own a name; whether that was had, or the errno."""
    source, target = folder / f"{kind}-{who}-{number}", folder / f"{kind}-{number}"
    source.write_text(who)
    while time.monotonic() < start:
        pass
    try:
        if kind == "link":
            os.link(source, target)
        else:
            rename_noreplace(-100, str(source), -100, str(target))  # AT_FDCWD
    except FileExistsError:
        return False
    except OSError as error:
        return error.errno or errno.EIO
    return True


def _race(folder: Path, ask: Callable[..., Any], rounds: int, kind: str) -> Check:
    """Both processes want the same name, again and again: each time just one may get it, and its file."""
    ours = theirs = bad = 0
    for number in range(rounds):
        start = time.monotonic() + _LEAD_S
        answer = ask("contend", kind, number, start, wait=False)
        we = _contend(folder, "ours", kind, number, start)
        they = answer()
        number_of = next((n for n in (we, they) if not isinstance(n, bool)), None)
        if number_of is not None:
            return Check(_TITLES[kind], False, os.strerror(number_of), "several writers")
        ours, theirs = ours + bool(we), theirs + bool(they)
        winner = (folder / f"{kind}-{number}").read_text()
        bad += we == they or winner != ("ours" if we else "theirs")
        for name in (f"{kind}-{number}", f"{kind}-ours-{number}", f"{kind}-theirs-{number}"):
            (folder / name).unlink(missing_ok=True)
    found = f"{rounds:,} races, {ours:,} to {theirs:,}" + (f", {bad:,} without one winner" if bad else "")
    return Check(_TITLES[kind], not bad, found, "several writers")


def _naming(link: Check, rename: Check) -> list[Check]:
    """Links are what writers use; the rename is for file systems that have none."""
    has_links = link.passed or "races" in link.found
    if has_links:
        return [link, Check(rename.name, rename.passed, rename.found, "nobody")]
    found = "by rename" if rename.passed else "by neither"
    either = Check("a name is given once", rename.passed, found, "every writer")
    return [Check(link.name, False, link.found, "nobody"), rename, either]


def _flock(handle: int, kind: int) -> bool | int:
    """Whether a lock was had at once; the errno where there are no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno or errno.EIO
    return True


def _locks(folder: Path, ask: Callable[..., Any]) -> Check:
    """Shared locks are had together, an exclusive one alone, in both directions, and freed at the end."""
    name = "flock between processes"
    _make(folder / "lock")
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        first = _flock(handle, fcntl.LOCK_SH)
        if not isinstance(first, bool):
            # Nobody can then be alone with a part, so that nothing is ever taken away: writers stay safe.
            return Check(name, False, f"{os.strerror(first)}: torn files are not taken away", "nobody")
        steps = [
            (True, first),
            (True, ask("lock", "a", fcntl.LOCK_SH)),
            (False, _flock(handle, fcntl.LOCK_EX)),
            (None, ask("unlock", "a")),
            (True, _flock(handle, fcntl.LOCK_EX)),
            (False, ask("lock", "b", fcntl.LOCK_SH)),
            (None, ask("unlock", "b")),
            (True, _flock(handle, fcntl.LOCK_UN)),
            (True, ask("lock", "c", fcntl.LOCK_EX)),
            (False, _flock(handle, fcntl.LOCK_SH)),
            (None, ask("unlock", "c")),
        ]
    finally:
        os.close(handle)
    passed = all(expected == found for expected, found in steps)
    found = "shared and exclusive" if passed else "a lock does not keep the other process out"
    return Check(name, passed, found, "several writers")


def _visibility(folder: Path, ask: Callable[..., Any]) -> Check:
    """What one process links or removes the other must see with its next look, in both directions."""
    name = "a name is seen at once by the other process"
    late = 0
    for number in range(20):
        there = f"seen-{number}"
        late += ask("sees", there) != [False, False]
        (folder / there).write_bytes(b"")
        late += ask("sees", there) != [True, True]
        ask("unlink", there)
        late += (folder / there).exists() or there in os.listdir(folder)
        ask("make", there)
        late += not (folder / there).exists() or there not in os.listdir(folder)
        (folder / there).unlink()
    found = f"{late} of 80 looks came too early" if late else "always"
    return Check(name, not late, found, "several writers")
