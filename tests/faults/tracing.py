"""The order in which a real writer calls the operating system, by strace.

`trace` runs a writer under strace; `parse` makes events of its output; `inversions` is a pure function that lists the
events that came too early:

    write < fsync of the file < link < fsync of the directory < link of the record < its fsync < acknowledgement

An event has a beginning and an end (threads and processes overlap): A is before B where A ends before B begins.
"""

import os
import re
import stat
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from support.children import environment

from .points import kind_of_name
from .writers import Plan, work

CALLS: Final = (
    "openat,open,creat,write,writev,pwrite64,pwritev,fsync,fdatasync,link,linkat,rename,renameat,renameat2,"
    "mkdir,mkdirat,truncate,ftruncate"
)
NEVER: Final = 1 << 60
SMALL: Final = Plan(rows=64, block_rows=8, views=2)
"""Sixteen blocks."""
TRANSFORM: Final = replace(SMALL, views=1, encoding={"transform": {"max_kl": 1e-2}})
"""Eight blocks, which rest on a basis."""
LARGE: Final = Plan(rows=4 * 1024, classes=2048, block_rows=1024, views=1)
"""Four blocks of 4 MiB, which a writer may write with threads of its own."""
PLANS: Final = {"small": SMALL, "transform": TRANSFORM, "large": LARGE}
"""What is traced, by name."""


@dataclass(frozen=True)
class Event:
    """One call that succeeded."""

    call: str
    """"open", "write", "fsync", "link", "mkdir" or "acknowledge"."""
    path: str
    """What was opened, written, synced or made; the new name of a link; "view-block" of an acknowledgement."""
    begin: int
    """Number of the line on which it began."""
    end: int
    """Number of the line on which it ended."""
    source: str = ""
    """The old name of a link."""


def main(path: str, size: str, mutant: str = "") -> None:
    """The process that is traced: one writer, which says on stdout what it acknowledges."""
    fsync, write = os.fsync, os.write

    def skipping(kind: int) -> None:
        def partly(handle: int) -> None:
            if stat.S_IFMT(os.fstat(handle).st_mode) != kind:
                fsync(handle)

        os.fsync = partly

    if mutant == "no fsync of files":
        skipping(stat.S_IFREG)
    if mutant == "no fsync of directories":
        skipping(stat.S_IFDIR)
    plan = PLANS[size]

    def acknowledged(view: int, block: int) -> None:
        write(1, f"{view}-{block}\n".encode())

    work(Path(path), plan, acknowledged=acknowledged, early=mutant == "acknowledged early")


