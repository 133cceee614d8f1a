"""Small shared memory, as in a container: workers of stage one need none."""

import functools
from pathlib import Path

import pytest
from support.children import apart

from faults.small_memory import SIZES, WORKERS
from faults.tally import Tally

pytestmark = pytest.mark.xdist_group("ranks")  # one process of the tests at a time starts others


@functools.cache
def why_not() -> str:
    """Why nothing can be mounted here."""
    return str(apart("faults.mounts:may_mount"))


@pytest.fixture(autouse=True)
def may_mount() -> None:
    """Skip where no shared memory of a chosen size can be had."""
    if why_not():
        pytest.skip(why_not())


@pytest.mark.timeout(300)
def test_workers_need_no_shared_memory(tmp_path: Path, tally: Tally) -> None:
    harm = apart("faults.small_memory:trials", work=str(tmp_path), seconds=280)
    tally.reached("memory", len(SIZES) * len(WORKERS), "captures", harm)


def test_chunks_in_shared_memory_are_lost(tally: Tally) -> None:
    tally.control(
        "memory", "a DataLoader of torch", apart("faults.small_memory:by_shared_memory", seconds=60)
    )
