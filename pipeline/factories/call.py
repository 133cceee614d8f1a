"""Factories: the "package.module:function" strings of an experiment, and the objects that they make.

A factory runs code. Its name comes from the command line or a local TOML file, never from a store: factory strings in a store
are only printed and compared.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from ...storage.errors import FactoryError, LogitStoreError
from ...storage.stream.items import describe
from ..augment import Augmentation, PairAugmentation
from ..augment.rows import SEEDED
from ..augment.transforms import library_of
from ..augment.versions import stated_version
from ..datasets.arrays import TransferSet
from .local_code import local_source, noted_import, watched_path

if TYPE_CHECKING:
    import torch


Factory = Callable[..., object]
"""The function or class of a factory string."""
_FACTORY = re.compile(
    r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<function>(?!__)[A-Za-z_]\w*)", re.ASCII
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""A code that terminals read as colour or bold, which torch puts into texts."""
_LONGEST = 300
"""Characters of the longest factory string."""


def _refuse(factory: str, expected: str, found: str, remedy: str) -> FactoryError:
    return FactoryError(f"factory {factory!r}", expected=expected, found=found, remedy=remedy)


def suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return the remedy for a misspelt name: the nearest known name, or without one `otherwise`, by default all names.

    >>> suggest("hiden", ["hidden", "dropout"])
    "did you mean 'hidden'?"
    >>> suggest("xyz", ["hidden", "dropout"])
    'use one of dropout, hidden'
    >>> suggest("xyz", [])
    'remove it'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return otherwise or (f"use one of {', '.join(names)}" if names else "remove it")


def resolve(factory: str, *, base: Path | None = None) -> Factory:
    """Import the function of a factory string, "package.module:function".

    base: folder of further modules, that of the experiment file. It is appended to the *end* of `sys.path`, so that its files
    never hide an installed module.
    Raises FactoryError for a wrong form, a missing module or function, and a failing import.

    >>> resolve("logitstore.pipeline.augment:shift").__name__
    'shift'
    """
    match = _FACTORY.fullmatch(factory) if len(factory) <= _LONGEST else None
    if match is None:
        shown, remedy = factory[:_LONGEST], "name the module and the function with one colon between them"
        raise _refuse(shown, '"package.module:function"', repr(shown), remedy)
    if base is not None and str(base.resolve()) not in sys.path:
        sys.path.append(str(base.resolve()))
        importlib.invalidate_caches()
    name, function = match["module"], match["function"]
    with noted_import(factory, base=base):
        module = _import(factory, name)
    value = getattr(module, function, None)
    if not callable(value):
        found = f"no {function!r}" if value is None else f"{function!r}, {_described(value)}"
        # dir, not vars: names that a package imports on first use are suggested as well
        known = [n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n, None))]
        raise _refuse(factory, f"a function {function!r} in module {name}", found, suggest(function, known))
    return value  # type: ignore[no-any-return]


def build(
    factory: str,
    args: Mapping[str, object],
    *,
    offered: Mapping[str, object] | None = None,
    base: Path | None = None,
) -> object:
    """Call a factory with the arguments of an experiment file, and return its result.

    args: keyword arguments as TOML has them. Values of annotated parameters are converted (list to tuple, int to float, str
        to Path).
    offered: further keyword arguments, passed if the signature has them and `args` does not.
    base: folder of relative `Path` arguments, and of the factory's module.
    Raises FactoryError for an unknown, missing or unfit argument, and for any exception of the factory except logitstore's
    own, which pass.
    """
    function = resolve(factory, base=base)
    signature, hints = _signature_of(function)
    arguments = dict(args)
    if signature is not None:
        arguments |= {
            name: value
            for name, value in (offered or {}).items()
            if name in signature.parameters and name not in args
        }
        _check_names(factory, signature, arguments)
    arguments = {
        name: _fit(factory, name, value, hints[name], base) if name in hints and name in args else value
        for name, value in arguments.items()
    }
    try:
        with watched_path():
            return function(**arguments)
    except LogitStoreError:
        raise
    except Exception as error:
        expected = f"a result when called with ({_shown(arguments)})"
        remedy = _path_hint(arguments, base) or "correct the factory or its args"
        raise _refuse(factory, expected, describe_exception(error), remedy) from error


