"""Layers: each module imports only what its layer may, and does only what its layer may.

Read from the source (ASTs), so that an import inside a function or under TYPE_CHECKING counts like any other.
`violations` judges one module; the negative controls give it modules that break one rule each.
"""

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from support.tree import IMPORT_NAME, ROOT, module_name, module_names, python_files

STORAGE_LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "processors", "progress"}),
    frozenset({"checks", "extras", "random"}),
    frozenset({"digest"}),
    frozenset({"format"}),
    frozenset({"identity"}),
    frozenset({"encodings", "backends"}),
    frozenset({"parts"}),
    frozenset({"stream", "integrity", "dask_view"}),
    frozenset({"sharing"}),
    frozenset({"api"}),
    frozenset({"describe"}),
)
"""The folders and files of storage/; each imports only those of earlier levels."""
PIPELINE_LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"augment", "datasets", "losses"}),
    frozenset({"factories"}),
    frozenset({"experiment"}),
    frozenset({"models", "runtime", "transfer"}),
    frozenset({"views", "stream"}),
    frozenset({"workspace"}),
    frozenset({"same_set", "calibration_rows", "evaluation_set", "held_out"}),
    frozenset({"trainer", "cluster", "combine", "compress", "exchange"}),
    frozenset({"cache", "train"}),
    frozenset({"specialists"}),
    frozenset({"trials"}),
    frozenset({"evaluate", "plan"}),
    frozenset({"in_hand", "run"}),
)
"""The rooms of pipeline/; each imports only those of earlier levels."""
MAX_LINES = 500
"""Lines of the longest module."""

STORAGE, PIPELINE, CLI = (f"{IMPORT_NAME}.{folder}" for folder in ("storage", "pipeline", "cli"))
LEVELS = {
    package: {name: level for level, names in enumerate(levels) for name in names}
    for package, levels in ((STORAGE, STORAGE_LEVELS), (PIPELINE, PIPELINE_LEVELS))
}
"""The level of each room of the two packages."""
ENTRIES = frozenset({IMPORT_NAME, f"{IMPORT_NAME}.__main__"})
"""`python -m logitstore`, the command line under another name; and the public names, of which the calls print."""
TERMINAL = frozenset({"click", "rich"})
UNSAFE_LIBRARIES = frozenset({"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"})
"""They run code that a file brings along."""
UNSAFE_CALLS = frozenset({"eval", "exec"})
LEAVING = frozenset({"exit", "print", "quit", "input"})
PROCESS_WIDE = frozenset({"sys.exit", "sys.stdout", "sys.stderr", "os._exit"})


def is_in(module: str, package: str) -> bool:
    """Is `module` the package or something in it?"""
    return module == package or module.startswith(f"{package}.")


def imported(tree: ast.Module, module: str, is_package: bool, known: frozenset[str]) -> Iterator[str]:
    """The full name of everything that a module imports: modules as such, other names with their module.

    `from ..storage import grid` gives `logitstore.storage.format.grid`; whether the last part is a module is known
    for our own (`known`), and for a name that is none the module that it comes from is given.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            here = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join(here + (node.module.split(".") if node.module else []))
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                yield full if full in known or not is_in(origin, IMPORT_NAME) else origin


def qualified_names(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: `t` -> `torch` after `import torch as t`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                names[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`t.load` -> `torch.load`; empty for what is no dotted name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        value = dotted(node.value, names)
        return f"{value}.{node.attr}" if value else ""
    return ""


def room(module: str, package: str) -> str:
    """Return the folder or file of a package that a module stands in.

    >>> room("logitstore.storage.format.grid", "logitstore.storage")
    'format'
    """
    return module.removeprefix(f"{package}.").partition(".")[0]


def level_violations(module: str, imports: set[str]) -> Iterator[str]:
    """Yield each import that breaks the order of the levels of storage or pipeline."""
    for package, levels in LEVELS.items():
        if not is_in(module, package) or module == package:
            continue
        own = room(module, package)
        if own not in levels:
            yield f"{module}: {own} is in no level of {package}; add it to tests/packaging/test_layers.py"
            return
        for other in sorted(name for name in imports if is_in(name, package)):
            others = None if other == package else room(other, package)
            if others != own and (others is None or levels.get(others, len(levels)) >= levels[own]):
                yield f"{module}: imports {other}, which is not of an earlier level"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of names that import one another, each sorted.

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})
    [['b', 'c']]
    """

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph.get(name, ())
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {
        tuple(sorted({other for other in reach[name] if name in reach.get(other, ())} | {name}))
        for name in graph
        if name in reach[name]
    }
    return sorted(map(list, groups))


