"""Which files are the product, under which names are they installed, and what does its wheel hold?

The tests of packaging, types and layers share these. Nothing here reads the list of packages in
pyproject.toml: what is on disk is compared with what that list makes of it.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
"""The root of the checkout."""
TESTS = ROOT / "tests"
"""The folder that `support` and `faults` are imported from."""
IMPORT_NAME = "logitstore"
"""The one name that the product may claim."""
FOLDERS = ("logitstore", "storage", "pipeline", "cli")
"""Where the product's files stand, seen from the root. The first installs as the package itself."""
_NEEDED_TO_BUILD = ("pyproject.toml", "README.md", "LICENSE")


def product_files(root: Path) -> list[PurePosixPath]:
    """Every file of the product, relative to `root`, sorted: all but caches, hidden files and notes."""
    return sorted(
        PurePosixPath(path.relative_to(root).as_posix())
        for folder in FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix not in {".md", ".pyc"}
        and not path.name.startswith(".")
    )


def python_files(root: Path) -> list[PurePosixPath]:
    """The product's modules, relative to `root`, sorted."""
    return [path for path in product_files(root) if path.suffix == ".py"]


def installed_path(path: PurePosixPath) -> PurePosixPath:
    """Where a file of the product is installed.

    >>> str(installed_path(PurePosixPath("storage/format/grid.py")))
    'logitstore/storage/format/grid.py'
    """
    return path if path.parts[0] == IMPORT_NAME else IMPORT_NAME / path


def module_name(path: PurePosixPath) -> str:
    """The name under which a module is imported.

    >>> module_name(PurePosixPath("pipeline/datasets/__init__.py"))
    'logitstore.pipeline.datasets'
    """
    parts = installed_path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_names(root: Path = ROOT) -> list[str]:
    """The names of all modules of the product, packages before what they hold."""
    return sorted(module_name(path) for path in python_files(root))


def copy_tree(destination: Path, root: Path = ROOT) -> Path:
    """Copy what a wheel is built from, and nothing else, so that a build leaves no trace in the checkout."""
    for folder in FOLDERS:
        (destination / folder).mkdir(parents=True, exist_ok=True)
    for path in [*product_files(root), *map(PurePosixPath, _NEEDED_TO_BUILD)]:
        if (root / path).is_file():
            (destination / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, destination / path)
    return destination


def build_wheel(tree: Path, out: Path) -> Path:
    """Build the wheel of `tree` (a copy: the build writes into it) with the tools installed here."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)]
    finished = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"the wheel does not build:\n{finished.stdout}\n{finished.stderr}")
    (wheel,) = out.glob("*.whl")
    return wheel


def wheel_files(wheel: Path) -> list[PurePosixPath]:
    """What a wheel installs beside its metadata, sorted."""
    with zipfile.ZipFile(wheel) as archive:
        paths = map(PurePosixPath, archive.namelist())
        return sorted(path for path in paths if not path.parts[0].endswith(".dist-info"))
