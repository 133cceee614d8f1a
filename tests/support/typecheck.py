"""The type check of an installed wheel, with a count of the files that were checked.

The wheel is built, installed into a folder of its own, and mypy reads it there, as it would in a user's
environment: a file that is missing from the wheel, a `py.typed` that is not found or a package that mypy
skips shows as a number of files that is too small. `make lint` runs this file; tests/packaging/test_types.py calls it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from support.tree import IMPORT_NAME, ROOT, build_wheel, copy_tree, python_files

CACHE = ROOT / ".mypy_cache"
"""Shared by all runs: reading torch's annotations takes a minute, once."""


@dataclass(frozen=True)
class Report:
    """The output of mypy for an installed wheel."""

    output: str
    """Everything that mypy printed."""
    exit_status: int
    """0 where mypy found nothing."""
    files_expected: int
    """How many modules the source tree has."""
    files_checked: int
    """How many modules mypy says that it checked; 0 where it does not say."""

    @property
    def problems(self) -> list[str]:
        """What is wrong, one line each; empty where everything was checked and found good.

        >>> Report("Success: no issues found in 4 source files", 0, 5, 4).problems
        ['mypy checked 4 files of 5: the wheel or py.typed leaves some out']
        """
        found = []
        if self.exit_status != 0:
            found.append(self.output.strip())
        if self.files_checked != self.files_expected:
            found.append(
                f"mypy checked {self.files_checked} files of {self.files_expected}: "
                "the wheel or py.typed leaves some out"
            )
        return found


def check_installed_wheel(root: Path, cache: Path = CACHE) -> Report:
    """Build `root`'s wheel, install it into a folder beside mypy's cache, and check it there.

    The folder is always the same one for one cache, because mypy's cache goes by path.
    """
    site = cache / "installed"
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "dist")
        out.mkdir()
        wheel = build_wheel(copy_tree(Path(scratch, "tree"), root), out)
        install(wheel, site)
    options = ["--config-file", str(root / "pyproject.toml"), "--strict", "--cache-dir", str(cache)]
    finished = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--package", IMPORT_NAME],
        cwd=site,
        env={**os.environ, "MYPYPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    output = finished.stdout + finished.stderr
    return Report(output, finished.returncode, len(python_files(root)), files_checked(output))


def files_checked(output: str) -> int:
    """The number of files in mypy's last line, or 0.

    >>> files_checked("Found 3 errors in 2 files (checked 40 source files)")
    40
    >>> files_checked("Success: no issues found in 1 source file")
    1
    >>> files_checked("mypy: can't read file")
    0
    """
    said = re.search(r"(?:no issues found in|\(checked) (\d+) source files?", output)
    return int(said[1]) if said else 0


def install(wheel: Path, site: Path) -> None:
    """Install a wheel, without what it depends on, into the folder `site`."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(wheel)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{wheel.name} does not install:\n{finished.stdout}\n{finished.stderr}")


def main() -> int:
    report = check_installed_wheel(ROOT)
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if not report.problems:
        print(f"mypy: {report.files_checked} files of the installed wheel, all good")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
