"""Does the wheel hold exactly the tree, under one name and one version?"""

import importlib.metadata
from pathlib import Path, PurePosixPath

import pytest
from support.tree import IMPORT_NAME, ROOT, build_wheel, copy_tree, installed_path, product_files, wheel_files

import logitstore

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


def test_public_names_are_found_and_listed() -> None:
    for name in logitstore.__all__:
        assert getattr(logitstore, name) is not None
        assert name in dir(logitstore)
    with pytest.raises(AttributeError, match="module 'logitstore' has no attribute 'opn_store'"):
        _ = logitstore.opn_store
