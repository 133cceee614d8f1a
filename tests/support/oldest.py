"""The oldest allowed version of each dependency, as constraints for pip.

    python tests/support/oldest.py > oldest.txt
    make test CONSTRAINTS=oldest.txt PYTHON=python3.11

Tools of the tests and of the site have no bound here: they are taken as they come.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
USER_EXTRAS = ("torch", "distributed", "plots", "remote", "parquet", "xarray")
"""Extras that a user installs; `all` names them, and the others are for contributors."""


def requirements(pyproject: str) -> Iterator[str]:
    """Yield every requirement that a user may install."""
    project = tomllib.loads(pyproject)["project"]
    yield from project["dependencies"]
    for extra in USER_EXTRAS:
        yield from project["optional-dependencies"][extra]


def oldest(requirement: str) -> str:
    """Turn `name[extra]>=version` into `name==version`; raises ValueError where there is no lower bound."""
    found = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)(?:,.*)?", requirement)
    if found is None:
        raise ValueError(
            f"expected name>=version, found {requirement!r}; state the oldest version that works"
        )
    return f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    for line in requirements(PYPROJECT.read_text(encoding="utf-8")):
        print(oldest(line))