def import_violations(module: str, imports: set[str]) -> Iterator[str]:
    """What breaks the order of the layers."""
    libraries = {name.partition(".")[0] for name in imports}
    forbidden: set[str] = set()
    if is_in(module, STORAGE):
        forbidden |= {"torch"} if module == f"{STORAGE}.dask_view" else {"torch", "dask", "distributed"}
        yield from (f"{module}: storage imports {name}" for name in sorted(imports) if is_in(name, PIPELINE))
    yield from level_violations(module, imports)
    if is_in(module, IMPORT_NAME):
        forbidden |= {"storage", "pipeline", "cli"}
        if not is_in(module, CLI) and module not in ENTRIES:
            forbidden |= TERMINAL
            above = (name for name in sorted(imports) if is_in(name, CLI))
            yield from (f"{module}: imports {name}, above it" for name in above)
    yield from (f"{module}: imports {name}" for name in sorted(libraries & (forbidden | UNSAFE_LIBRARIES)))


def use_violations(module: str, tree: ast.Module) -> Iterator[str]:
    """What a module does that is not its business, or nobody's."""
    names = qualified_names(tree)
    safe_loads = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(
            keyword.arg == "weights_only"
            and isinstance(keyword.value, ast.Constant)
            and keyword.value.value is True
            for keyword in node.keywords
        )
    }
    product_but_cli = is_in(module, IMPORT_NAME) and not is_in(module, CLI)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = dotted(node, names)
            if name == "torch.load" and id(node) not in safe_loads:
                yield f"{module}:{node.lineno}: torch.load without weights_only=True"
            if product_but_cli and name in PROCESS_WIDE:
                yield f"{module}:{node.lineno}: {name} outside cli"
        if isinstance(node, ast.Call):
            called = dotted(node.func, names)
            if called.removeprefix("builtins.") in UNSAFE_CALLS:
                yield f"{module}:{node.lineno}: {called}()"
            if product_but_cli and called.removeprefix("builtins.") in LEAVING:
                yield f"{module}:{node.lineno}: {called}() outside cli"
            for keyword in node.keywords:
                allows = not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
                if keyword.arg == "allow_pickle" and allows and is_in(called, "numpy"):
                    yield f"{module}:{node.lineno}: allow_pickle"
        if product_but_cli and isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if dotted(raised, names).removeprefix("builtins.") == "SystemExit":
                yield f"{module}:{node.lineno}: SystemExit outside cli"


def violations(
    module: str, source: str, is_package: bool = False, known: frozenset[str] = frozenset(module_names())
) -> list[str]:
    """Every rule that the module of this name with this source breaks, one line each."""
    tree = ast.parse(source)
    imports = set(imported(tree, module, is_package, known))
    return [*import_violations(module, imports), *use_violations(module, tree)]


PLANNED = frozenset(module_names()) | frozenset(LEVELS) | {IMPORT_NAME, CLI, f"{CLI}.options"}
"""The modules that the sources below may import."""


