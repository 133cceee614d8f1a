"""The table of faults: trials, violations, and negative controls that were caught.

A test of a fault reports its trials through the fixture `tally`; the sums over all tests and processes are
printed as one table when the tests end (tests/conftest.py). A row's title is the title in docs/reliability.md.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

DEEP: Final = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
"""Whether the large counts are wanted (`make test-deep`)."""

PROPERTY: Final = "fault"
"""Name of the property of a test's report that carries an entry."""

ROWS: Final = {
    "kill": "SIGKILL of writers, restarted in another number",
    "copy": "SIGKILL of copies of a store, run again",
    "exchange": "SIGKILL of exports and imports, run again",
    "power": "power loss after any prefix of the writer's calls",
    "order": "order of the system calls, by strace",
    "call": "the N-th storage call fails",
    "full": "a full disk",
    "torn": "torn, empty and overlong shards",
    "lost": "lost folders and files, repaired and written again",
    "flip": "one flipped bit",
    "swap": "objects swapped, replayed, deleted, put back",
    "json": "JSON cut at every byte, and mutated",
    "hostile": "hostile stores",
    "transform": "hostile captures in the transform encoding",
    "clustering": "ready-made hostile clusterings and class names",
    "lengths": "servers that lie about lengths, or take for ever",
    "misbehaviour": "web servers that misbehave",
    "checkpoint": "hostile checkpoints and factory strings",
    "weights": "weights exchanged before they are loaded",
    "code": "changed code of networks",
    "sets": "exchanged transfer sets and labels",
    "readers": "readers during writes",
    "zombie": "a stopped writer wakes after the seal",
    "anew": "a stopped writer wakes when its store was begun anew",
    "snapshots": "hard-link snapshots while two writers make one block",
    "media": "read-only media, no HOME, no temporary space, odd clocks",
    "machine": "state machine against a dictionary",
    "interleave": "two writers, every interleaving of their steps",
    "ranks": "ranks that differ",
    "memory": "small shared memory",
    "buckets": "wrong answers of the server of a bucket, and none",
    "bucket_kills": "SIGKILL of writers of a bucket",
    "golden": "golden stores",
}
"""Key of each row -> its title, in the order in which they are printed."""


def scale(small: int, deep: int) -> int:
    """How often to try: `small` in `make test`, `deep` in `make test-deep`."""
    return deep if DEEP else small


@dataclass
class Entry:
    """An entry of one test in a row."""

    row: str
    """Key of the row, one of `ROWS`."""
    count: int = 0
    """Faults that were tried."""
    unit: str = ""
    """What was counted: "runs", "states", "bits" …"""
    violations: int = 0
    """Faults that did harm."""
    details: list[str] = field(default_factory=list)
    """What else is worth a word: "792 kills"."""
    caught: int = 0
    """Negative controls (a guard taken out, a protocol mutated) that were seen to do harm."""
    controls: int = 0
    """Negative controls that were run."""


class Tally:
    """Reports of one test; each call becomes an entry of the table."""

    def __init__(self, properties: list[tuple[str, Any]]) -> None:
        """properties: the `user_properties` of the test, which travel with its report."""
        self._properties = properties

    def _add(self, entry: Entry) -> None:
        assert entry.row in ROWS, entry.row
        self._properties.append((PROPERTY, json.dumps(vars(entry))))

    def reached(
        self, row: str, count: int, unit: str, violations: Iterable[object] = (), **details: int
    ) -> None:
        """`count` faults were tried; fails the test where any did harm, and says which (the first ten)."""
        harm = list(violations)
        words = [f"{number:,} {word.replace('_', ' ')}" for word, number in details.items()]
        self._add(Entry(row, count, unit, len(harm), words))
        assert not harm, f"{len(harm)} of {count} {unit}: " + "\n".join(map(str, harm[:10]))

    def control(self, row: str, name: str, caught: bool) -> None:
        """A negative control: with the guard `name` taken out, harm must be seen. Fails the test where it is not."""
        self._add(Entry(row, caught=int(caught), controls=1))
        assert caught, f"negative control {name!r}: the guard was taken out and no harm was seen"


def entries(properties: Iterable[tuple[str, Any]]) -> Iterator[Entry]:
    """The entries among the properties of a report."""
    return (Entry(**json.loads(value)) for name, value in properties if name == PROPERTY)


def table(found: Iterable[Entry]) -> list[str]:
    """The table, a line a row that any test said something of; details of the same word are added up."""
    sums: dict[str, Entry] = {}
    details: dict[str, dict[str, int]] = {}
    for entry in found:
        total = sums.setdefault(entry.row, Entry(entry.row))
        total.count += entry.count
        total.unit = entry.unit or total.unit
        total.violations += entry.violations
        total.caught += entry.caught
        total.controls += entry.controls
        words = details.setdefault(entry.row, {})
        for detail in entry.details:
            number, _, word = detail.partition(" ")
            words[word] = words.get(word, 0) + int(number.replace(",", ""))
    lines = [f"{'fault':58s} {'tried':>22s} {'violations':>11s} {'controls caught':>16s}"] if sums else []
    for row, title in ROWS.items():
        if row in sums:
            total = sums[row]
            more = ", ".join(f"{number:,} {word}" for word, number in details[row].items())
            lines.append(
                f"{title:58s} {f'{total.count:,} {total.unit}':>22s} {total.violations:>11,} "
                f"{f'{total.caught} of {total.controls}':>16s}   {more}".rstrip()
            )
    return lines
