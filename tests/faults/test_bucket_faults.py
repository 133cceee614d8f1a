"""Writers of a store in a bucket, under faults of its server and killed: nothing lost, nothing twice, the same bytes.

By `make test` a few cases with a bucket in memory; by `make test-deep` all of them, and with SeaweedFS behind the proxy.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import obstore
import pytest
from support.bucket_stores import Writers, golden
from support.buckets import AFTER, BEFORE, Bucket, Fault, serving_bucket
from support.seaweedfs import KEY, seaweedfs

from faults.bucket_killing import KEYS, killed_run
from faults.tally import Tally
from logitstore.storage.backends import conditional
from logitstore.storage.errors import StorageRefused

POSITIONS = (0, 1, 2, 5, 9, 14, 20, 27, 33, 38)
"""Numbers of the PUT at which a fault begins; one writer makes some 45."""
CASES = list(itertools.product((*BEFORE, *AFTER), POSITIONS, (1, 2, 3, 4)))
"""Kind, position, writers: 400."""
assert len(CASES) >= 320


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers wait for milliseconds."""
    monkeypatch.setattr(conditional, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(conditional, "_LONGEST_WAIT_S", 0.1)


@pytest.fixture
def memory() -> Iterator[Bucket]:
    """A bucket in memory."""
    with serving_bucket() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def real() -> Iterator[Bucket]:
    """A bucket of SeaweedFS, behind the proxy."""
    with seaweedfs((KEY, *KEYS)) as upstream, serving_bucket(upstream) as bucket:
        yield bucket


def objects_in(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    inner = bucket.store(prefix, timeout="20s").store
    keys = [one["path"] for page in obstore.list(inner) for one in page]
    return {key: bytes(obstore.get(inner, key).bytes()) for key in keys}


def run_case(bucket: Bucket, prefix: str, kind: str, position: int, writers: int, times: int) -> None:
    """Run writers into a fault; assert that every one ends, and that one whole store is there."""
    bucket.puts, bucket.faults = 0, [Fault(kind, position, times)]
    bucket.stored.clear()
    where = f"{kind} at {position}, {writers} writers"
    acknowledged: set[Any] = set()
    for attempt in range(2):
        crew = Writers([bucket.store(prefix) for _ in range(writers)])
        crew.run()
        acknowledged |= set().union(*crew.acknowledged)
        if kind != "403":
            assert crew.errors == [], where
            break
        # Credentials that have expired end the writers that use them, in one line; others go on, and so does the next.
        assert all(isinstance(error, StorageRefused) for error in crew.errors), where
        assert attempt == 0 or crew.errors == [], where
        bucket.faults = []  # the credentials were renewed
    assert objects_in(bucket, prefix) == golden(), where
    assert bucket.stored_twice() == set(), where


def times_of(kind: str, chance: random.Random) -> int:
    """How often a fault comes in succession: less than the library repeats a request, or more."""
    return 1 if kind in ("hang after", "slow") else chance.choice((1, 2, 5))


def test_some_faults_leave_one_whole_store(memory: Bucket, tally: Tally) -> None:
    golden()
    chance = random.Random(1)
    for number, kind in enumerate((*BEFORE, *AFTER)):
        prefix = f"store-{number}"
        run_case(memory, prefix, kind, chance.choice(POSITIONS), 1 + number % 3, times_of(kind, chance))
    tally.reached("buckets", len(BEFORE + AFTER), "cases")


def test_writers_that_are_killed_leave_the_store_of_one_that_was_not(memory: Bucket, tally: Tally) -> None:
    golden()
    killed, kept = killed_run(memory, "store-0", random.Random(0), incarnations=2)
    there = objects_in(memory, "store-0")
    assert killed > 0 and kept <= there.keys() and there == golden()
    tally.reached("bucket_kills", 1, "runs", kills=killed)


def test_lost_acknowledgements_are_resolved(memory: Bucket, tally: Tally) -> None:
    lost_acknowledgements(memory, 10)
    tally.reached("buckets", 10, "cases", lost_acknowledgements=10)


def lost_acknowledgements(bucket: Bucket, count: int) -> None:
    """Lose the answers of some PUTs that were stored; each of them counts as this writer's."""
    from logitstore.storage.backends.remote import folder_to_write

    folder = folder_to_write(bucket.store("lost"))
    for number in range(count):
        bucket.puts, bucket.faults = 0, [Fault(("reset after", "500 after")[number % 2], 0, 1 + number % 3)]
        assert folder.put_new(f"key-{number}", b"bytes %d" % number)
        assert folder.read(f"key-{number}") == b"bytes %d" % number


@pytest.mark.deep
@pytest.mark.parametrize("kind", (*BEFORE, *AFTER))
def test_every_fault_leaves_one_whole_store(real: Bucket, kind: str, tally: Tally) -> None:
    golden()
    chance = random.Random(2)
    for number, (_, position, writers) in enumerate(case for case in CASES if case[0] == kind):
        run_case(real, f"{kind.replace(' ', '-')}-{number}", kind, position, writers, times_of(kind, chance))
    tally.reached("buckets", number + 1, "cases")


@pytest.mark.deep
def test_a_hundred_lost_acknowledgements_are_resolved(real: Bucket, tally: Tally) -> None:
    lost_acknowledgements(real, 100)
    tally.reached("buckets", 100, "cases", lost_acknowledgements=100)


@pytest.mark.deep
@pytest.mark.parametrize("serve", ["memory", "real"])
def test_a_hundred_runs_of_killed_writers(serve: str, request: pytest.FixtureRequest, tally: Tally) -> None:
    golden()
    bucket: Bucket = request.getfixturevalue(serve)
    bucket.faults = []
    killed, chance = 0, random.Random(3)
    for number in range(100 if serve == "real" else 20):
        count, kept = killed_run(bucket, f"killed-{number}", chance)
        there = objects_in(bucket, f"killed-{number}")
        assert kept <= there.keys() and there == golden(), number
        killed += count
    assert killed > 20
    tally.reached("bucket_kills", number + 1, "runs", kills=killed)


MUTANTS: dict[str, Callable[..., Any]] = {
    "trusts the answer": lambda *_: False,
}
"""Writers without a guard: each must be found wrong."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_writer_that_trusts_the_answer_is_found_wrong(
    memory: Bucket, monkeypatch: pytest.MonkeyPatch, mutant: str, tally: Tally
) -> None:
    golden()
    monkeypatch.setattr(conditional, "_holds", MUTANTS[mutant])
    with pytest.raises(AssertionError) as caught:
        run_case(memory, "store-0", "409", 5, 1, 3)
    tally.control("buckets", mutant, bool(caught))
