"""Ranks that differ: refused before they begin, within seconds, by all ranks with one exit code and one line."""

from pathlib import Path
from typing import Any

import pytest
from support.children import apart
from support.differing_ranks import CACHE, TRAIN

from faults.tally import Tally

pytestmark = pytest.mark.xdist_group("ranks")  # one process of the tests at a time starts others
WITHIN = 15.0
"""Seconds."""
NAMED = {
    "temperature": "student[0].temperature = 2.0, as on rank 0, found 8.0",
    "epochs": "student[0].train.epochs = 1, as on rank 0, found 3",
    "store of other labels": "students.small-seed0.samples = 'sha256:",
    "labels": "transfer_set.content = 'sha256:",
    "an input of a set without fingerprint": "transfer_set.content = 'sha256:",
    "weights": "captures.line.teacher.weights = 'sha256:",
    "source of the teacher": "captures.line.source.faulty.py = 'sha256:",
    "torch": "found '2.0.0'; start all ranks with the same files, settings and versions",
}
"""Part of the line, by difference."""


def harm_of(name: str, statuses: list[int], lines: list[str], seconds: float) -> list[str]:
    """List the faults of two ranks that differ: they do not end alike, in time, and with one line."""
    harm = []
    if statuses != [65, 65]:
        harm.append(f"{name}: ended with {statuses}")
    if seconds > WITHIN:
        harm.append(f"{name}: {seconds:.0f} s")
    if (
        len(lines) != 1
        or not lines[0].startswith("rank 1 of 2: expected ")
        or NAMED.get(name, "") not in lines[0]
    ):
        harm.append(f"{name}: said {lines}")
    return harm


@pytest.mark.parametrize(("stage", "differences"), [("train", TRAIN), ("cache", CACHE)])
def test_ranks_that_differ_do_not_begin(
    stage: str, differences: dict[str, Any], tmp_path: Path, tally: Tally
) -> None:
    report = apart("support.differing_ranks:tried", work=str(tmp_path), stage=stage, names=list(differences))
    harm = [fault for name, said in report.items() for fault in harm_of(name, *said)]
    tally.reached("ranks", len(report), "differences", harm)


@pytest.mark.parametrize(
    ("stage", "name"), [("train", "temperature"), ("cache", "labels of a set without fingerprint")]
)
def test_ranks_that_compare_nothing_are_found_out(
    stage: str, name: str, tmp_path: Path, tally: Tally
) -> None:
    """Negative control: they work on together, and end well."""
    report = apart(
        "support.differing_ranks:tried", work=str(tmp_path), stage=stage, names=[name], agrees=False
    )
    tally.control("ranks", "no comparison", report[name][0] == [0, 0] and not report[name][1])