def trace(store: Path, output: Path, size: str = "small", mutant: str = "") -> list[Event]:
    """The events of a writer of `store`; strace's own output stays in a file."""
    code = f"from faults.tracing import main; main({str(store)!r}, {size!r}, {mutant!r})"
    command = ["strace", "-f", "-y", "-s", "300", "-e", f"trace={CALLS}", "-o", str(output)]
    done = subprocess.run(
        [*command, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(parse(output.read_text().splitlines(), str(store.parent)))


_CALL = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)")
_UNFINISHED = re.compile(r"(\d+) +(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)$")
_HANDLE = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>")
_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"')


def parse(lines: Sequence[str], root: str) -> Iterator[Event]:
    """The calls below `root` that succeeded, and the acknowledgements, from the output of `strace -f -y`.

    >>> lines = ['7 linkat(4</s/tmp>, "x", 5</s/peak>, "c.0.1", 0) = 0', '7 fsync(5</s/peak>) = 0']
    >>> [(event.call, event.path) for event in parse(lines, "/s")]
    [('link', '/s/peak/c.0.1'), ('fsync', '/s/peak')]
    """
    begun: dict[str, tuple[int, str]] = {}
    events = []
    for number, line in enumerate(lines):
        begin = number
        if unfinished := _UNFINISHED.match(line):
            begun[unfinished[1]] = (number, unfinished[0].removesuffix(" <unfinished ...>"))
            continue
        if resumed := _RESUMED.match(line):
            begin, first = begun.pop(resumed[1])
            line = first + resumed[2]
        found = _CALL.match(line)
        if found and int(found[4]) >= 0:
            event = _event(found[2], found[3], begin, number)
            if event is not None and (event.call == "acknowledge" or event.path.startswith(root)):
                events.append(event)
    return iter(sorted(events, key=lambda event: event.begin))


def _event(call: str, arguments: str, begin: int, end: int) -> Event | None:
    handles, names = _HANDLE.findall(arguments), _NAME.findall(arguments)
    if call in ("fsync", "fdatasync"):
        return Event("fsync", handles[0], begin, end)
    if "write" in call or call == "ftruncate":
        if arguments.startswith("1<"):
            return Event("acknowledge", names[0].removesuffix("\\n"), begin, end)
        return Event("write", handles[0].removesuffix(" (deleted)"), begin, end)
    if call.startswith(("link", "rename")):
        source, target = names
        bases = handles if len(handles) == 2 else ["", ""]
        return Event(
            "link", os.path.join(bases[1], target), begin, end, source=os.path.join(bases[0], source)
        )
    path = os.path.join(handles[0] if handles else "", names[0])
    if call.startswith("mkdir"):
        return Event("mkdir", path, begin, end)
    if call == "truncate" or re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", arguments) or call == "creat":
        return Event("open", path, begin, end)
    return None


def is_staged(path: str) -> bool:
    """Whether a path is one that no reader looks at."""
    return "/__logitstore__/tmp" in path or path.endswith("/__logitstore__/lock")


def inversions(events: Iterable[Event]) -> list[str]:
    """What came before something that it rests on, or never; empty for a writer that keeps the order."""
    by_call: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_call[event.call].append(event)
    synced: dict[str, list[Event]] = defaultdict(list)
    for event in by_call["fsync"]:
        synced[event.path].append(event)
    # The start-up probe tries names among what is staged, which nobody relies on.
    links = {link.path: link for link in by_call["link"] if not is_staged(link.path)}

    def durable(path: str, since: int) -> int:
        """When the name was safe: the end of the first fsync of its directory that began after it was made."""
        found = synced[str(PurePosixPath(path).parent)]
        return min((event.end for event in found if event.begin > since), default=NEVER)

    wrong = [f"{event.path} is written in place" for event in by_call["open"] if not is_staged(event.path)]
    for link in links.values():
        wrong += _staging_inversions(link, by_call["write"], synced[link.source])
    names = {path: durable(path, link.end) for path, link in links.items()}
    folders = {
        event.path: durable(event.path, event.end) for event in by_call["mkdir"] if not is_staged(event.path)
    }
    for path, link in links.items():
        for other in _rests_on(path, links):
            if names[other] >= link.begin:
                wrong.append(f"{path} has its name before that of {other} is durable")
    records = {
        path.rpartition("/")[2]: path for path in links if "/teachers/" in path and "/commits/" in path
    }
    for acknowledged in by_call["acknowledge"]:
        record = records.get(f"{acknowledged.path}.json")
        if record is None or names[record] >= acknowledged.begin:
            wrong.append(f"block {acknowledged.path} is acknowledged before its record is durable")
            continue
        for path in (record, *_rests_on(record, links)):
            for folder in map(str, PurePosixPath(path).parents):
                if folders.get(folder, -1) >= acknowledged.begin:
                    wrong.append(f"block {acknowledged.path} is acknowledged before {folder} is durable")
    return sorted(set(wrong))


def _staging_inversions(link: Event, writes: Iterable[Event], syncs: Iterable[Event]) -> Iterator[str]:
    """What is wrong with the file that a link names: every byte must be durable before it has that name."""
    writes = [event for event in writes if event.path == link.source]
    last = max((event.end for event in writes), default=NEVER)
    if not any(last < event.begin and event.end < link.begin for event in syncs):
        yield f"{link.path} has its name before its bytes are durable"


def _rests_on(path: str, names: Iterable[str]) -> list[str]:
    """Names that must be durable before `path` is there."""
    kind = kind_of_name(path)
    part, _, key = path.partition("/__logitstore__/")
    if kind == "record":
        view, block = PurePosixPath(key).stem.split("-")
        shards = [n for n in names if n.startswith(f"{part}/") and _is_shard(n, view, block)]
        begun = [n for n in names if n.startswith(f"{part}/") and kind_of_name(n) in ("metadata", "basis")]
        begun = [n for n in begun if "/samples/" not in n or "/c." not in n]  # their shards have such names
        return [*shards, *begun]
    if kind == "seal.json":
        return [
            name
            for name in names
            if name.startswith(f"{part}/")
            and name != path
            and kind_of_name(name) in ("record", "seal.bin", "metadata", "basis")
        ]
    if kind == "log" and not path.endswith("/0.json"):
        sealed = [name for name in names if name.endswith("/seal.json")]
        number = int(PurePosixPath(path).stem)
        return sealed[number - 1 : number]
    return []


def _is_shard(name: str, view: str, block: str) -> bool:
    return bool(re.search(rf"/c\.({view}\.{block}(\.0)*)$", name)) or (
        "/samples/" in name and view == "0" and bool(re.search(rf"/c\.{block}(\.0)*$", name))
    )


def without(events: Iterable[Event], dropped: Event) -> list[Event]:
    """The trace of a writer that leaves out one call."""
    return [event for event in events if event != dropped]


def moved(events: Iterable[Event], event: Event, before: Event) -> list[Event]:
    """The trace of a writer that makes one call before another instead of after it."""
    rest = without(events, event)
    early = replace(event, begin=before.begin, end=before.begin)
    shifted = [
        replace(other, begin=other.begin + 1, end=other.end + 1) if other.begin >= before.begin else other
        for other in rest
    ]
    return sorted([early, *shifted], key=lambda e: e.begin)
