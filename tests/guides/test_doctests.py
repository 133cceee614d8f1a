"""The examples in docstrings: every one runs, and its output is true.

doctest passes without a word over what it does not take for a part of the module (functions wrapped in some
ways, cached properties). So the docstrings that it finds are compared with those in the source.
"""

import ast
import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest
from support.tree import ROOT, module_name, python_files

MODULES = {module_name(path): ROOT / path for path in python_files(ROOT)}
HELPERS = {
    f"support.{name}": ROOT / "tests" / "support" / f"{name}.py"
    for name in ("messages", "prose", "tree", "typecheck")
}


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """The docstrings with examples that doctest finds in a module."""
    return [test for test in doctest.DocTestFinder().find(module, module.__name__) if test.examples]


def names_in_source(source: str, module: str) -> set[str]:
    """The module, classes and functions whose docstring has an example, as doctest would name them."""
    found = set()

    def visit(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> None:
        if ">>>" in (ast.get_docstring(node) or ""):
            found.add(name)
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    visit(child, f"{name}.{child.name}")

    visit(ast.parse(source), module)
    return found


def problems(module: ModuleType, source: str) -> list[str]:
    """What the examples print where they should print something else, and those that are never run."""
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    tests = examples(module)
    for test in tests:
        runner.run(test, out=said.append)
    unseen = names_in_source(source, module.__name__) - {test.name for test in tests}
    return said + [f"never run: {name}" for name in sorted(unseen)]


@pytest.mark.parametrize("name", [*MODULES, *HELPERS])
def test_examples_are_true(name: str) -> None:
    source = (MODULES | HELPERS)[name].read_text(encoding="utf-8")
    found = problems(importlib.import_module(name), source)
    assert not found, "\n".join(found)


def test_false_and_unseen_examples_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control, with a function wrapped as the import hook of jaxtyping wraps all of ours."""
    source = (
        "from functools import cached_property\n"
        "from beartype import beartype\n"
        "from jaxtyping import jaxtyped\n\n\n"
        "@jaxtyped(typechecker=beartype)\n"
        "def square(x: int) -> int:\n"
        '    """\n    >>> square(2)\n    5\n    """\n'
        "    return x * x\n\n\n"
        "class Circle:\n"
        "    @cached_property\n"
        "    def area(self) -> float:\n"
        '        """\n        >>> Circle().area\n        3.14\n        """\n'
        "        return 3.0\n"
    )
    (tmp_path / "false_examples.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = "\n".join(problems(importlib.import_module("false_examples"), source))
    assert "Expected:\n    5\nGot:\n    4" in found
    # From Python 3.13 on, doctest looks into a cached property.
    assert ("never run: false_examples.Circle.area" in found) != (
        "Expected:\n    3.14\nGot:\n    3.0" in found
    )
