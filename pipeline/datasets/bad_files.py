"""Examples that cannot be used: all of them listed at once, or left out of an image set.

A scan reads every example. It ends in one error: the first, with the next ones as its notes (PEP 678) and the number of the
rest. To skip files means to scan them beforehand, since the rows of a set must be known before the first is read:

    content that does not decode          left out: every run leaves out the same
    a file that the disk does not give    an error: the next run might read it
    an image of another size              an error: it is the setting that is wrong

A process scans a set of files once. Workers are given the result, so that their rows are those of the process that started
them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from ...storage.errors import MOST_LISTED, BadDataError, LogitStoreError, with_notes
from ...storage.processors import processors
from ...storage.progress import Progress, silent

_AT_ONCE: Final = 1024
"""Items that are handed to the threads at a time."""
_MOST_THREADS: Final = 16

Given = TypeVar("Given")
Result = TypeVar("Result")


class Problems:
    """The errors of a scan: the first ones, and the number of all."""

    def __init__(self) -> None:
        self.first: list[LogitStoreError] = []
        """Errors in the order of the examples, at most `MOST_LISTED`."""
        self.count = 0
        """Number of all errors."""

    def add(self, error: LogitStoreError) -> None:
        """Count an error, and keep it if it is one of the first."""
        self.count += 1
        if len(self.first) < MOST_LISTED:
            self.first.append(error)

    def raise_any(self, scanned: int) -> None:
        """Raise the first error, with the others as its notes, if there is one. scanned: number of all examples."""
        if not self.count:
            return
        more = self.count - len(self.first)
        shown = f"and {more:,} more: " if more else ""
        raise with_notes(self.first, f"{shown}{self.count:,} of {scanned:,} examples cannot be used")


def in_threads(function: Callable[[Given], Result], items: Sequence[Given]) -> Iterator[Result]:
    """Yield the results of a function in the order of the items. A bounded number of them waits in memory."""
    with ThreadPoolExecutor(min(_MOST_THREADS, processors())) as threads:
        for start in range(0, len(items), _AT_ONCE):
            yield from threads.map(function, items[start : start + _AT_ONCE])


# Skipped files


_known: dict[str, dict[str, str]] = {}
"""Files that scans of this process left out, and the reason of each, by the key of the set."""
_given: set[str] = set()
"""Keys that this process was given; while there is one, it makes no scan of its own."""


def known_files() -> dict[str, dict[str, str]]:
    """Return the results of all scans of this process, for a worker."""
    return dict(_known)


def take_known(known: Mapping[str, dict[str, str]]) -> None:
    """Take over the results of the process that started this one."""
    _known.update(known)
    _given.update(known)


def key_of(where: str, settings: Sequence[Any], files: Iterable[Sequence[Any]]) -> str:
    """Return the key of a scan. settings: whatever decides on the errors. files: name, size and time of each."""
    digest = hashlib.sha256(json.dumps([where, *settings], default=str).encode())
    for file in files:
        digest.update(json.dumps(file).encode())
    return digest.hexdigest()


def skipped_files(
    where: str,
    key: str,
    names: Sequence[str],
    error_of: Callable[[str], BadDataError | None],
    progress: Progress = silent,
) -> dict[str, str]:
    """Return the files whose content cannot be used, and the reason of each; from an earlier scan if there was one.

    where: the set in messages. key: of the files as they are now. error_of: decodes a file and returns its error. Raises
    BadDataError for a file that cannot be read, for a set of which nothing remains, and in a worker for files that have
    changed since it was started.
    """
    if key in _known:
        return _known[key]
    if _given:
        raise BadDataError(
            where,
            expected="the files that the process which started this worker scanned",
            found="files that have changed since",
            remedy="run the same command again",
        )
    problems, reasons = Problems(), dict[str, str]()
    for done, (name, error) in enumerate(zip(names, in_threads(error_of, names), strict=True), start=1):
        if error is not None:
            if isinstance(error.__cause__, OSError) and error.expected == READABLE:
                raise error
            problems.add(error)
            reasons[name] = f"expected {error.expected}, found {error.found}"
        if done % _AT_ONCE == 0 or done == len(names):
            progress(f"scanning {where}", done, len(names), unit="images")
    if len(reasons) == len(names):
        problems.raise_any(len(names))
    _known[key] = reasons
    return reasons


READABLE: Final = "a file that can be read"
"""Expectation of the errors of a disk."""
