"""The source of a class or function that runs in this process, as its identity.

A file may have been edited since it was imported. Its text would then state code that does not run. So the text is compiled, and
counts only if it gives the bytecode that runs. Otherwise, and where there is no text (as of a lambda, or of code that was typed
into Python itself), the bytecode is the identity. It differs between versions of Python.

Comments, docstrings, layout and line numbers are no part of a source.
"""

import ast
import functools
import hashlib
import inspect
import linecache
import sys
import types
from collections.abc import Iterator
from typing import Any

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def source_digest_of(code: Any) -> str:
    """Return "sha256:…" of the source of a class or function; of its bytecode if there is no text that it came from.

    >>> source_digest_of(source_digest_of)[:7]
    'sha256:'
    """
    functions = functions_of(code)
    node = _definition(code, functions)
    if node is not None:
        text = repr(skeleton(node))
    else:
        text = repr([[function.__qualname__, _bytecode(function.__code__)] for function in functions])
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def functions_of(code: Any) -> list[types.FunctionType]:
    """Return a function itself, or the functions that a class defines, by name; those within decorators of Python too."""
    return [code] if isinstance(code, types.FunctionType) else list(_methods(code))


def globals_of(code: Any) -> dict[str, Any]:
    """Return the globals that a function, or the functions of a class, may use, by name."""
    found: dict[str, Any] = {}
    for function in functions_of(code):
        inner = [function.__code__, *_codes(function.__code__)]
        names = {name for one in inner for name in one.co_names if name in function.__globals__}
        found |= {name: function.__globals__[name] for name in sorted(names) if not name.startswith("__")}
    return found


def _methods(kind: type) -> Iterator[types.FunctionType]:
    for _, member in sorted(vars(kind).items()):
        parts = [member.fget, member.fset] if isinstance(member, property) else [member]
        for part in parts:
            function = inspect.unwrap(getattr(part, "__func__", part)) if part is not None else None
            if isinstance(function, types.FunctionType):
                yield function


def _definition(code: Any, functions: list[types.FunctionType]) -> _Definition | None:
    """Return the definition of a class or function in its text; None if it is not there, or other code runs."""
    own = [one for one in functions if one.__code__.co_qualname.startswith(code.__qualname__)]
    file = own[0].__code__.co_filename if own else getattr(sys.modules.get(code.__module__), "__file__", None)
    if file is None:
        return None
    linecache.checkcache(file)
    try:
        nodes, codes = _read("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError, RecursionError):
        return None
    runs = all(codes.get(one.__code__.co_qualname) == _bytecode(one.__code__) for one in own)
    return nodes.get(code.__qualname__) if runs else None


@functools.lru_cache(maxsize=64)
def _read(text: str) -> tuple[dict[str, _Definition], dict[str, Any]]:
    """Return the definitions of a text, and the bytecode of its functions, by qualified name.

    A name that is defined twice is left out.
    """
    nodes, twice = dict[str, _Definition](), set[str]()
    for name, node in _definitions(ast.parse(text), ""):
        twice |= {name} if name in nodes else set()
        nodes[name] = node
    codes = {
        code.co_qualname: _bytecode(code) for code in _codes(compile(text, "", "exec", dont_inherit=True))
    }
    for name in twice:
        del nodes[name]
    return nodes, codes


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            name = prefix + child.name
            yield name, child
            yield from _definitions(
                child, f"{name}." if isinstance(child, ast.ClassDef) else f"{name}.<locals>."
            )
        else:
            yield from _definitions(child, prefix)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _bytecode(code: types.CodeType) -> list[Any]:
    """Return instructions, names and constants of a code, without its place in a file."""
    constants = [
        _bytecode(one) if isinstance(one, types.CodeType) else _constant(one) for one in code.co_consts
    ]
    return [code.co_code, code.co_names, code.co_varnames, constants]


def _constant(value: Any) -> str:
    # The order of a set follows from the hashes of its texts, which differ in every process.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def skeleton(node: Any) -> Any:
    """Return a definition as nested lists, without comments, docstrings and positions.

    >>> one, other = (ast.parse(text) for text in ("def f(x): return x+1  # more", "def f(x):\\n  'Add.'\\n  return x + 1"))
    >>> skeleton(one) == skeleton(other)
    True
    """
    if isinstance(node, ast.AST):
        parts: list[Any] = [type(node).__name__]
        for name, value in ast.iter_fields(node):
            if name in ("ctx", "kind", "type_comment") or value in (None, []):
                continue
            if name == "body" and isinstance(value, list) and _is_docstring(value[0]):
                value = value[1:]
            parts.append([name, skeleton(value)])
        return parts
    return [skeleton(item) for item in node] if isinstance(node, list) else repr(node)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
