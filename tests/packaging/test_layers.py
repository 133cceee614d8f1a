"""Does each module import only what its layer may, and do only what its layer may?

Read from the source (ASTs), so that an import inside a function or under TYPE_CHECKING counts like any other.
`violations` judges one module; the negative controls give it modules that break one rule each.
"""

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from support.tree import IMPORT_NAME, ROOT, module_name, module_names, python_files

STORAGE_LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "codec"}),
    frozenset({"progress", "digest", "identity", "system", "zarr_bytes"}),
    frozenset({"format"}),
    frozenset({"grid"}),
    frozenset({"layouts"}),
    frozenset({"shard", "order"}),
    frozenset({"pieces"}),
    frozenset({"batches", "window"}),
    frozenset({"encoding", "divergence"}),
    frozenset({"floats", "error_budget", "top_k"}),
    frozenset({"encodings"}),
    frozenset({"files", "probe"}),
    frozenset({"lease", "background", "zarr_folder"}),
    frozenset({"journal"}),
    frozenset({"store", "recovery"}),
    frozenset({"part_reader", "part_writer"}),
    frozenset({"writer", "reader"}),
    frozenset({"arguments", "batch", "inputs"}),
    frozenset({"stream", "dask_view", "verify", "rebuild"}),
    frozenset({"api", "repair"}),
)
"""The modules of storage/; each imports only those of earlier levels, and none of its own."""
LEVEL = {name: level for level, names in enumerate(STORAGE_LEVELS) for name in names}

STORAGE, PIPELINE, CLI = (f"{IMPORT_NAME}.{folder}" for folder in ("storage", "pipeline", "cli"))
ENTRY = f"{IMPORT_NAME}.__main__"
"""`python -m logitstore`: the command line under another name."""
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


def level_violations(module: str, imports: set[str]) -> Iterator[str]:
    """What breaks the order of the levels inside storage."""
    name = module.removeprefix(f"{STORAGE}.")
    if name not in LEVEL:
        yield f"{module}: in no level of storage; say in tests/packaging/test_layers.py where it belongs"
        return
    for other in sorted(imports):
        if is_in(other, STORAGE):
            other_level = LEVEL.get(other.removeprefix(f"{STORAGE}."), len(STORAGE_LEVELS))
            if other_level >= LEVEL[name]:
                yield f"{module}: imports {other}, which is not of an earlier level"


def import_violations(module: str, imports: set[str]) -> Iterator[str]:
    """What breaks the order of the layers."""
    libraries = {name.partition(".")[0] for name in imports}
    forbidden: set[str] = set()
    if is_in(module, STORAGE):
        forbidden |= {"torch"} if module == f"{STORAGE}.dask_view" else {"torch", "dask", "distributed"}
        yield from (f"{module}: storage imports {name}" for name in sorted(imports) if is_in(name, PIPELINE))
        if module != STORAGE:
            yield from level_violations(module, imports)
    if is_in(module, IMPORT_NAME):
        forbidden |= {"storage", "pipeline", "cli"}
        if not is_in(module, CLI) and module != ENTRY:
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
            "storage.grid",
            "from .store import Store",
            "imports logitstore.storage.parts.root, which is not of an",
        ),
        (
            "storage.grid",
            "def f():\n    from . import journal",
            "imports logitstore.storage.parts.journal, which",
        ),
        (
            "storage.writer",
            "from .reader import Capture",
            "imports logitstore.storage.parts.reader, which is not",
        ),
        (
            "storage.stream",
            "import logitstore.storage.integrity.verify",
            "imports logitstore.storage.integrity.verify, which is",
        ),
        ("storage.reader", "from . import open_store", "imports logitstore.storage, which is not of an"),
        (
            "storage.new",
            "import numpy",
            "in no level of storage; say in tests/packaging/test_layers.py where it belongs",
        ),
        ("storage.api", "def f():\n    import torch.nn as nn", "imports torch"),
        ("storage.api", "from dask import array", "imports dask"),
        ("storage.api", "from ..pipeline import losses", "storage imports logitstore.pipeline"),
        ("storage.api", "import click", "imports click"),
        ("pipeline.cache", "from rich.progress import Progress", "imports rich"),
        ("pipeline.cache", "from ..cli.options import seed", "imports logitstore.cli.options, above it"),
        ("pipeline.cache", "from pipeline import losses", "imports pipeline"),
        ("pipeline.cache", "print('done')", ":1: print() outside cli"),
        ("pipeline.cache", "import sys\nsys.stdout.write('done')", ":2: sys.stdout outside cli"),
        ("pipeline.cache", "from sys import exit as leave\nleave(1)", ":2: sys.exit outside cli"),
        ("pipeline.cache", "raise SystemExit(1)", ":1: SystemExit outside cli"),
        ("pipeline.cache", "import torch\ntorch.load('w.pt')", ":2: torch.load without weights_only=True"),
        ("pipeline.cache", "import torch as t\nt.load('w', weights_only=no)", ":2: torch.load without"),
        ("pipeline.cache", "from torch import load\nread = load", ":2: torch.load without weights_only"),
        ("cli.main", "import pickle", "imports pickle"),
        ("cli.main", "eval('1')", ":1: eval()"),
        ("cli.main", "exec('1')", ":1: exec()"),
        ("cli.main", "import numpy\nnumpy.load('x', allow_pickle=True)", ":2: allow_pickle"),
    ],
)
def test_each_rule_can_be_broken(module: str, source: str, said: str) -> None:
    """Negative controls."""
    planned = {f"{STORAGE}.{name}" for name in LEVEL} | {STORAGE, PIPELINE, CLI, f"{CLI}.options"}
    found = violations(f"{IMPORT_NAME}.{module}", source, known=frozenset(planned))
    assert any(said in line for line in found), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("storage.writer", "from . import errors\nfrom .journal import Journal\nfrom .. import __version__"),
        ("storage.dask_view", "import dask.array as da\nfrom .reader import Capture"),
        ("pipeline.cache", "import torch\nmodel.eval()\ntorch.load('w', weights_only=True)"),
        ("pipeline.cache", "from ..storage import open_store\nimport sys\nsys.byteorder"),
        ("pipeline.cache", "try:\n    factory()\nexcept SystemExit as left:\n    raise OSError from left"),
        ("cli.main", "import click, sys\nfrom ..pipeline import cache\nprint(1)\nsys.exit(0)"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    planned = {f"{STORAGE}.{name}" for name in LEVEL} | {STORAGE, PIPELINE, CLI}
    assert violations(f"{IMPORT_NAME}.{module}", source, known=frozenset(planned)) == []