@pytest.mark.parametrize("path", python_files(ROOT), ids=str)
def test_each_module_keeps_to_its_layer(path: PurePosixPath) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    found = violations(module_name(path), source, is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["benchmarks", "experiments"])
def test_scripts_run_no_code_from_files(folder: str) -> None:
    for file in sorted((ROOT / folder).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        assert violations(name, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        (
            "storage.format.grid",
            "from ..parts.root import Root",
            "imports logitstore.storage.parts.root, which",
        ),
        (
            "storage.format.grid",
            "def f():\n    from ..backends import local",
            "backends.local, which is not of an",
        ),
        (
            "storage.backends.local",
            "from ..encodings.named import NAMED",
            "encodings.named, which is not of an",
        ),
        (
            "storage.stream.stream",
            "import logitstore.storage.integrity.verify",
            "integrity.verify, which is not",
        ),
        (
            "storage.parts.reader",
            "from .. import open_store",
            "imports logitstore.storage, which is not of an",
        ),
        ("storage.new", "import numpy", "new is in no level of logitstore.storage; add it to"),
        ("pipeline.new.stage", "import numpy", "new is in no level of logitstore.pipeline; add it to"),
        (
            "pipeline.trainer.loop",
            "from ..cache.stage import cache",
            "pipeline.cache.stage, which is not of an",
        ),
        (
            "pipeline.cache.stage",
            "from ..train.stage import train",
            "pipeline.train.stage, which is not of an",
        ),
        ("pipeline.views", "from .run import run", "imports logitstore.pipeline.run, which is not of an"),
        (
            "pipeline.stream.batch",
            "from .. import TorchStream",
            "imports logitstore.pipeline, which is not of an",
        ),
        ("storage.api", "def f():\n    import torch.nn as nn", "imports torch"),
        ("storage.api", "from dask import array", "imports dask"),
        ("storage.api", "from ..pipeline import losses", "storage imports logitstore.pipeline"),
        ("storage.api", "import click", "imports click"),
        ("pipeline.run", "from rich.progress import Progress", "imports rich"),
        ("pipeline.run", "from ..cli.options import seed", "imports logitstore.cli.options, above it"),
        ("pipeline.run", "from pipeline import losses", "imports pipeline"),
        ("pipeline.run", "print('done')", ":1: print() outside cli"),
        ("pipeline.run", "import sys\nsys.stdout.write('done')", ":2: sys.stdout outside cli"),
        ("pipeline.run", "from sys import exit as leave\nleave(1)", ":2: sys.exit outside cli"),
        ("pipeline.run", "raise SystemExit(1)", ":1: SystemExit outside cli"),
        ("pipeline.run", "import torch\ntorch.load('w.pt')", ":2: torch.load without weights_only=True"),
        ("pipeline.run", "import torch as t\nt.load('w', weights_only=no)", ":2: torch.load without"),
        ("pipeline.run", "from torch import load\nread = load", ":2: torch.load without weights_only"),
        ("cli.main", "import pickle", "imports pickle"),
        ("cli.main", "eval('1')", ":1: eval()"),
        ("cli.main", "exec('1')", ":1: exec()"),
        ("cli.main", "import numpy\nnumpy.load('x', allow_pickle=True)", ":2: allow_pickle"),
    ],
)
def test_each_rule_can_be_broken(module: str, source: str, said: str) -> None:
    """Negative controls."""
    found = violations(f"{IMPORT_NAME}.{module}", source, known=PLANNED)
    assert any(said in line for line in found), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "storage.parts.writer",
            "from .. import errors\nfrom .journal import Journal\nfrom ... import __version__",
        ),
        ("storage.dask_view", "import dask.array as da\nfrom .parts.reader import CaptureReader"),
        ("pipeline.run", "import torch\nmodel.eval()\ntorch.load('w', weights_only=True)"),
        ("pipeline.run", "from ..storage import open_store\nimport sys\nsys.byteorder"),
        ("pipeline.run", "try:\n    factory()\nexcept SystemExit as left:\n    raise OSError from left"),
        ("cli.main", "import click, sys\nfrom ..pipeline import cache\nprint(1)\nsys.exit(0)"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(f"{IMPORT_NAME}.{module}", source, known=PLANNED) == []


def graph_of(sources: dict[str, tuple[str, bool]], known: frozenset[str]) -> dict[str, set[str]]:
    """Return which module imports which: `sources` gives each one's text, and whether it is a package."""
    return {
        module: {name for name in imported(ast.parse(text), module, is_package, known) if name in sources}
        - {module}
        for module, (text, is_package) in sources.items()
    }


def test_no_modules_and_no_rooms_import_one_another() -> None:
    sources = {
        module_name(path): ((ROOT / path).read_text(encoding="utf-8"), path.name == "__init__.py")
        for path in python_files(ROOT)
    }
    graph = graph_of(sources, frozenset(sources))
    packages = {name for name, (_, is_package) in sources.items() if is_package}
    files = {name: others - packages for name, others in graph.items() if name not in packages}
    assert len(files) > 100
    assert circles(files) == []
    rooms: dict[str, set[str]] = {}
    for name, others in files.items():
        folder = name.rpartition(".")[0]
        rooms.setdefault(folder, set()).update({other.rpartition(".")[0] for other in others} - {folder})
    above = {IMPORT_NAME, STORAGE, PIPELINE, CLI}  # their files have levels of their own, asserted above
    assert circles({room: others - above for room, others in rooms.items() if room not in above}) == []


def test_modules_that_import_one_another_are_found() -> None:
    """Negative control."""
    first, second = f"{IMPORT_NAME}.a.b", f"{IMPORT_NAME}.a.c"
    sources = {first: ("from . import c", False), second: ("def f():\n    from .b import d", False)}
    assert circles(graph_of(sources, frozenset(sources))) == [[first, second]]


def long_files(lines: dict[str, int]) -> list[str]:
    """Return the files that are longer than `MAX_LINES`."""
    return [f"{name}: {count} lines" for name, count in sorted(lines.items()) if count > MAX_LINES]


def test_no_file_is_long() -> None:
    lines = {
        str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in python_files(ROOT)
    }
    assert long_files(lines) == []
    assert long_files({"a.py": MAX_LINES, "b.py": MAX_LINES + 1}) == [f"b.py: {MAX_LINES + 1} lines"]