def argument_paths(factory: str, args: Mapping[str, object], *, base: Path) -> list[Path]:
    """Return the paths that a factory is called with: its arguments, and defaults that lie beside local code.

    Raises FactoryError as `resolve`. An argument that does not fit is left to `build`.
    """
    function = resolve(factory, base=base)
    signature, hints = _signature_of(function)
    found: list[Path] = []
    for name in args.keys() & hints.keys():
        with contextlib.suppress(FactoryError):
            found += _inner_paths(_fit(factory, name, args[name], hints[name], base))
    parameters = {} if signature is None else signature.parameters
    defaults = [one.default for name, one in parameters.items() if name not in args]
    if given := [path for value in defaults for path in _inner_paths(value)]:
        folders = [Path(file).parent for file in _files_of(function)] + [base, Path.cwd()]
        local = bool(local_source([factory], base=base))
        found += [p for p in given if local and any(_is_below(p, folder) for folder in folders)]
    return found


def _files_of(function: Factory) -> list[str]:
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    return [] if file is None else [file]


def _is_below(path: Path, folder: Path) -> bool:
    path, folder = path.resolve(), folder.resolve()
    return path != folder and path.is_relative_to(folder)


def _inner_paths(value: object) -> Iterator[Path]:
    """Yield the paths in a value: in lists, tables, and the fields of an object that pydantic or dataclasses made."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _inner_paths(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _inner_paths(item)
    elif dataclasses.is_dataclass(value) or isinstance(value, BaseModel):
        yield from _inner_paths(vars(value))


def source_digest(factory: str, *, base: Path | None = None) -> str:
    """Digest the source file of the module that *defines* a factory, "sha256:…", or return its stated version.

    The result is part of an augmentation's identity: a re-export keeps the digest, an edit of the file changes it. A factory
    may state a version instead (`augment.source_version`).
    Raises FactoryError as `resolve` does, and for a function without Python source.

    >>> source_digest("logitstore.pipeline.augment:shift")[:7]
    'sha256:'
    """
    function = resolve(factory, base=base)
    definition: Any = inspect.unwrap(function, stop=lambda wrapper: stated_version(wrapper) is not None)
    if (version := stated_version(definition)) is not None:
        return version
    # An object that is no function has the module of its class, which may be another library's.
    is_defined = inspect.isroutine(definition) or inspect.isclass(definition)
    module = definition.__module__ if is_defined else factory.partition(":")[0]
    try:
        source = inspect.getsourcefile(sys.modules[module])
        if source is None:
            raise TypeError("no source file")
        content = Path(source).read_bytes()
    except (AttributeError, KeyError, TypeError, OSError) as error:
        found = f"{_described(definition)} without source ({describe_exception(error)})"
        remedy = "wrap it in a function of your own module"
        raise _refuse(factory, "a function defined in a Python source file", found, remedy) from error
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def expect_dataset(value: object, factory: str) -> TransferSet:
    """Return `value`, a map-style data set whose first example has an array or a tensor as its input.

    Raises FactoryError for a value without `len` or `[i]`, an empty one, and examples other than `input` or
    `(input, label)`.
    """

    def refused(problem: str = "", *, hint: bool = False) -> FactoryError:
        expected = "a map-style data set: len, and [i] -> (input, label) or input, an array or a tensor"
        found, remedy = f"{_described(value)}{problem}", "return such a data set from the factory"
        if hint:
            remedy = (
                "return logitstore.pipeline.datasets.pil_images(dataset, resize=…, crop=…) from the factory"
            )
        return _refuse(factory, expected, found, remedy)

    if inspect.isclass(value) or not isinstance(value, TransferSet):
        raise refused()
    try:
        if not len(value):
            raise refused(" of no examples")
        item = value[0]
    except LogitStoreError:
        raise
    except Exception as error:
        raise refused(f" whose first example fails ({describe_exception(error)})") from error
    example = item[0] if isinstance(item, (tuple, list)) and item else item
    if not (hasattr(example, "shape") and hasattr(example, "dtype")):
        shown = describe(example) if isinstance(example, Mapping) else _described(example)
        values = example.values() if isinstance(example, Mapping) else (example,)
        raise refused(f" whose first input is {shown}", hint=any(map(is_picture, values)))
    return value


def is_picture(value: object) -> bool:
    """Return whether a value is an image of Pillow, which need not be imported for it."""
    return type(value).__module__.partition(".")[0] == "PIL"


def expect_module(value: object, factory: str) -> "torch.nn.Module":
    """Return `value`, a `torch.nn.Module`. Raises FactoryError for anything else."""
    import torch

    if not isinstance(value, torch.nn.Module):
        remedy = "return the module itself from the factory"
        raise _refuse(factory, "a torch.nn.Module", _described(value), remedy)
    return value


def expect_augmentation(value: object, factory: str) -> Augmentation | PairAugmentation:
    """Return `value`, a callable of (input, generator) or a mixture of rows. Raises FactoryError for others."""
    is_class, problem = inspect.isclass(value), ""
    if isinstance(value, PairAugmentation) and not is_class:
        return value
    expected = "an augmentation: a callable (input, generator) -> input"
    library = None if is_class else library_of(value)
    if library is not None and type(value).__module__.partition(".")[0] == library:
        raise _refuse(factory, expected, f"{_described(value)} of {library}", f"use {SEEDED}")
    if callable(value) and not is_class:
        try:
            inspect.signature(value).bind(None, None)
            return value
        except TypeError as error:
            problem = f" with other parameters ({error})"
        except ValueError:
            return value  # callables of extension modules may lack a signature
    remedy = "return such a callable from the factory" if library is None else f"use {SEEDED}"
    raise _refuse(factory, expected, f"{_described(value)}{problem}", remedy)


def build_augmentation(
    factory: str, args: Mapping[str, object], *, base: Path | None
) -> Augmentation | PairAugmentation:
    """Make the augmentation of a table of an experiment file. Raises as `build` does."""
    return expect_augmentation(build(factory, args, base=base), factory)


def describe_exception(error: BaseException) -> str:
    """Put an exception's type and text on one line, without colours.

    >>> describe_exception(ValueError("two\\n\\x1b[1mlines\\x1b[0m"))
    'ValueError: two lines'
    """
    text = " ".join(_COLOUR.sub("", str(error)).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _signature_of(function: Any) -> tuple[inspect.Signature | None, dict[str, Any]]:
    """Return signature and annotations, which functions of extension modules may lack."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None, {}
    try:
        return signature, get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (AttributeError, NameError, TypeError):
        return signature, {}


