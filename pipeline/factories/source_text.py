"""The text of a source, read without running it: what it imports, and whether it takes paths."""

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from .search_path import Additions, path_additions

_IMPORTERS: Final = frozenset({"import_module", "__import__"})


@dataclass(frozen=True)
class SourceText:
    """The parts of a source that local code is found by; the defaults say nothing."""

    imports: frozenset[str] = frozenset()
    """Modules that it may import, local or not."""
    additions: Additions = field(default_factory=Additions)
    """Folders that it adds to `sys.path`."""
    takes_paths: bool = False
    """Whether a function or class in it has a parameter that is a path by its annotation or default."""


@lru_cache(maxsize=1024)
def read_text(content: bytes, package: str, file: str) -> SourceText:
    """Read a source; one that is no Python says nothing. package: that its relative imports start from. file: its place.

    >>> found = read_text(b"import a.b\\nfrom . import c\\ndef net(stats: Path | None): ...", "p", "/home/me/p/nets.py")
    >>> sorted(found.imports), found.takes_paths
    (['a.b', 'p.c'], True)
    """
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):  # its import tells the reason
        return SourceText()
    return SourceText(_imports(tree, package), path_additions(tree, file), _takes_paths(tree))


def _imports(tree: ast.Module, package: str) -> frozenset[str]:
    """Return the names that a source imports, at any depth of its functions.

    >>> sorted(_imports(ast.parse("import a.b\\nfrom . import c\\nfrom .d import e"), "p"))
    ['a.b', 'p.c', 'p.d.e']
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = _resolved("." * node.level + (node.module or ""), package)
            # A name may be a module of the package, or something inside it.
            names |= {f"{origin}.{alias.name}" for alias in node.names if origin}
        elif isinstance(node, ast.Call) and _called(node.func) in _IMPORTERS and node.args:
            given = node.args[0]
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                names.add(_resolved(given.value, package))
    return frozenset(names - {""})


def _resolved(name: str, package: str) -> str:
    """Return the full name of a relative import; empty for one that leads outside."""
    try:
        return importlib.util.resolve_name(name, package or None)
    except ImportError:
        return ""


def _called(function: ast.expr) -> str:
    """Return the last name of a called function."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _takes_paths(tree: ast.Module) -> bool:
    """Return whether a parameter, or a field of a class, is a path by its annotation or default.

    >>> [_takes_paths(ast.parse(text)) for text in ("def net(stats: Path): ...", "def net(width: int): return Path('a')")]
    [True, False]
    """
    told: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            given = (*node.posonlyargs, *node.args, *node.kwonlyargs)
            told += [*(one.annotation for one in given), *node.defaults, *node.kw_defaults]
        elif isinstance(node, ast.AnnAssign):
            told += [node.annotation, node.value]
    return any("Path" in ast.dump(one) for one in told if one is not None)
