"""The wheel: it holds exactly the tree, under one name and one version."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from support.tree import (
    IMPORT_NAME,
    ROOT,
    build_wheel,
    copy_tree,
    installed_path,
    product_files,
    python_files,
    wheel_files,
)

import logitstore
from logitstore.storage.extras import EXTRAS

pytestmark = pytest.mark.xdist_group("wheel")  # one process builds wheels, so that two cores suffice


def differences(root: Path, wheel: Path) -> list[str]:
    """What the wheel lacks of the tree at `root`, and what it holds beside it; one line each."""
    expected = {installed_path(path) for path in product_files(root)}
    held = set(wheel_files(wheel))
    missing = [f"missing from the wheel: {path}" for path in sorted(expected - held)]
    return missing + [f"not in the tree: {path}" for path in sorted(held - expected)]


def build(tree: Path, out: Path) -> Path:
    out.mkdir()
    return build_wheel(tree, out)


def test_the_wheel_holds_exactly_the_tree_and_claims_one_name(tmp_path: Path) -> None:
    wheel = build(copy_tree(tmp_path / "tree"), tmp_path / "dist")
    assert differences(ROOT, wheel) == []
    assert {path.parts[0] for path in wheel_files(wheel)} == {IMPORT_NAME}
    assert PurePosixPath("logitstore/py.typed") in wheel_files(wheel)


def test_a_package_that_nobody_listed_is_missed(tmp_path: Path) -> None:
    """Negative control: the guard sees a sub-package that pyproject.toml does not name, and a stray file."""
    tree = copy_tree(tmp_path / "tree")
    (tree / "storage" / "extra").mkdir()
    (tree / "storage" / "extra" / "__init__.py").write_text('"""Is this installed?"""\n')
    wheel = build(tree, tmp_path / "dist")
    assert differences(tree, wheel) == ["missing from the wheel: logitstore/storage/extra/__init__.py"]
    (tree / "cli" / "__init__.py").unlink()
    assert "not in the tree: logitstore/cli/__init__.py" in differences(tree, wheel)


def test_the_version_has_one_source() -> None:
    assert importlib.metadata.version("logitstore") == logitstore.__version__


def required(root: Path) -> tuple[set[str], dict[str, set[str]]]:
    """The names of the packages that pyproject.toml requires, and those of each extra, of which one may name others."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]

    def names(lines: list[str]) -> set[str]:
        found = set()
        for line in lines:
            inner = re.fullmatch(rf"{IMPORT_NAME}\[(.*)\]", line)
            if inner is None:
                found.add(re.split(r"[^\w-]", line)[0])
            else:
                found |= {name for extra in inner[1].split(",") for name in names(optional[extra])}
        return found

    return names(project["dependencies"]), {name: names(lines) for name, lines in optional.items()}


def test_an_extra_is_not_required_and_the_tests_have_it() -> None:
    """Those that a user may leave out are left out by a plain installation."""
    plain, extras = required(ROOT)
    assert {*EXTRAS.values()} == {*extras} - {"all", "docs", "lint", "test"}
    for extra in EXTRAS.values():
        # dask[distributed] is more of dask, which is required.
        assert extras[extra] and (extra == "distributed" or not extras[extra] & plain)
        assert extras[extra] <= extras["all"] <= extras["test"]


def test_everything_that_is_imported_is_required() -> None:
    """Each package that a module imports, wherever it does, is required or in an extra."""
    assert undeclared(ROOT) == set()


def test_an_import_that_nobody_declared_is_found(tmp_path: Path) -> None:
    """Negative control: a package that is not required any more."""
    tree = copy_tree(tmp_path / "tree")
    (tree / "pyproject.toml").write_text(
        re.sub('"matplotlib[^"]*"', '"six"', (ROOT / "pyproject.toml").read_text())
    )
    assert undeclared(tree) == {"matplotlib"}


NAMES = {"PIL": "pillow", "google_crc32c": "google-crc32c", "sklearn": "scikit-learn"}
"""Packages whose import has another name."""
OPTIONAL = {"timm", "torchvision", "transformers"}
"""Packages that are used where the user has them."""
BROUGHT = {"distributed", "pydantic_core"}
"""Packages that dask[distributed] and pydantic bring with them."""


def undeclared(root: Path) -> set[str]:
    """The packages that are imported and not declared."""
    plain, extras = required(root)
    imported = set()
    for path in python_files(root):
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    imported -= sys.stdlib_module_names | {IMPORT_NAME} | OPTIONAL | BROUGHT
    return {NAMES.get(name, name) for name in imported} - plain - extras["all"]


def test_public_names_are_found_and_listed() -> None:
    for name in logitstore.__all__:
        assert getattr(logitstore, name) is not None
        assert name in dir(logitstore)
    with pytest.raises(AttributeError, match="module 'logitstore' has no attribute 'opn_store'"):
        _ = logitstore.opn_store
