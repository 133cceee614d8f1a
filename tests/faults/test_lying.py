"""A server that lies about lengths takes no memory and no time from a reader."""

from pathlib import Path

import pytest
from support.children import apart

from faults.lying import KINDS, MOST_SECONDS, PATIENCE_S, Liar, harm_of, make
from faults.tally import Tally


def tried(folder: Path, kind: str, guard: str = "", most_seconds: float = MOST_SECONDS) -> list[str]:
    """Open a store of a lying server, and return the harm."""
    protocol, lie = KINDS[kind]
    liar = Liar(folder, lie)
    try:
        url = liar.url + ("/bucket" if protocol == "s3" else "")
        found = apart("faults.lying:opened", url=url, guard=guard, seconds=120)
        return [f"{kind}: {line}" for line in harm_of(found, liar, most_seconds)]
    except AssertionError as error:  # the process was ended
        return [f"{kind}: {error}"]
    finally:
        liar.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "store.zarr"
    make(folder)
    return folder


def test_lying_lengths_do_no_harm(served: Path, tally: Tally) -> None:
    wrong = [line for kind in KINDS for line in tried(served, kind)]
    tally.reached("lengths", len(KINDS), "lies", wrong)


@pytest.mark.parametrize(
    ("guard", "kind"),
    [
        ("bytes of a range", "a range of 2**40 bytes"),
        ("process of listings", "a listing of 2**40 bytes"),
    ],
    ids=["bytes", "listings"],
)
def test_a_guard_that_is_taken_out_is_missed(served: Path, tally: Tally, guard: str, kind: str) -> None:
    tally.control("lengths", guard, bool(tried(served, kind, guard)))


def test_a_limit_of_time_that_is_taken_out_is_missed(served: Path, tally: Tally) -> None:
    """The limit of seconds is close here, and the answer with the guard keeps to it as well."""
    kind, guard, most_seconds = "a byte at a time", "time of an answer", 2 * PATIENCE_S
    assert tried(served, kind, most_seconds=most_seconds) == []
    tally.control("lengths", guard, bool(tried(served, kind, guard, most_seconds)))
