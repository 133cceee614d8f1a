"""How does a "package.module:function" string of an experiment become a data set, a model or an augmentation?

1. `resolve` checks the form of the string, imports the module and takes the function out of it; it
   tells a missing module from a missing function, and both from a module that fails while it is imported.
2. `build` fits the arguments of the TOML to the function's signature: unknown and missing ones are
   refused by name, values are checked against the annotations, relative file names are taken from the
   folder of the experiment, and what the caller offers (`num_classes`, `input_shape`) is passed where
   the signature asks for it.
3. `expect_dataset`, `expect_module` and `expect_augmentation` check that what came back is what the
   factory is for.

A factory runs code. Its name comes from the command line or from a local TOML file, never from a store: what a store
says of the factories that it was made with is text, to be printed and compared.
"""

import difflib
import hashlib
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from ..storage.errors import FactoryError, LogitStoreError
from .augment import Augmentation, PairAugmentation
from .augment.versions import stated_version
from .datasets.arrays import TransferSet

if TYPE_CHECKING:
    import torch


Factory = Callable[..., object]
"""Whatever a factory string names: a function or a class."""


_FACTORY = re.compile(
    r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<function>(?!__)[A-Za-z_]\w*)", re.ASCII
)


_LONGEST = 300
"""Characters of a factory string; no module has a name that long."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Name the known names that are nearest to a misspelt one, or all of them where none is near.

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
    return f"use one of {', '.join(names)}" if names else "remove it"


def resolve(factory: str, *, base: Path | None = None) -> Factory:
    """Import what a factory string names.

    factory: "package.module:function".
    base: folder whose modules may be named too (that of the experiment file). It is appended to the
        *end* of `sys.path`, so that a file in it never hides an installed module.
    Raises FactoryError if the form is wrong, the module or the function does not exist, or the module
    fails while it is imported.

    >>> resolve("logitstore.pipeline.augment:shift").__name__
    'shift'
    """
    match = _FACTORY.fullmatch(factory) if len(factory) <= _LONGEST else None
    if match is None:
        raise FactoryError(
            f"factory {factory[:_LONGEST]!r}",
            expected='"package.module:function"',
            found=repr(factory[:_LONGEST]),
            remedy="name the module and the function with one colon between them",
        )
    if base is not None and str(base.resolve()) not in sys.path:
        sys.path.append(str(base.resolve()))
        importlib.invalidate_caches()
    name, function = match["module"], match["function"]
    module = _import(factory, name)
    found = getattr(module, function, None)
    if not callable(found):
        what = f"no {function!r}" if found is None else f"{function!r}, {_described(found)}"
        raise FactoryError(
            f"factory {factory!r}",
            expected=f"a function {function!r} in module {name}",
            found=what,
            remedy=suggest(function, _callables_of(module)),
        )
    return found  # type: ignore[no-any-return]


def build(
    factory: str,
    args: Mapping[str, object],
    *,
    offered: Mapping[str, object] | None = None,
    base: Path | None = None,
) -> object:
    """Call a factory with the arguments of an experiment file.

    factory: "package.module:function".
    args: keyword arguments as TOML gives them. Where the signature is annotated, a value is converted
        as TOML needs it (list to tuple, int to float, str to Path) and refused where it does not fit.
    offered: further keyword arguments, passed only where the signature names them and `args` does not.
    base: folder that relative `Path` arguments start from, and in which the factory's module may stand.
    Returns whatever the factory returns. Raises FactoryError for an unknown, a missing or an unfit
    argument, and for any exception that the factory raises, except logitstore's own, which pass.
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
        return function(**arguments)
    except LogitStoreError:
        raise
    except Exception as error:
        raise FactoryError(
            f"factory {factory!r}",
            expected=f"a result when called with ({_shown(arguments)})",
            found=describe_exception(error),
            remedy="correct the factory or its args",
        ) from error


def source_digest(factory: str, *, base: Path | None = None) -> str:
    """Digest the source file of the module that *defines* a factory, "sha256:…", or give the version that it states.

    It is part of an augmentation's identity: a re-export does not change it, an edit of the file does; a
    factory that states a version (`augment.source_version`) is known by that, and its file may be edited.
    Raises FactoryError as `resolve` does, and where there is no Python source.

    >>> source_digest("logitstore.pipeline.augment:shift")[:7]
    'sha256:'
    """
    function = resolve(factory, base=base)
    definition: Any = inspect.unwrap(function, stop=lambda wrapper: stated_version(wrapper) is not None)
    if (version := stated_version(definition)) is not None:
        return version
    try:
        source = inspect.getsourcefile(sys.modules[definition.__module__])
        if source is None:
            raise TypeError("no source file")
        content = Path(source).read_bytes()
    except (AttributeError, KeyError, TypeError, OSError) as error:
        raise FactoryError(
            f"factory {factory!r}",
            expected="a function defined in a Python source file",
            found=f"none that can be read ({describe_exception(error)})",
            remedy="wrap it in a function of a module of your own",
        ) from error
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def expect_dataset(value: object, factory: str) -> TransferSet:
    """Return `value` if it is a map-style data set whose first example has an array as its input.

    Raises FactoryError if it has no `len` or no `[i]`, is empty, or gives something else than `input`
    or `(input, label)` with an array or a tensor as the input.
    """

    def refuse(found: str) -> FactoryError:
        return FactoryError(
            f"factory {factory!r}",
            expected="a map-style data set: len, and [i] -> (input, label) or input, an array or a tensor",
            found=found,
            remedy="return such a data set from the factory",
        )

    if inspect.isclass(value) or not isinstance(value, TransferSet):
        raise refuse(_described(value))
    try:
        size = len(value)
        item = value[0] if size else None
    except LogitStoreError:
        raise
    except Exception as error:
        raise refuse(
            f"{_described(value)} whose first example fails ({describe_exception(error)})"
        ) from error
    if not size:
        raise refuse(f"{_described(value)} of no examples")
    example = item[0] if isinstance(item, (tuple, list)) and item else item
    if not (hasattr(example, "shape") and hasattr(example, "dtype")):
        raise refuse(f"{_described(value)} whose first input is {_described(example)}")
    return value