def _import(factory: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        # If the named module exists but imports a missing one, the named module fails; it is not absent.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            remedy = _suggest_module(missing)
            raise _refuse(factory, f"a module {missing}", "no module of that name", remedy) from error
        remedy = "correct the module, or install its dependencies"
        raise _refuse(factory, f"module {name} to import", describe_exception(error), remedy) from error


def _suggest_module(name: str) -> str:
    parent, dot, _ = name.rpartition(".")
    search = getattr(sys.modules[parent], "__path__", []) if parent else None
    names = [f"{parent}{dot}{info.name}" for info in pkgutil.iter_modules(search)]
    return suggest(name, names, "install the package, or correct the name")


def _check_names(factory: str, signature: inspect.Signature, arguments: Mapping[str, object]) -> None:
    """Refuse arguments without a parameter, and parameters without an argument or a default."""
    parameters = signature.parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in arguments:
            if name not in named:
                expected = f"arguments among ({', '.join(named)})"
                raise _refuse(factory, expected, f"{name!r}", suggest(name, named))
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in arguments:
            found = f"arguments ({_shown(arguments)})" if arguments else "no arguments"
            raise _refuse(factory, f"an argument {name!r}", found, f"add {name!r} to args")


def _fit(factory: str, name: str, value: object, annotation: Any, base: Path | None) -> object:
    """Convert a TOML value to the parameter's annotation, or return it if pydantic does not support that type."""
    try:
        adapter: TypeAdapter[object] = TypeAdapter(annotation)
    except (PydanticUserError, TypeError):
        return value  # the factory checks it
    try:
        fitted = adapter.validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].lower()
        type_name = getattr(annotation, "__name__", None) if inspect.isclass(annotation) else None
        expected = f"argument {name!r} to be {type_name or annotation}"
        raise _refuse(factory, expected, f"{value!r} ({reason})", f"correct {name!r} in args") from error
    return _rebase(fitted, base)


def _path_hint(arguments: Mapping[str, object], base: Path | None) -> str | None:
    """Return the remedy for a text that names a file beside the experiment, and none in the working directory."""
    for name, value in arguments.items():
        if base is None or not isinstance(value, str) or not value or "\0" in value or len(value) > _LONGEST:
            continue
        if (base / value).exists() and not Path(value).exists():
            return f"annotate {name} as pathlib.Path, which is relative to the experiment file"
    return None


def _rebase(value: object, base: Path | None) -> object:
    """Return `value` with relative paths taken from `base`."""
    if base is not None and isinstance(value, Path):
        return base / value.expanduser()
    if base is not None and isinstance(value, (list, tuple)):
        return type(value)(_rebase(item, base) for item in value)
    return value


def _shown(arguments: Mapping[str, object]) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return text if len(text) <= 200 else f"{text[:199]}…"


def _described(value: object) -> str:
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
