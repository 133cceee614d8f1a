"""Folders that a source adds to `sys.path`, read from its text; nothing is run.

A module beside an experiment may begin with `sys.path.insert(0, str(Path(__file__).parent / "lib"))`. Modules that it then
imports are found in that folder alone, so the search for local code (`local_code`) needs it before anything is imported.
"""

import ast
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple


@dataclass(frozen=True)
class Additions:
    """Entries that a source puts on `sys.path`."""

    before: tuple[str, ...] = ()
    """Folders in front of the others, as of `insert`."""
    behind: tuple[str, ...] = ()
    """Folders behind the others, as of `append`."""
    unread: tuple[int, ...] = ()
    """Lines whose folder is known only when they run."""


_STRINGS: Final[Mapping[str, Callable[..., str]]] = {
    "abspath": os.path.abspath,
    "dirname": os.path.dirname,
    "expanduser": os.path.expanduser,
    "join": os.path.join,
    "normpath": os.path.normpath,
    "realpath": os.path.realpath,
}
"""Functions of `os.path` that are followed."""
_PATHS: Final[Mapping[str, Callable[..., Path]]] = {
    "absolute": Path.absolute,
    "expanduser": Path.expanduser,
    "joinpath": Path.joinpath,
    "resolve": Path.resolve,
    "with_name": Path.with_name,
}
"""Methods of `Path` that are followed."""
_MAKERS: Final = frozenset({"Path", "PosixPath", "PurePath"})


class _Names(NamedTuple):
    """Names of the search path in a source."""

    modules: frozenset[str]
    """Names of the module `sys`."""
    lists: frozenset[str]
    """Names of `sys.path` itself."""


def path_additions(tree: ast.Module, file: str) -> Additions:
    """Return the entries that a source adds to `sys.path`, at any depth of its functions. file: its place.

    >>> text = "import sys, pathlib\\nsys.path.insert(0, str(pathlib.Path(__file__).parent / 'lib'))\\nsys.path.append(f())"
    >>> path_additions(ast.parse(text), "/home/me/nets.py")
    Additions(before=('/home/me/lib',), behind=(), unread=(3,))
    """
    names, values = _names(tree), _assigned(tree)
    before, behind, unread = list[str](), list[str](), list[int]()
    for node in ast.walk(tree):
        for given, in_front in _added(node, names):
            try:
                value = _value(given, file, values)
            except (_Unread, OSError, RuntimeError, TypeError, ValueError, IndexError):
                unread.append(given.lineno)
            else:
                (before if in_front else behind).append(os.fspath(value))
    return Additions(tuple(before), tuple(behind), tuple(unread))


class _Unread(Exception):
    """An expression whose value is known only when it runs."""


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the expression of each name that the source assigns once."""
    values, twice = dict[str, ast.expr](), set[str]()
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr | ast.For):
            targets = [node.target]
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    twice |= {name.id} & values.keys()
                    simple = isinstance(node, ast.Assign | ast.AnnAssign) and target is name and node.value
                    values[name.id] = simple if isinstance(simple, ast.expr) else name
    return {name: value for name, value in values.items() if name not in twice}


def _added(node: ast.AST, names: _Names) -> Iterator[tuple[ast.expr, bool]]:
    """Yield the expressions that a node adds to `sys.path`, and whether each goes in front."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        method, given = node.func.attr, node.args
        if method == "addsitedir":
            yield given[0], False
        elif not _is_search_path(node.func.value, names):
            return
        elif method == "insert" and len(given) > 1:
            yield given[1], True
        elif method == "append":
            yield given[0], False
        elif method == "extend":
            yield from _items(given[0], names, in_front=False)
    elif isinstance(node, ast.AugAssign) and _is_search_path(node.target, names):
        yield from _items(node.value, names, in_front=False)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            whole = target.value if isinstance(target, ast.Subscript) else target
            if _is_search_path(whole, names):
                yield from _items(node.value, names, in_front=True)


def _items(node: ast.expr, names: _Names, *, in_front: bool) -> Iterator[tuple[ast.expr, bool]]:
    """Yield the entries of a list, or of lists that are added, without those that were there."""
    if isinstance(node, ast.List | ast.Tuple):
        for item in node.elts:
            inner = item.value if isinstance(item, ast.Starred) else item
            if not _is_search_path(inner, names):
                yield inner, in_front
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _items(node.left, names, in_front=in_front)
        yield from _items(node.right, names, in_front=in_front)
    elif not _is_search_path(node, names):
        yield node, in_front


def _is_search_path(node: ast.AST, names: _Names) -> bool:
    """Return whether an expression is `sys.path`, under its own name or an alias."""
    if isinstance(node, ast.Subscript):  # as sys.path[:]
        return isinstance(node.slice, ast.Slice) and _is_search_path(node.value, names)
    if isinstance(node, ast.Attribute):
        return node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id in names.modules
    return isinstance(node, ast.Name) and node.id in names.lists


def _names(tree: ast.Module) -> _Names:
    modules, lists = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name == "sys"}
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            lists |= {alias.asname or alias.name for alias in node.names if alias.name == "path"}
    return _Names(frozenset(modules), frozenset(lists))


def _value(node: ast.expr, file: str, values: Mapping[str, ast.expr], depth: int = 0) -> str | Path:
    """Return the path that an expression makes. Raises _Unread for one that must be run."""

    def inner(part: ast.expr) -> str | Path:
        return _value(part, file, values, depth + 1)

    if depth > 32:
        raise _Unread
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        if node.id == "__file__":
            return file
        if node.id in values:
            return inner(values[node.id])
    if (
        isinstance(node, ast.Attribute)
        and node.attr == "parent"
        and isinstance(path := inner(node.value), Path)
    ):
        return path.parent
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        of, number = node.value, node.slice.value
        if isinstance(of, ast.Attribute) and of.attr == "parents" and isinstance(number, int):
            return Path(inner(of.value)).parents[number]
    if isinstance(node, ast.BinOp):
        left, right = inner(node.left), inner(node.right)
        if isinstance(node.op, ast.Div) and isinstance(left, Path):
            return left / right
        if isinstance(node.op, ast.Add) and isinstance(left, str) and isinstance(right, str):
            return left + right
    if isinstance(node, ast.JoinedStr):
        return "".join(
            os.fspath(inner(part.value if isinstance(part, ast.FormattedValue) else part))
            for part in node.values
        )
    if isinstance(node, ast.Call) and not node.keywords:
        return _called(node, inner)
    raise _Unread


def _called(node: ast.Call, inner: Callable[[ast.expr], str | Path]) -> str | Path:
    """Return the path that a call makes. inner: the value of an expression in it. Raises _Unread."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in ("cwd", "getcwd") and not node.args:
        return Path.cwd() if name == "cwd" else str(Path.cwd())
    if name in ("str", "fspath") and len(node.args) == 1:
        return os.fspath(inner(node.args[0]))
    if name in _MAKERS and node.args:
        return Path(*map(inner, node.args))
    if not isinstance(function, ast.Attribute):
        name = name if name in _STRINGS else ""
    elif name in _PATHS and ast.unparse(function.value) not in ("os.path", "path", "osp"):
        if not isinstance(path := inner(function.value), Path):
            raise _Unread
        return _PATHS[name](path, *map(inner, node.args))
    elif name == "as_posix":
        return os.fspath(inner(function.value))
    if name in _STRINGS:
        return _STRINGS[name](*map(inner, node.args))
    raise _Unread
