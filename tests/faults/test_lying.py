"""A server that lies about lengths takes no memory and no time from a reader."""

from pathlib import Path

import pytest
from support.children import apart

from faults.lying import KINDS, Liar, harm_of, make
from faults.tally import Tally


def tried(folder: Path, kind: str, guard: str = "") -> list[str]:
    """Open a store of a lying server, and return the harm."""
    protocol, lie = KINDS[kind]
    liar = Liar(folder, lie)
    try:
        url = liar.url + ("/bucket" if protocol == "s3" else "")
        found = apart("faults.lying:opened", url=url, guard=guard, seconds=120)
        return [f"{kind}: {line}" for line in harm_of(found, liar)]
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
        ("time of an answer", "a byte at a time"),
    ],
    ids=["bytes", "listings", "time"],
)
def test_a_guard_that_is_taken_out_is_missed(served: Path, tally: Tally, guard: str, kind: str) -> None:
    tally.control("lengths", guard, bool(tried(served, kind, guard)))
