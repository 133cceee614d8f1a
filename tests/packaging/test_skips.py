"""Skips of tests: one whose reason is not listed fails, in each of the ways that pytest knows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.skips import HINT, is_listed
from support.tree import TESTS

WAYS = {
    "mark": '@pytest.mark.skip(reason="{reason}")\ndef test(): pass',
    "condition": '@pytest.mark.skipif(True, reason="{reason}")\ndef test(): pass',
    "call": 'def test(): pytest.skip("{reason}")',
    "fixture": '@pytest.fixture\ndef data(): pytest.skip("{reason}")\n\ndef test(data): pass',
    "module": 'pytest.skip("{reason}", allow_module_level=True)',
    "absent": 'there = pytest.importorskip("no_such_module", reason="{reason}")',
}
EMPTY = '@pytest.mark.parametrize("n", [])\ndef test(n): pass'
EXPECTED = '@pytest.mark.xfail(reason="a known fault")\ndef test(): assert False'


def outcomes(folder: Path, sources: dict[str, str], *options: str) -> tuple[int, dict[str, str]]:
    """Run tests that skip themselves: the exit status, and the outcome of each with its reason."""
    for name, source in sources.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n\n{source}\n", encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
            "COLUMNS": "300",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    lines = re.findall(
        r"^(SKIPPED|FAILED|ERROR|XFAIL)(?: \[1\])? test_(\w+)\.py\S*(?: - | |)(.*)$",
        done.stdout,
        re.MULTILINE,
    )
    return done.returncode, {name: f"{outcome} {reason}".strip() for outcome, name, reason in lines}


CHECKED = ("-p", "support.skips")


@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["one process", "several"])
def test_a_skip_without_a_listed_reason_fails(tmp_path: Path, processes: tuple[str, ...]) -> None:
    sources = {name: source.format(reason="needs transformers") for name, source in WAYS.items()}
    sources["empty"] = EMPTY
    options = (*CHECKED, "--continue-on-collection-errors", *processes)
    status, found = outcomes(tmp_path, sources, *options)
    assert status != 0 and found.keys() == sources.keys()
    for name in WAYS:
        assert f" {HINT}: needs transformers (test_{name}.py" in found[name]
    assert HINT in found["empty"]


def test_a_skip_with_a_listed_reason_is_printed_with_it(tmp_path: Path) -> None:
    sources = {name: source.format(reason="needs an accelerator") for name, source in WAYS.items()}
    status, found = outcomes(tmp_path, {**sources, "expected": EXPECTED}, *CHECKED)
    assert status == 0
    assert found.pop("expected") == "XFAIL a known fault"  # which is no skip
    assert set(found) == set(WAYS) and set(found.values()) == {"SKIPPED needs an accelerator"}


def test_without_the_check_it_would_pass(tmp_path: Path) -> None:
    """Negative control."""
    status, found = outcomes(tmp_path, {"call": WAYS["call"].format(reason="needs transformers")})
    assert status == 0 and found == {"call": "SKIPPED needs transformers"}


@pytest.mark.parametrize(
    ("reason", "listed"),
    [
        ("needs MNIST: /data/mnist is no folder", True),
        ("page-locked memory needs a GPU", True),
        ("needs accelerate", False),
        ("needs lightning: not a dependency", False),
        ("", False),
    ],
)
def test_what_pip_installs_is_no_reason(reason: str, listed: bool) -> None:
    assert is_listed(reason) is listed