def expect_module(value: object, factory: str) -> "torch.nn.Module":
    """Return `value` if it is a `torch.nn.Module`; raise FactoryError if it is anything else."""
    import torch

    if not isinstance(value, torch.nn.Module):
        raise FactoryError(
            f"factory {factory!r}",
            expected="a torch.nn.Module",
            found=_described(value),
            remedy="return the module itself from the factory",
        )
    return value


def expect_augmentation(value: object, factory: str) -> Augmentation | PairAugmentation:
    """Return `value` if it can be called with (input, generator), or mixes rows; raise FactoryError otherwise."""
    if isinstance(value, PairAugmentation) and not inspect.isclass(value):
        return value
    problem = None if callable(value) and not inspect.isclass(value) else _described(value)
    if problem is None and callable(value):
        try:
            inspect.signature(value).bind(None, None)
        except TypeError as error:
            problem = f"{_described(value)} that cannot be called so ({error})"
        except ValueError:
            pass  # a callable of an extension module may not show its signature
    if problem is not None:
        raise FactoryError(
            f"factory {factory!r}",
            expected="an augmentation: a callable (input, generator) -> input",
            found=problem,
            remedy="return such a callable from the factory",
        )
    return value  # type: ignore[return-value]


def build_augmentation(
    factory: str, args: Mapping[str, object], *, base: Path | None
) -> Augmentation | PairAugmentation:
    """Make the augmentation that a table of an experiment file describes; raise as `build` does."""
    return expect_augmentation(build(factory, args, base=base), factory)


def describe_exception(error: BaseException) -> str:
    """Put an exception's type and text on one line.

    >>> describe_exception(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _signature_of(function: Any) -> tuple[inspect.Signature | None, dict[str, Any]]:
    """Return signature and annotations, as far as there are any: extension modules may show neither."""
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
    except ModuleNotFoundError as error:
        # Only the named module or one of its parents: a missing module that *it* imports is its own failure.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            parent, _, _ = error.name.rpartition(".")
            raise FactoryError(
                f"factory {factory!r}",
                expected=f"a module {error.name}",
                found="no module of that name",
                remedy=_suggest_module(error.name, parent),
            ) from error
        raise _import_failed(factory, name, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(factory, name, error) from error


def _import_failed(factory: str, name: str, error: BaseException) -> FactoryError:
    return FactoryError(
        f"factory {factory!r}",
        expected=f"module {name} to import",
        found=describe_exception(error),
        remedy="correct the module, or install what it needs",
    )


def _suggest_module(name: str, parent: str) -> str:
    search = getattr(sys.modules[parent], "__path__", []) if parent else None
    names = [f"{parent}.{info.name}" if parent else info.name for info in pkgutil.iter_modules(search)]
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else "install the package, or correct the name"


def _callables_of(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]


def _check_names(factory: str, signature: inspect.Signature, arguments: Mapping[str, object]) -> None:
    parameters = signature.parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in arguments:
            if name not in names:
                raise FactoryError(
                    f"factory {factory!r}",
                    expected=f"arguments among ({', '.join(names)})",
                    found=f"{name!r}",
                    remedy=suggest(name, names),
                )
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise FactoryError(
                f"factory {factory!r}",
                expected=f"an argument {parameter.name!r}",
                found=f"only ({_shown(arguments)})" if arguments else "no arguments",
                remedy=f"add {parameter.name!r} to args",
            )


def _fit(factory: str, name: str, value: object, annotation: Any, base: Path | None) -> object:
    """Convert one TOML value to what the parameter's annotation says, or leave it where that says nothing."""
    try:
        adapter: TypeAdapter[object] = TypeAdapter(annotation)
    except (PydanticUserError, TypeError):
        return value  # no type that TOML could give: the factory itself has to judge
    try:
        fitted = adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        shown = getattr(annotation, "__name__", None) if inspect.isclass(annotation) else None
        raise FactoryError(
            f"factory {factory!r}",
            expected=f"argument {name!r} to be {shown or annotation}",
            found=f"{value!r} ({first['msg'].lower()})",
            remedy=f"correct {name!r} in args",
        ) from error
    return _rebase(fitted, base)


def _rebase(value: object, base: Path | None) -> object:
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
