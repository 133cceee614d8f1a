"""The doctor of buckets: tests whether several processes may write a store under a URL at once.

What writers rest on is tested with objects of a folder of its own, which are deleted again:

    every writer       an object is read back as it was put; the second of two objects of one name is refused; a range of
                       bytes is read
    several writers    of two requests at the same moment exactly one is accepted; an object is listed as soon as it was put
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from ..backends.object_folder import ObjectFolder
from ..backends.remote import folder_to_write
from ..errors import ConfigError, StorageError
from .doctor import EVERY, NOBODY, SAFE, SAFE_VERDICT, SEVERAL, UNSAFE, Check, verdict_of

_ROUNDS_EACH: Final = 20
"""Races of two processes on a disk for one race of two requests."""
_LOOKS: Final = 5
_DATA: Final = b"logitstore doctor"


@dataclass
class BucketFindings:
    """All that was found about a bucket."""

    path: str
    """The URL that was examined."""
    checks: list[Check] = field(default_factory=list)
    """The tests, in order."""
    mount: None = None
    """A bucket is on no file system."""
    free_bytes: None = None
    """A bucket states no limit."""

    @property
    def verdict(self) -> str:
        """ "safe for several writers", "one writer at a time" or "not safe"."""
        return verdict_of(self.checks)

    @property
    def exit_code(self) -> int:
        """0 safe for several writers, 1 for fewer."""
        return SAFE if self.verdict == SAFE_VERDICT else UNSAFE

    not_tested = (
        "another machine: whether all servers of the bucket answer alike; run this on each, at the same time",
        "whether the server keeps what it reports as stored",
    )
    """The guarantees that this machine alone cannot test."""


def examine_bucket(url: str, *, rounds: int) -> BucketFindings:
    """Examine the bucket that a URL leads to; leave it as it was.

    rounds: as for a disk; one race of two requests for each 20. Raises ConfigError for a place that cannot be written to,
    StorageError if nothing can be put there.
    """
    top = folder_to_write(url)
    if not isinstance(top, ObjectFolder):
        raise ConfigError(
            url, expected="a URL of a bucket", found="a local path", remedy="name the folder itself"
        )
    findings = BucketFindings(str(top.path))
    folder = top.sub(f"__logitstore_doctor_{secrets.token_hex(6)}")
    try:
        findings.checks += _run_checks(folder, max(1, rounds // _ROUNDS_EACH))
    finally:
        with contextlib.suppress(StorageError):
            for name in folder.names():
                with contextlib.suppress(FileNotFoundError):
                    folder.delete(name)
    return findings


def _run_checks(folder: ObjectFolder, rounds: int) -> Iterator[Check]:
    tests: tuple[tuple[str, Callable[[], tuple[bool, str]], str], ...] = (
        ("an object is read back as it was put", lambda: _read_back(folder), EVERY),
        ("an object is put once (If-None-Match: *)", lambda: _put_twice(folder), EVERY),
        ("a range of bytes is read", lambda: _range(folder), EVERY),
        ("put: one winner of a race", lambda: _race(folder, rounds), SEVERAL),
        ("an object is listed at once", lambda: _listed(folder), SEVERAL),
        ("objects can be deleted", lambda: _deleted(folder), NOBODY),
    )
    for number, (name, test, needed_by) in enumerate(tests):
        try:
            passed, found = test()
        except (StorageError, FileNotFoundError) as error:
            if number == 0:
                raise
            passed, found = False, getattr(error, "found", "no such object")
        yield Check(name, passed, found, needed_by)


def _read_back(folder: ObjectFolder) -> tuple[bool, str]:
    start = time.perf_counter()
    folder.replace("plain", _DATA)
    try:
        found = folder.read("plain")
    except StorageError as error:
        return False, str(error.found)
    return found == _DATA, f"{1e3 * (time.perf_counter() - start):.1f} ms to put and read"


def _put_twice(folder: ObjectFolder) -> tuple[bool, str]:
    first, second = folder.put_once("once", b"first"), folder.put_once("once", b"second")
    if first is not None:
        return False, f"the first is refused: {first}"
    if second is None:
        return False, "the second is accepted"
    same = folder.read("once") == b"first"
    return same, "the second is refused" if same else "the second is refused, and replaced the first"


def _range(folder: ObjectFolder) -> tuple[bool, str]:
    found, size = folder.read_range("plain", 2, 5)
    return (found, size) == (_DATA[2:7], len(_DATA)), f"{len(found)} bytes of 5"


def _race(folder: ObjectFolder, rounds: int) -> tuple[bool, str]:
    bad, wins = 0, [0, 0]
    with ThreadPoolExecutor(2) as pool:
        for number in range(rounds):
            key = f"race-{number}"
            data = (b"one", b"two")
            answers: list[Any] = list(pool.map(lambda mine, key=key: folder.put_once(key, mine), data))
            won = [answer is None for answer in answers]
            bad += sum(won) != 1 or folder.read(key) != data[won.index(True)]
            wins = [count + each for count, each in zip(wins, won, strict=True)]
    found = f"{rounds:,} races, {wins[0]:,} to {wins[1]:,}"
    return not bad, f"{found}, {bad:,} without one winner" if bad else found


def _listed(folder: ObjectFolder) -> tuple[bool, str]:
    late = 0
    for number in range(_LOOKS):
        folder.replace(f"listed-{number}", _DATA)
        late += f"listed-{number}" not in folder.names()
    return not late, f"{late} of {_LOOKS} looks were too early" if late else "always"


def _deleted(folder: ObjectFolder) -> tuple[bool, str]:
    folder.delete("plain")
    return (True, "yes") if not folder.exists("plain") else (False, "it is still there")
