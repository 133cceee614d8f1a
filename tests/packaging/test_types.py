"""Types: the installed wheel is typed to the last file, and shapes in annotations are enforced here."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from support.tree import ROOT, copy_tree, python_files
from support.typecheck import check_installed_wheel

pytestmark = pytest.mark.xdist_group("wheel")


@pytest.mark.timeout(600)  # reading torch's annotations for the first time
def test_the_installed_wheel_is_strictly_typed() -> None:
    assert check_installed_wheel(ROOT).problems == []


def test_a_wrong_type_and_a_file_left_out_are_found(tmp_path: Path) -> None:
    """Negative control, on the same tree of files with nothing in them."""
    tree = copy_tree(tmp_path / "tree")
    for path in python_files(tree):
        (tree / path).write_text('"""Is this checked?"""\n\n__version__ = "0"\n')
    assert check_installed_wheel(tree, cache=tmp_path / "cache").problems == []

    (tree / "storage" / "errors.py").write_text('x: int = "a"\n')
    (tree / "cli" / "extra").mkdir()
    (tree / "cli" / "extra" / "__init__.py").write_text("")
    wrong_type, left_out = check_installed_wheel(tree, cache=tmp_path / "cache").problems
    assert "logitstore/storage/errors.py:1: error: Incompatible types in assignment" in wrong_type
    files = len(python_files(tree))
    assert left_out.startswith(f"mypy checked {files - 1} files of {files}: ")


def test_shapes_are_enforced_in_tests_and_free_in_production() -> None:
    """The import hook of jaxtyping must see the link tree of the editable install; else it does nothing."""
    spec = import_module("logitstore.storage.errors").__spec__
    assert spec is not None
    assert type(spec.loader).__name__ == "_JaxtypingLoader"
    code = "import logitstore.storage.errors as module; print(type(module.__spec__.loader).__name__)"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert plain.stdout.strip() == "SourceFileLoader"
