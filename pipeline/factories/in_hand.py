"""Things in hand: objects that a caller of Python passes in the place of a factory's product.

A table of an experiment states how its product is made: a factory and its arguments. A thing in hand was made elsewhere, so
its table states what it is: its class or function as `factory`, and a description as `args`, which is all that its behaviour
is seen to follow from. Identities, comparisons of ranks and `inspect` then need no case of their own.

    a function     its source, defaults, closure, and the simple values among its globals
    an object      its class, the source of a local class, its attributes
    an array       dtype, shape and sha256 of its bytes

Comments, docstrings and layout are no part of a source. Installed classes and functions are known by their names.
"""

import ast
import functools
import hashlib
import inspect
import math
import re
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...storage.format.documents import canonical_json
from .local_code import is_known_by_name

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_DEEPEST: Final = 12
"""Levels of objects within objects that a description has."""
_LONGEST: Final = 200
"""Characters of a text in a description; a longer one is digested."""


@dataclass(frozen=True, eq=False)
class InHand:
    """A thing, and the table entries that state what it is."""

    thing: Any
    """The object itself."""
    factory: str
    """Name of its class or function, "package.module:name"."""
    args: Mapping[str, Any]
    """Description of it: JSON without null."""
    modules: frozenset[str] = frozenset()
    """Modules that define its code."""
    source: str = ""
    """Of an augmentation: "sha256:…" of its code."""
    weights: str = ""
    """Of a network: "sha256:…" of its weights, buffers and constants."""
    copied: Callable[[Any], Any] | None = None
    """Of a network that is run and not trained: the function that copies it."""

    def product(self) -> Any:
        """Return the thing, or a copy of it."""
        return self.thing if self.copied is None else self.copied(self.thing)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without a network: a worker process prepares inputs alone."""
        return {**vars(self), "thing": None} if self.weights else dict(vars(self))


def in_hand(thing: Any) -> InHand:
    """Describe an augmentation."""
    described = _Described()
    args = {"is": described.value(thing)}
    digest = hashlib.sha256(canonical_json(args)).hexdigest()
    return InHand(thing, name_of(thing), args, frozenset(described.modules), source=f"sha256:{digest}")


def name_of(thing: Any) -> str:
    """Return "package.module:name" of a function or class, or of the class of an object.

    >>> name_of(np.zeros(2)), name_of(lambda x: x).rpartition(":")[2]
    ('numpy:ndarray', '_lambda_')
    """
    named = thing if isinstance(thing, (type, types.FunctionType)) else type(thing)
    parts = [*str(named.__module__).split("."), named.__qualname__.rpartition(".")[2]]
    *module, name = (re.sub(r"\W", "_", part) or "_" for part in parts)
    return f"{'.'.join(module)}:{name}"


def is_local(module: str) -> bool:
    """Return whether code of a module is neither installed nor of the standard library: it may change without a version."""
    if is_known_by_name(module):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"}.intersection(Path(file).parts)


def source_of(code: Any) -> str | None:
    """Return "sha256:…" of the source of a local class or function; None for an installed one.

    Without a readable source, as of code that was typed into Python itself, bytecode is digested.
    """
    if not is_local(str(getattr(code, "__module__", ""))):
        return None
    try:
        text = _skeleton(ast.parse(textwrap.dedent(inspect.getsource(code))))
    except (OSError, TypeError, SyntaxError, ValueError, RecursionError):
        text = _bytecode(code)
    return f"sha256:{hashlib.sha256(repr(text).encode()).hexdigest()}"


def _skeleton(node: Any) -> Any:
    """Return a source as nested lists, without comments, docstrings and positions."""
    if isinstance(node, ast.AST):
        parts: list[Any] = [type(node).__name__]
        for name, value in ast.iter_fields(node):
            if name in ("ctx", "kind", "type_comment") or value in (None, []):
                continue
            if name == "body" and isinstance(value, list) and _is_docstring(value[0]):
                value = value[1:]
            parts.append([name, _skeleton(value)])
        return parts
    return [_skeleton(item) for item in node] if isinstance(node, list) else repr(node)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _bytecode(code: Any) -> Any:
    """Return the bytecode of a function, or of the functions of a class."""
    if isinstance(code, types.CodeType):
        constants = [
            _bytecode(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts
        ]
        return [code.co_code, code.co_names, constants]
    if isinstance(code, types.FunctionType):
        return _bytecode(code.__code__)
    members = sorted((name, one) for name, one in vars(code).items() if isinstance(one, types.FunctionType))
    return [[name, _bytecode(one)] for name, one in members]


def plain_text(text: str) -> str:
    """Return a text without addresses of memory, which differ in every process."""
    return _ADDRESS.sub("", text)


def digest_of_array(array: Any) -> str:
    """Return dtype, shape and sha256 of an array or tensor, in one text.

    >>> digest_of_array(np.zeros(2, np.uint8))[:20]
    'uint8 (2,) sha256:96'
    """
    plain: Any = array.detach().cpu() if hasattr(array, "detach") else np.asarray(array)
    head = f"{str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}"
    if hasattr(plain, "contiguous"):
        import torch

        plain = plain.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
    content = (
        repr(plain.tolist()).encode() if plain.dtype.hasobject else np.ascontiguousarray(plain).tobytes()
    )
    return f"{head} sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class _Described:
    """A walk over an object, which notes the modules whose code it finds."""

    modules: set[str] = field(default_factory=set)
    _open: list[int] = field(default_factory=list)

    def value(self, thing: Any) -> Any:
        """Return what a thing is, as JSON without null."""
        if isinstance(thing, (bool, int)):
            return thing
        if isinstance(thing, float):
            return thing if math.isfinite(thing) else repr(thing)
        if isinstance(thing, (str, bytes)):
            text = thing if isinstance(thing, str) else repr(thing)
            return text if len(text) <= _LONGEST else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        if thing is None:
            return "None"
        if hasattr(thing, "shape") and hasattr(thing, "dtype"):
            return digest_of_array(thing)
        if id(thing) in self._open or len(self._open) >= _DEEPEST:
            return "…"
        self._open.append(id(thing))
        try:
            return self._inner(thing)
        finally:
            self._open.pop()

    def _inner(self, thing: Any) -> Any:
        if isinstance(thing, Mapping):
            return {str(key): self.value(item) for key, item in thing.items()}
        if isinstance(thing, (list, tuple, range)):
            return [self.value(item) for item in thing]
        if isinstance(thing, AbstractSet):
            return sorted((self.value(item) for item in thing), key=repr)
        if isinstance(thing, functools.partial):
            return {"partial": [self.value(one) for one in (thing.func, thing.args, thing.keywords)]}
        if isinstance(thing, types.MethodType):
            return {"method": thing.__name__, "of": self.value(thing.__self__)}
        if isinstance(thing, type):
            return self._code(thing)
        if isinstance(thing, types.FunctionType):
            return self._function(thing)
        if isinstance(thing, types.ModuleType):
            return thing.__name__
        if isinstance(thing, Path):
            return str(thing)
        attributes = getattr(thing, "__dict__", None)
        own = {} if attributes is None else {key: self.value(item) for key, item in attributes.items()}
        return {**self._code(type(thing)), **({"attributes": own} if own else {})}

    def _code(self, code: Any) -> dict[str, Any]:
        """Return name and source of a class or function."""
        digest = source_of(code)
        self.modules.add(str(code.__module__))
        return {"name": name_of(code), **({} if digest is None else {"source": digest})}

    def _function(self, function: types.FunctionType) -> dict[str, Any]:
        described = self._code(function)
        defaults = [self.value(one) for one in (function.__defaults__ or (), function.__kwdefaults__ or {})]
        if any(defaults):
            described["defaults"] = defaults
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if cells:
            described["closure"] = {name: self._cell(cell) for name, cell in cells.items()}
        if "source" in described:
            names = [name for name in function.__code__.co_names if name in function.__globals__]
            used = {name: function.__globals__[name] for name in names}
            simple = {name: self.value(one) for name, one in used.items() if _is_simple(one)}
            described |= {"globals": simple} if simple else {}
        return described

    def _cell(self, cell: Any) -> Any:
        try:
            return self.value(cell.cell_contents)
        except ValueError:  # it is still empty
            return "None"


def _is_simple(value: Any) -> bool:
    """Return whether a global of a function is a value, or local code, from which its result may follow."""
    if isinstance(value, (types.FunctionType, type)):
        return is_local(str(value.__module__))
    if isinstance(value, (list, tuple)):
        return all(map(_is_simple, value))
    return isinstance(value, (bool, int, float, str, np.ndarray))


def described_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some attributes that are numbers, texts, or sequences of them.

    >>> described_values({"scale": 2.0, "name": "a", "layer": object(), "size": (3, 4)})
    {'scale': 2.0, 'name': 'a', 'size': [3, 4]}
    """

    def is_value(value: Any) -> bool:
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return all(map(is_value, value))
        return value is None or isinstance(value, (bool, int, float, str))

    found = _Described()
    return {key: found.value(value) for key, value in values.items() if is_value(value)}
