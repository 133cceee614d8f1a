"""Bounds of the dependencies: each has a lower one, so that pip never picks a version nobody tried."""

import pytest
from packaging.requirements import Requirement
from support.oldest import PYPROJECT, oldest, requirements
from support.tree import ROOT


def test_every_dependency_of_a_user_has_a_lower_bound() -> None:
    lines = list(requirements(PYPROJECT.read_text(encoding="utf-8")))
    assert len(lines) > 15
    assert [oldest(line) for line in lines] != []


def test_the_versions_that_the_tests_pin_are_allowed() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pinned[pin.name.lower().replace("_", "-")] = str(pin.specifier).removeprefix("==")
    for line in requirements(PYPROJECT.read_text(encoding="utf-8")):
        wanted = Requirement(line)
        assert wanted.specifier.contains(pinned[wanted.name]), line


@pytest.mark.parametrize("requirement", ["click", "click<9", "click==8.2", "click~=8.2"])
def test_a_dependency_without_a_lower_bound_is_found(requirement: str) -> None:
    with pytest.raises(ValueError, match="name>=version"):
        oldest(requirement)
