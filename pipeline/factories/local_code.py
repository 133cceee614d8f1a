"""Local code of a factory: the files that make a network or a view, and their digests.

Code beside the experiment file, or anywhere else outside the installed packages, changes without a version. The digests of
its files are therefore part of what a result is made from.

1. The files are those of the factory's module and of the packages around it, of the local modules that these import, and so
   on. Imports are read from the source; nothing is run. Modules that arguments name ("package.module:function") are among
   them.
2. Installed packages, the standard library and logitstore are known by their names alone.
3. A module that this process has imported counts as it was then: a later edit of its file does not change what runs.
4. A folder that local code adds to `sys.path` (`search_path`) is searched if it lies in the folder of the experiment or in
   the current one. Modules of any other such folder are known by their names alone, as installed ones.

Two things cannot be seen: a module whose name is computed, and what a compiled module imports. A compiled module itself is
digested.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final

from ...storage.errors import FactoryError
from .source_text import SourceText, read_text

log = logging.getLogger(__name__)
SOURCE: Final = "source"
"""Key of an identity, or of a capture's notes: the digest of each local file."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of installed packages."""
_KNOWN_BY_NAME = frozenset({*sys.stdlib_module_names, *sys.builtin_module_names, "logitstore"})


@dataclass(frozen=True)
class _Code:
    """A file of a module, as it was read."""

    file: str
    """Its name, from the folder where the search for modules found it."""
    digest: str
    text: SourceText
    """What its text says."""


_imported: dict[str, tuple[ModuleSpec | None, _Code]] = {}
"""By module that was imported: its spec, and its code at that time."""
_added: set[str] = set()
"""Entries of `sys.path` that code of a factory has added: a process that has not run it yet lacks them."""
_unread: set[str] = set()
"""Files of which `_warn_of_unread` has warned."""


def local_source(
    factories: Iterable[str], arguments: Iterable[Mapping[str, Any]] = (), *, base: Path | None
) -> dict[str, str]:
    """Return "sha256:…" of each local file that some factories come from, by its name; none for installed ones.

    factories: "package.module:function". arguments: of the factories; their texts may name further modules. base: folder
    of the experiment file.
    """
    names = {factory.partition(":")[0] for factory in factories}
    names |= {name for given in arguments for name in _named(given)}
    return {code.file: code.digest for code in sorted(_reached(names, base), key=lambda code: code.file)}


def is_known_by_name(module: str) -> bool:
    """Return whether a module is of the standard library or of logitstore: its version tells its code."""
    return module.partition(".")[0] in _KNOWN_BY_NAME


def may_take_paths(factory: str, *, base: Path | None) -> bool:
    """Return whether the local code of a factory has parameters that are paths; no for an installed factory."""
    return any(code.text.takes_paths for code in _reached({factory.partition(":")[0]}, base))


@contextlib.contextmanager
def noted_import(factory: str, *, base: Path | None) -> Iterator[None]:
    """Note the local code of a factory that is imported in the block.

    Raises FactoryError if a file changes meanwhile.
    """
    before = local_source([factory], base=base)
    with watched_path():
        yield
    after = local_source([factory], base=base)
    for file in sorted(before.keys() | after.keys()):
        if before.get(file) != after.get(file):
            raise FactoryError(
                f"factory {factory!r}",
                expected=f"a file {file} that does not change while it is imported",
                found="one that was written to",
                remedy="run the same command again",
            )


@contextlib.contextmanager
def watched_path() -> Iterator[None]:
    """Note the entries that code of a factory, run in the block, adds to `sys.path`."""
    before = set(sys.path)
    try:
        yield
    finally:
        _added.update(set(sys.path) - before)


