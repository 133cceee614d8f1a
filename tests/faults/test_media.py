"""Readers write nothing, writers report what cannot be written, and no clock matters."""

from pathlib import Path

import pytest
from support.children import apart, memory_folder

from faults.tally import Tally


@pytest.fixture(scope="module")
def may_mount() -> None:
    """Skip where nothing can be mounted."""
    if reason := apart("faults.mounts:may_mount"):
        pytest.skip(reason)


@pytest.mark.usefixtures("may_mount")
def test_media_that_cannot_be_written_are_read_without_an_attempt_to(tmp_path: Path, tally: Tally) -> None:
    found = apart("faults.media:media", folder=memory_folder(tmp_path))
    tally.reached("media", found["cases"], "media and clocks", found["violations"])
    assert found["cases"] == 12


@pytest.mark.usefixtures("may_mount")
def test_a_reader_that_keeps_an_index_beside_the_store_is_seen(tmp_path: Path, tally: Tally) -> None:
    """Negative control."""
    found = apart("faults.media:media", folder=memory_folder(tmp_path), mutant="index")
    tally.control("media", "a reader that writes", caught=len(found["violations"]) >= 6)


def test_no_clock_changes_a_byte(tmp_path: Path, tally: Tally) -> None:
    found = apart("faults.media:clocks", count=24, folder=memory_folder(tmp_path))
    tally.reached("media", 24, "media and clocks", found["violations"])


def test_a_clock_in_a_store_is_seen(tmp_path: Path, tally: Tally) -> None:
    """Negative control: a writer that notes when it wrote."""
    found = apart("faults.media:clocks", count=2, folder=memory_folder(tmp_path), mutant="notes the time")
    tally.control("media", "a clock in the spec", caught=bool(found["violations"]))
