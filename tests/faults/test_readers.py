"""While others write, every row that is read is absent or exact, and stays."""

from pathlib import Path
from typing import Any

import pytest
from support.children import apart, memory_folder

from faults.tally import Tally, scale


def _watch(tmp_path: Path, duration: float, **others: Any) -> dict[str, Any]:
    found: dict[str, Any] = apart(
        "faults.reading:watch",
        seconds=duration + 120,
        duration=duration,
        folder=memory_folder(tmp_path),
        **others,
    )
    return found


@pytest.mark.timeout(1200)
def test_rows_are_absent_or_exact_and_only_ever_more(tmp_path: Path, tally: Tally) -> None:
    seconds = scale(30, 600)
    found = _watch(tmp_path, seconds, writers=4, readers=8, writer_pause=0.12, reader_pause=0.6)
    tally.reached(
        "readers",
        seconds,
        "seconds",
        found["violations"],
        row_reads=found["rows"],
        captures=found["captures"],
    )
    assert found["rows"] >= 100_000
    assert found["captures"] >= seconds // 10
    assert found["partial"] > seconds  # captures were seen half written


def test_a_writer_in_place_is_seen_as_torn_rows(tmp_path: Path, tally: Tally) -> None:
    """Negative control: the same readers."""
    found = _watch(tmp_path, 4, writers=1, readers=2, writer_pause=0.0, reader_pause=0.05, mutant="in place")
    tally.control("readers", "in place instead of staged", caught=bool(found["violations"]))