def _named(value: Any) -> Iterator[str]:
    """Yield the texts in an argument that may be names of modules, or of something in them."""
    if isinstance(value, str):
        name = value.partition(":")[0]
        if (":" in value or "." in value) and all(part.isidentifier() for part in name.split(".")):
            yield name
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _named(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _named(item)


def _reached(names: Iterable[str], base: Path | None) -> set[_Code]:
    """Return the code of some modules, and of all local modules that they reach."""
    place = None if base is None else str(base.resolve())
    # As in `factories.resolve`, the folder of the experiment file comes last.
    search = [entry for entry in sys.path if str(Path(entry or ".").resolve()) != place]
    search += [] if place is None else [place]
    _added.intersection_update(sys.path)
    search = [entry for entry in search if entry not in _added or entry == place]
    importlib.invalidate_caches()
    names, whole = list(names), search
    while True:
        reached = _walk(names, whole, place)
        # A folder may be added by a module that is read after one that needs it: all are then searched again.
        added = [code.text.additions for code in sorted(reached, key=lambda code: code.file)]
        before = [entry for one in added for entry in one.before if _is_beside(entry, place)]
        behind = [entry for one in added for entry in one.behind if _is_beside(entry, place)]
        wider = list(dict.fromkeys([*before, *search, *behind]))
        if wider == list(dict.fromkeys(whole)):
            _warn_of_unread(reached)
            return reached
        if set(wider) <= set(whole):  # two modules that hide each other
            return reached
        whole = wider


def _walk(names: Iterable[str], search: list[str], place: str | None) -> set[_Code]:
    """Return the code of some modules, and of all local modules that they reach. search: folders of modules."""
    waiting, seen, reached = list(names), set[str](), dict[str, _Code | None]()
    while waiting:
        if (module := waiting.pop()) in seen or module.partition(".")[0] in _KNOWN_BY_NAME:
            continue
        seen.add(module)
        for name, spec in _specs(module, search, place):
            if name not in reached:
                reached[name] = code = _code(name, spec)
                waiting += () if code is None else code.text.imports
    return {code for code in reached.values() if code is not None}


def _is_beside(entry: str, place: str | None) -> bool:
    """Return whether a folder lies in that of the experiment file, or in the current one."""
    folder = Path(entry).resolve()
    return any(folder.is_relative_to(one) for one in (place, Path.cwd().resolve()) if one is not None)


def _warn_of_unread(reached: Iterable[_Code]) -> None:
    """Warn once of a folder of modules that is known only when the code runs."""
    for code in reached:
        if code.text.additions.unread and code.file not in _unread:
            _unread.add(code.file)
            log.warning(
                "%s, line %d: adds a folder to sys.path that is known only when it runs; changes of modules in that "
                "folder are not seen. Write the folder as Path(__file__).parent / …",
                code.file,
                code.text.additions.unread[0],
            )


def _specs(module: str, search: list[str], place: str | None) -> Iterator[tuple[str, ModuleSpec]]:
    """Yield the local modules that an import of `module` runs: the packages around it, and itself."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        spec = _find(name, search)
        if spec is None or (depth == 1 and not _is_local(spec, place)):
            return
        if depth == 1 and place is not None:
            _check_not_hidden(name, spec, place)
        yield name, spec
        if spec.submodule_search_locations is None:
            return
        search = list(spec.submodule_search_locations)


def _check_not_hidden(name: str, spec: ModuleSpec, place: str) -> None:
    """Refuse a local module that hides one of the same name beside the experiment file. Raises FactoryError.

    It may come from the current folder, which `python -m` searches first, or from PYTHONPATH.
    """
    found, beside = spec.origin, _find(name, [place])
    if (
        found is None
        or beside is None
        or beside.origin is None
        or Path(found).resolve().is_relative_to(place)
    ):
        return
    if _content(spec) == _content(beside):  # a copy
        return
    raise FactoryError(
        f"module {name!r}",
        expected=f"the one beside the experiment file, {beside.origin}",
        found=f"{found}, which Python searches first",
        remedy="run the command from another folder, or rename one of the two",
    )


def _content(spec: ModuleSpec) -> bytes | None:
    """Return the bytes of a module's file; None if there is none to read."""
    get_data = getattr(spec.loader, "get_data", None)
    if spec.origin is None or get_data is None:
        return None
    try:
        content: bytes = get_data(spec.origin)
    except OSError:  # its import tells the reason
        return None
    return content


def _find(name: str, search: Iterable[str]) -> ModuleSpec | None:
    """Find a module in some folders. A package without `__init__.py` is all folders of its name.

    This is the search of `PathFinder`, which looks up the packages around a namespace package in `sys.modules`. Here nothing
    needs to be imported.
    """
    portions = list[str]()
    for entry in search:
        finder = pkgutil.get_importer(entry or os.getcwd())
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = None if find_spec is None else find_spec(name)
        if spec is None:
            continue
        if spec.loader is not None:
            return spec
        portions += spec.submodule_search_locations or []
    if not portions:
        return None
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace


def _is_local(spec: ModuleSpec, place: str | None) -> bool:
    """Return whether a module is no installed one."""
    where = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    if where is None:
        return False
    path = Path(where)
    if place is not None and path.is_relative_to(place):
        path = path.relative_to(place)
    return not _INSTALLED.intersection(path.parts)


def _code(name: str, spec: ModuleSpec) -> _Code | None:
    """Return the code of a module as it was imported, or as its file is now; None for a folder without a file."""
    module = sys.modules.get(name)
    if module is None:
        return _read(name, spec)
    imported_as = getattr(module, "__spec__", None)
    if name in _imported and _imported[name][0] is imported_as:
        return _imported[name][1]
    code = _read(name, spec)
    # A file of the same name in another folder, searched before all folders are known, is not the one that was imported.
    if code is not None and getattr(imported_as, "origin", spec.origin) == spec.origin:
        _imported[name] = imported_as, code
    return code


def _read(name: str, spec: ModuleSpec) -> _Code | None:
    content = _content(spec)
    if content is None or spec.origin is None:
        return None
    is_package = spec.submodule_search_locations is not None
    folders = name.split(".") if is_package else name.split(".")[:-1]
    file = "/".join([*folders, Path(spec.origin).name])
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if not spec.origin.endswith(".py"):
        log.warning("%s: a compiled module; its file is digested, what it imports is not looked at", file)
        return _Code(file, digest, SourceText(takes_paths=True))
    package = name if is_package else name.rpartition(".")[0]
    return _Code(file, digest, read_text(content, package, spec.origin))
