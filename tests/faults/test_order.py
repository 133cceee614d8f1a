"""A real writer calls the operating system in the order on which the protocol rests."""

import shutil
from pathlib import Path

import pytest

from faults.points import STAGING, kind_of_name
from faults.tally import Tally
from faults.tracing import Event, inversions, moved, parse, trace, without
from logitstore.storage.format.layouts import BASIS

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: apt install strace")
pytestmark = needs_strace


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The events of one writer of sixteen blocks."""
    folder = tmp_path_factory.mktemp("traced")
    return trace(folder / "store", folder / "strace.txt")


def links(events: list[Event], kind: str) -> list[Event]:
    return [
        event
        for event in events
        if event.call == "link" and "/teachers/" in event.path and kind_of_name(event.path) == kind
    ]


def test_every_block_is_durable_before_it_is_acknowledged(traced: list[Event], tally: Tally) -> None:
    acknowledged = [event for event in traced if event.call == "acknowledge"]
    assert len(acknowledged) == len(links(traced, "record")) == 16
    assert len(links(traced, "data")) == 3 * 16
    tally.reached("order", 16, "blocks", inversions(traced), calls=len(traced))


def test_a_basis_is_durable_before_the_first_record(tmp_path: Path, tally: Tally) -> None:
    events = trace(tmp_path / "store", tmp_path / "strace.txt", "transform")
    records, chunks = links(events, "record"), links(events, "basis")
    assert (len(records), len(chunks)) == (8, len(BASIS))
    tally.reached("order", 8, "blocks", inversions(events), calls=len(events))
    late = [moved(events, records[0], before=chunk) for chunk in chunks]
    tally.control("order", "a record before any one array of its basis", all(map(inversions, late)))
    lost = []
    for chunk in chunks:
        folder = chunk.path.rpartition("/")[0]
        lost.append([e for e in events if (e.call, e.path) != ("fsync", folder) or e.begin < chunk.end])
    tally.control("order", "the fsync of the directory of any one", all(map(inversions, lost)))


def test_blocks_that_threads_write_keep_the_order(tmp_path: Path, tally: Tally) -> None:
    events = trace(tmp_path / "store", tmp_path / "strace.txt", "large")
    acknowledged = [event for event in events if event.call == "acknowledge"]
    assert len(acknowledged) == 4
    tally.reached("order", 4, "blocks", inversions(events), calls=len(events))


@pytest.mark.parametrize("mutant", ["no fsync of files", "no fsync of directories", "acknowledged early"])
def test_a_writer_that_does_not_keep_the_order_is_seen(tmp_path: Path, tally: Tally, mutant: str) -> None:
    """Negative controls: real processes."""
    events = trace(tmp_path / "store", tmp_path / "strace.txt", mutant=mutant)
    tally.control("order", mutant, caught=bool(inversions(events)))


def test_each_call_that_is_left_out_or_comes_too_early_is_seen(traced: list[Event], tally: Tally) -> None:
    """Negative controls: the trace of a good writer, changed."""
    files = [without(traced, event) for event in traced if event.call == "fsync" and STAGING in event.path]
    assert len(files) > 80
    tally.control("order", "any one fsync of a file left out", all(map(inversions, files)))
    names = []
    for link in [*links(traced, "data"), *links(traced, "record")]:
        folder = link.path.rpartition("/")[0]
        syncs = [e for e in traced if e.call == "fsync" and e.path == folder and e.begin > link.end]
        later = [e.begin for e in traced if e.call == "acknowledge" and e.begin > link.end]
        names.append([e for e in traced if e not in syncs or e.begin > min(later, default=0)])
    tally.control("order", "the fsync of any one directory left out", all(map(inversions, names)))
    early = []
    for record in links(traced, "record"):
        shards = [link for link in links(traced, "data") if link.begin < record.begin]
        early.append(moved(traced, record, before=shards[-1]))
    tally.control("order", "any one record before its last shard", all(map(inversions, early)))
    late = []
    for link in links(traced, "data"):
        (sync,) = [e for e in traced if e.call == "fsync" and e.path == link.source]
        late.append(moved(traced, link, before=sync))
    tally.control("order", "any one link before its fsync", all(map(inversions, late)))


def test_calls_that_overlap_are_put_together() -> None:
    lines = [
        "7 fsync(5</s/a> <unfinished ...>",
        '8 write(1<pipe:[3]>, "0-1\\n", 4) = 4',
        "7 <... fsync resumed>) = 0",
        '7 openat(AT_FDCWD</>, "/s/b", O_RDONLY|O_CLOEXEC) = 6</s/b>',
        '7 mkdir("/s/c", 0777) = -1 EEXIST (File exists)',
        '7 mkdir("/s/d", 0777) = 0',
    ]
    assert list(parse(lines, "/s")) == [
        Event("fsync", "/s/a", 0, 2),
        Event("acknowledge", "0-1", 1, 1),
        Event("mkdir", "/s/d", 5, 5),
    ]
