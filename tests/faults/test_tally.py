"""The table adds up the entries of tests, and a test fails if harm was done."""

import pytest

from faults.tally import Tally, entries, table


def test_entries_of_several_tests_are_added_up() -> None:
    properties: list[tuple[str, object]] = []
    Tally(properties).reached("kill", 20, "runs", kills=1000)
    Tally(properties).reached("kill", 30, "runs", kills=500)
    Tally(properties).control("kill", "no fsync", True)
    lines = table(entries(properties))
    assert len(lines) == 2
    assert "50 runs" in lines[1] and "1,500 kills" in lines[1] and "1 of 1" in lines[1]


def test_harm_fails_the_test_and_is_counted_all_the_same() -> None:
    properties: list[tuple[str, object]] = []
    with pytest.raises(AssertionError, match="1 of 7 states: block 3 is lost"):
        Tally(properties).reached("power", 7, "states", ["block 3 is lost"])
    with pytest.raises(AssertionError, match="no harm was seen"):
        Tally(properties).control("power", "no fsync", False)
    (power,) = table(entries(properties))[1:]
    assert "7 states" in power and "0 of 1" in power


def test_nothing_is_printed_where_no_fault_was_tried() -> None:
    assert table([]) == []
