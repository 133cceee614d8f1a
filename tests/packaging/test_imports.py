"""Imports: every module can be the first, under one name, without a warning; light ones stay light.

Each question is put to fresh processes, in which no earlier import can hide the answer.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.tree import FOLDERS, IMPORT_NAME, ROOT, module_names

HEAVY = frozenset({"dask", "distributed", "matplotlib", "numpy", "sklearn", "torch", "zarr"})
"""What `import logitstore` must not load."""


def loaded_by(code: str, cwd: Path) -> set[str]:
    """The names of all modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return set(json.loads(finished.stdout.splitlines()[-1]))


def strays(loaded: set[str]) -> set[str]:
    """Modules that came in under the name of a folder instead of under the one import name."""
    return {name for name in loaded if name.partition(".")[0] in set(FOLDERS) - {IMPORT_NAME}}


def import_each_first(names: list[str], path: list[Path], cwd: Path) -> dict[str, str]:
    """Import each module as if it were the first of its package, warnings as errors; give what went wrong.

    Other libraries stay loaded from one module to the next (torch alone takes seconds); what belongs to the
    packages of `names` is forgotten before each, so that an import which only works after another one fails.
    """
    code = (
        "import importlib, json, sys, traceback, warnings\n"
        "names, path = json.loads(sys.argv[1])\n"
        "sys.path[:0] = path\n"
        "tops = {name.partition('.')[0] for name in names}\n"
        "failed = {}\n"
        "for name in names:\n"
        "    for loaded in [m for m in sys.modules if m.partition('.')[0] in tops]:\n"
        "        del sys.modules[loaded]\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except BaseException:\n"
        "        failed[name] = traceback.format_exc()\n"
        "print(json.dumps(failed))\n"
    )
    arguments = json.dumps([names, [str(folder) for folder in path]])
    command = [sys.executable, "-W", "error", "-c", code, arguments]
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    failed: dict[str, str] = json.loads(finished.stdout.splitlines()[-1])
    return failed


def test_each_module_can_be_the_first(tmp_path: Path) -> None:
    assert import_each_first(module_names(), path=[], cwd=tmp_path) == {}


def test_a_module_that_needs_another_first_is_found(tmp_path: Path) -> None:
    """Negative control: a cycle that works from one end only, and a module that warns."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from .b import two\none = 1\n")
    (package / "b.py").write_text("two = 2\nfrom .a import one\n")
    (package / "c.py").write_text("import warnings\nwarnings.warn('old')\n")
    failed = import_each_first(["package.b", "package.a", "package.c"], path=[tmp_path], cwd=tmp_path)
    assert set(failed) == {"package.a", "package.c"}
    assert "partially initialized module" in failed["package.a"]


def test_everything_comes_in_under_one_name(tmp_path: Path) -> None:
    code = f"import importlib\nfor name in {module_names()!r}: importlib.import_module(name)"
    loaded = loaded_by(code, cwd=tmp_path)
    assert set(module_names()) <= loaded
    assert strays(loaded) == set()
    assert strays(set(sys.modules)) == set()


def test_a_folder_imported_by_its_own_name_is_found(tmp_path: Path) -> None:
    """Negative control: the same module under a second name, with classes that are not the first's."""
    loaded = loaded_by(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import storage.errors", cwd=tmp_path)
    assert strays(loaded) == {"storage", "storage.errors"}


def test_it_is_found_from_the_root_of_a_checkout(tmp_path: Path) -> None:
    """There the folder logitstore/ hides the installed package, and holds none of its sub-packages."""
    assert "logitstore.storage.errors" in loaded_by("import logitstore.storage.errors", cwd=ROOT)


def test_importing_the_package_loads_no_library(tmp_path: Path) -> None:
    assert loaded_by("import logitstore", cwd=tmp_path) & HEAVY == set()
    assert "numpy" in loaded_by("import logitstore, numpy", cwd=tmp_path) & HEAVY  # negative control


def test_naming_a_call_loads_no_library(tmp_path: Path) -> None:
    """Completion in a notebook looks every name up; only a call needs torch."""
    assert loaded_by("import logitstore; logitstore.cache, logitstore.distill", cwd=tmp_path) & HEAVY <= {
        "numpy"
    }


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_no_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom logitstore.cli.main import main\n"
        f"sys.argv = ['logitstore', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code, left.code\n"
    )
    assert "torch" not in loaded_by(code, cwd=tmp_path)
