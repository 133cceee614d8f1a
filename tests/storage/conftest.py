"""A store with all kinds of parts, to be damaged."""

import shutil
from pathlib import Path

import pytest
from faults.damage import Case
from support.stores import Teacher


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A store with all kinds of parts, which the tests copy."""
    case = Case(tmp_path_factory.mktemp("whole") / "store.zarr", teachers={"wide": Teacher(views=2)})
    case.write()
    return case


@pytest.fixture
def case(written: Case, tmp_path: Path) -> Case:
    """A copy of it."""
    shutil.copytree(written.path, tmp_path / "store.zarr")
    copy = Case(tmp_path / "store.zarr", teachers=written.teachers)
    _ = copy.whole
    return copy
