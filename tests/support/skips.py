"""Reasons for which a test may be skipped. Any other skip fails.

A test that is skipped everywhere never runs, and nobody notices. So a skip needs a reason of this list: something that
pip cannot install. What only a package lacks belongs to tests/integrations, whose environment has it. pytest prints each
skip with its reason (`-ra`).
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import pytest

REASONS: Final = {
    "no GPU": r"needs an accelerator|.*needs a GPU",
    "no real data": r"needs real data: .*|needs MNIST: .*|needs Omniglot: .*|needs .*/shared/data/.*",
    "no right to mount": r"needs the right to mount .*|needs root to mount .*|cannot mount a small disk .*",
    "another system": r"needs /dev/shm|needs /proc .*|needs strace: .*|needs ssh-keygen: .*",
}
"""Patterns of reasons, by what is missing. They match a reason as a whole."""
HINT: Final = "skipped for a reason that is not in tests/support/skips.py"


def is_listed(reason: str) -> bool:
    """Return whether a test may be skipped for a reason.

    >>> is_listed("needs a GPU"), is_listed("needs transformers"), is_listed("needs GPUs and transformers")
    (True, False, False)
    """
    return any(re.fullmatch(pattern, reason, re.DOTALL) for pattern in REASONS.values())


def refuse_unlisted(report: Any) -> None:
    """Turn the report of a skip into a failure, unless its reason is listed. An expected failure is no skip."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else (str(report.longrepr),)
    reason = str(reason).removeprefix("Skipped: ")
    if not is_listed(reason):
        report.outcome, report.longrepr = "failed", f"{HINT}: {reason} ({report.nodeid})"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Check the skip of a test."""
    report = yield
    refuse_unlisted(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Check the skip of a whole module."""
    report = yield
    refuse_unlisted(report)
    return report
