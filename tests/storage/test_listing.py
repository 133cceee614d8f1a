"""Listings of object stores: whole, or refused, and each the answer to its own request."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.listed import SLOW_SECONDS

from logitstore.storage.backends.listing import Lister
from logitstore.storage.backends.store_errors import ListingFailed
from logitstore.storage.backends.zarr_bytes import gathered


@pytest.fixture
def lister(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lister]:
    """Make a lister whose child finds the helpers of the tests."""
    tests = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", paths)
    lister = Lister("named://", "support.listed:serve_named")
    yield lister
    lister.close()


def test_a_listing_that_was_given_up_answers_no_later_request(lister: Lister) -> None:
    """Its answer comes after all, through the same pipe: the next request would get the names of another folder."""
    assert lister.ask("names", "teachers", "here", 60.0) == ["of teachers"]
    with pytest.raises(ListingFailed, match="no end of the listing within 0 s"):
        lister.ask("names", "slow", "here", SLOW_SECONDS / 10)
    assert lister.ask("names", "clusters", "here", 60.0) == ["of clusters"]
    assert lister.ask("names", "teachers", "here", 60.0) == ["of teachers"]


def test_a_child_that_has_ended_is_started_again(lister: Lister) -> None:
    assert lister.ask("names", "teachers", "here", 60.0) == ["of teachers"]
    assert lister._child is not None
    lister._child.kill()
    lister._child.wait()
    with pytest.raises((ListingFailed, BrokenPipeError)):
        lister.ask("names", "clusters", "here", 60.0)
    assert lister.ask("names", "clusters", "here", 60.0) == ["of clusters"]


@pytest.mark.parametrize("what", ["names", "keys"])
def test_a_listing_of_more_than_the_limit_is_refused_and_never_cut(what: str) -> None:
    """A cut one would hide sealed parts, records of the log, and strays."""

    class Counted:
        def __init__(self, count: int) -> None:
            self.count = count

        async def list(self) -> AsyncIterator[str]:
            for number in range(self.count):
                yield str(number)

        async def list_dir(self, prefix: str) -> AsyncIterator[str]:
            for number in range(self.count):
                yield f"{prefix}/{number}"

    exactly, more = (Counted(count) for count in (3, 4))
    store: Any = exactly
    assert len(asyncio.run(gathered(store, what, "log", 3))) == 3
    store = more
    with pytest.raises(ListingFailed, match="more than 3 objects"):
        asyncio.run(gathered(store, what, "log", 3))
