"""Things in hand: objects that a caller of Python passes in the place of a factory's product.

A table of an experiment states how its product is made: a factory and its arguments. A thing in hand was made elsewhere, so
its table states what it is: its class or function as `factory`, and a description as `args`, which is all that its behaviour
is seen to follow from. Identities, comparisons of ranks and `inspect` then need no case of their own.

    a function     its source, defaults, closure, and the simple values among its globals
    an object      its class, with the source of its functions, and its attributes
    an array       dtype, shape and sha256 of its bytes

So are all local classes and functions that this code uses. Installed ones are known by their names.
"""

import functools
import hashlib
import math
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.format.documents import json_digest
from .attributes import is_configuration, is_module, own_attributes, settings_of
from .local_code import is_known_by_name
from .running_source import globals_of, source_digest_of

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_CODE: Final = (type, types.FunctionType, types.BuiltinFunctionType)
"""Kinds of things that have a name of their own."""
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
    found = Description()
    args = {"is": found.value(thing), **found.code()}
    return InHand(thing, name_of(thing), args, frozenset(found.modules), source=json_digest(args))


def name_of(thing: Any) -> str:
    """Return "package.module:name" of a function or class, or of the class of an object.

    >>> name_of(np.zeros(2)), name_of(lambda x: x).rpartition(":")[2]
    ('numpy:ndarray', '_lambda_')
    """
    named = thing if isinstance(thing, _CODE) else type(thing)
    parts = [*str(named.__module__ or "builtins").split("."), named.__qualname__.rpartition(".")[2]]
    *module, name = (re.sub(r"\W", "_", part) or "_" for part in parts)
    return f"{'.'.join(module)}:{name}"


def is_local(module: str) -> bool:
    """Return whether code of a module is neither installed nor of the standard library: it may change without a version."""
    if module == "__main__" or is_known_by_name(module):
        return module == "__main__"  # wherever its launcher lies
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"}.intersection(Path(file).parts)


def plain_text(text: str) -> str:
    """Return a text without addresses of memory, which differ in every process."""
    return _ADDRESS.sub("", text)


def digest_of_array(array: Any) -> str:
    """Return dtype, shape and sha256 of an array or tensor, in one text.

    >>> digest_of_array(np.zeros(2, np.uint8))[:20]
    'uint8 (2,) sha256:96'
    """
    plain = bytes_of_tensor(array.detach()) if hasattr(array, "detach") else np.asarray(array)
    head = f"{str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}"
    content = (
        repr(plain.tolist()).encode() if plain.dtype.hasobject else np.ascontiguousarray(plain).tobytes()
    )
    return f"{head} sha256:{hashlib.sha256(content).hexdigest()}"


def bytes_of_tensor(tensor: Any) -> NDArray[np.uint8]:
    """Return the bytes of a dense tensor of torch, on the CPU in the order of its indices."""
    import torch

    plain = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    found: NDArray[np.uint8] = plain.reshape(-1).view(torch.uint8).numpy()
    return found


@dataclass
class Description:
    """A walk over objects, which finds what their behaviour follows from."""

    modules: set[str] = field(default_factory=set)
    """Modules that define the code that was found."""
    source: dict[str, str] = field(default_factory=dict)
    """Digest of each local class and function, by name."""
    globals: dict[str, Any] = field(default_factory=dict)
    """Simple values among the globals of that code, by name."""
    _open: list[int] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    def code(self) -> dict[str, Any]:
        """Return what was found of code: source and globals, as far as there are any."""
        found = {"source": dict(sorted(self.source.items())), "globals": dict(sorted(self.globals.items()))}
        return {key: value for key, value in found.items() if value}

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
        if isinstance(thing, types.FunctionType):
            return self._function(thing)
        if isinstance(thing, _CODE):
            return self.add(thing)
        if isinstance(thing, types.ModuleType):
            return thing.__name__
        if isinstance(thing, Path):
            return str(thing)
        found = settings_of(thing) if is_configuration(thing) else own_attributes(thing)
        own = {key: self.value(item) for key, item in found.items()}
        described: dict[str, Any] = {"class": self.add(type(thing))}
        if own:
            described["attributes"] = own
        elif type(thing).__module__ == "torch" and not is_module(thing):
            described["is"] = plain_text(
                repr(thing)
            )  # torch.float32 differs from torch.float16 in its text alone
        return described

    def add(self, code: Any) -> str:
        """Note the source of a class or function and of all local code that it uses; return its name."""
        name = name_of(code)
        if id(code) in self._seen:
            return name
        self._seen.add(id(code))
        self.modules.add(str(code.__module__))
        if isinstance(code, types.BuiltinFunctionType) or not is_local(str(code.__module__)):
            return name
        key, number = name, 1
        while key in self.source:  # as of two lambdas
            number += 1
            key = f"{name}-{number}"
        self.source[key] = source_digest_of(code)
        for base in code.__mro__ if isinstance(code, type) else ():
            self.add(base)
        for used, value in globals_of(code).items():
            if isinstance(value, (type, types.FunctionType)):
                self.add(value)
            elif _is_simple(value):
                self.globals[f"{code.__module__}.{used}"] = self.value(value)
        return name

    def _function(self, function: types.FunctionType) -> Any:
        name, described = self.add(function), dict[str, Any]()
        defaults = [self.value(one) for one in (function.__defaults__ or (), function.__kwdefaults__ or {})]
        if any(defaults):
            described["defaults"] = defaults
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if cells:
            described["closure"] = {key: self._cell(cell) for key, cell in cells.items()}
        return {"function": name, **described} if described else name

    def _cell(self, cell: Any) -> Any:
        try:
            return self.value(cell.cell_contents)
        except ValueError:  # it is still empty
            return "None"

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Describe those of some attributes that are settings: numbers, texts, functions, classes, and tables of them.

        >>> Description().settings({"scale": 2.0, "name": "a", "layer": object(), "size": (3, 4), "kind": int})
        {'scale': 2.0, 'name': 'a', 'size': [3, 4], 'kind': 'builtins:int'}
        """
        return {key: self.value(value) for key, value in values.items() if _is_setting(value)}


def _is_simple(value: Any) -> bool:
    """Return whether a global of a function is a value from which its result may follow."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, (bool, int, float, str, np.ndarray))


def _is_setting(value: Any) -> bool:
    """Return whether an attribute is a setting, and no part or state of its object."""
    if is_configuration(value):
        return True
    if isinstance(value, Mapping):
        return all(map(_is_setting, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return all(map(_is_setting, value))
    if isinstance(value, (types.SimpleNamespace, Enum)) or (
        is_dataclass(value) and not isinstance(value, type)
    ):
        return isinstance(value, Enum) or _is_setting(getattr(value, "__dict__", {}))
    return value is None or isinstance(value, (bool, int, float, str, functools.partial, *_CODE))
