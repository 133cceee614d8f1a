"""The lists of names in docs/reference, for readers of a clone: each name, its signature and the first sentence of its docstring.

A page of the reference names objects by the directives of mkdocstrings, which a forge does not fill. So each page has a list
between two comments, made from the same directives. Run `python docs/site/names.py` after a change of a docstring or a
page; a test compares the lists.
"""

import ast
import copy
import importlib.util
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
REFERENCE: Final = ROOT / "docs" / "reference"
BEGIN: Final = "<!-- names: made by docs/site/names.py -->"
END: Final = "<!-- end of names -->"
_DIRECTIVE: Final = re.compile(r"^::: (logitstore[\w.]*|mkdocs-click)", re.MULTILINE)
_WIDTH: Final = 100
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def listed(page: str) -> str:
    """Return a page with its list of names; a page without directives as it is."""
    names = _DIRECTIVE.findall(page)
    if not names:
        return page
    lines = [line for name in names for line in _lines_of(name)]
    block = "\n".join([BEGIN, "", *lines, "", END])
    if BEGIN in page:
        before, _, rest = page.partition(BEGIN)
        return before + block + rest.partition(END)[2]
    # Behind the introduction: before the first heading of the second level, or the first directive.
    at = min(match.start() for match in re.finditer(r"^(?:## |::: )", page, re.MULTILINE))
    return f"{page[:at]}{block}\n\n{page[at:]}"


def _lines_of(name: str) -> Iterator[str]:
    if name == "mkdocs-click":
        yield from _commands()
        return
    module, definition = _found(name)
    if definition is None:  # a whole module
        for one in module.body:
            if isinstance(one, ast.ClassDef) and not one.name.startswith("_"):
                yield from _item(one.name, ast.get_docstring(one))
        return
    shown, about = name.rpartition(".")[2], None
    if isinstance(definition, (ast.FunctionDef, ast.ClassDef)):
        shown, about = f"{shown}{_signature(definition)}", ast.get_docstring(definition)
    else:
        below = module.body[module.body.index(definition) + 1 :][:1]
        if below and isinstance(below[0], ast.Expr) and isinstance(below[0].value, ast.Constant):
            about = str(below[0].value.value)
    yield from _item(shown, about)


def _commands() -> Iterator[str]:
    """Yield the commands with the line that `logitstore --help` has for each."""
    tree = ast.parse((ROOT / "cli" / "main.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == "COMMANDS" and node.value is not None:
                for command, line in ast.literal_eval(node.value).items():
                    yield from _wrapped(f"- `logitstore {command}`: {line}")


def _item(shown: str, docstring: str | None) -> Iterator[str]:
    """Yield the lines of one name."""
    about = first_sentence(docstring or "")
    yield from _wrapped(f"- `{shown}`: {about}" if about else f"- `{shown}`")


def first_sentence(docstring: str) -> str:
    r"""Return the first sentence of a docstring, or the part before a colon that opens a list.

    >>> first_sentence("Return 0.5, e.g. here. More.\n\nrows: all.")
    'Return 0.5, e.g. here.'
    """
    text = " ".join(docstring.split("\n\n")[0].split())
    ends = re.search(r"(?<!e\.g)(?<!i\.e)[.](?= [A-Z`]|$)", text)
    return text[: ends.end()] if ends else text


def _signature(definition: ast.FunctionDef | ast.ClassDef) -> str:
    """Return the arguments of a function, or of the `__init__` of a class; nothing for a class that is made elsewhere."""
    if isinstance(definition, ast.ClassDef):
        makers = [
            one for one in definition.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"
        ]
        if not makers:
            return _fields(definition)
        definition = makers[0]
    arguments = copy.deepcopy(definition.args)
    arguments.args = [one for one in arguments.args if one.arg != "self"]
    for one in ast.walk(arguments):
        if isinstance(one, ast.arg):
            one.annotation = None
    return f"({ast.unparse(arguments)})"


def _fields(definition: ast.ClassDef) -> str:
    """Return the fields of a dataclass as arguments; "" for another class."""
    if not any("dataclass" in ast.unparse(one) for one in definition.decorator_list):
        return ""
    shown = [
        one.target.id if one.value is None else f"{one.target.id}={_default(one.value)}"
        for one in definition.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and one.target.id[0] != "_"
    ]
    return f"({', '.join(shown)})" if shown or not definition.bases else ""


def _default(value: ast.expr) -> str:
    text = ast.unparse(value)
    return "…" if text.startswith("field(") else text


def _wrapped(text: str) -> Iterator[str]:
    """Wrap an item of a list; Markdown takes a line end inside backticks for a space."""
    yield from textwrap.wrap(
        text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _found(name: str) -> tuple[ast.Module, Definition | None]:
    """Return the module that defines a public name, and its definition; None for the module itself."""
    path = _module(name)
    if path is not None:
        return ast.parse(path.read_text(encoding="utf-8")), None
    package, _, own = name.rpartition(".")
    path = _module(package)
    if path is None:
        raise LookupError(name)
    return _defined(path, package, own)


def _module(name: str) -> Path | None:
    """Return the file of a module or package, "logitstore.storage.errors"; None without one."""
    parts = name.split(".")[1:]
    base = ROOT.joinpath(*parts) if parts else ROOT / "logitstore"
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _defined(path: Path, module: str, name: str) -> tuple[ast.Module, Definition]:
    """Follow imports from a module to the definition of a name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return tree, node
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == name:
                return tree, node
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                    if (file := _module(source)) is not None:
                        return _defined(file, source, alias.name)
    lazy = re.search(rf'"{name}": "([\w.]+)"', path.read_text(encoding="utf-8"))
    if lazy is not None:
        source = f"logitstore.{lazy[1].lstrip('.').removeprefix('logitstore.')}"
        if (file := _module(source)) is not None:
            return _defined(file, source, name)
    raise LookupError(f"{module}.{name}")


def main() -> None:
    """Write the lists."""
    for path in sorted(REFERENCE.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        path.write_text(listed(page), encoding="utf-8")


if __name__ == "__main__":
    main()
