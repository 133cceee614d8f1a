"""The site and its pictures: names in the reference, paths in the pages, drawings and plots.

`make docs` builds the site; its links are checked there. These laws need no package of the site.
"""

import ast
import doctest
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.tree import ROOT

DOCS = ROOT / "docs"
DOCUMENTED = (
    "logitstore",
    "storage",
    "pipeline",
    "pipeline/losses",
    "pipeline/datasets",
    "pipeline/augment",
    "pipeline/models",
)
"""Packages whose public names the reference lists."""
PAGES = (DOCS / "architecture.md", *sorted((DOCS / "recipes").glob("*.md")))


def exported(package: str) -> list[str]:
    """Return `__all__` of a package, read from its source: importing all of them takes torch."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return list(names)


def undocumented(reference: str) -> list[str]:
    """Return the public names that no block of the reference names, by any of the packages that export them."""
    named = {
        path.rpartition(".")[2] for path in re.findall(r"^::: (logitstore[\w.]*)", reference, re.MULTILINE)
    }
    public = {name for package in DOCUMENTED for name in exported(package) if not name.startswith("__")}
    # The errors are on a page as a module, and so are the losses as a package.
    return sorted(public - named - {"LogitStoreError", "losses"})


def reference() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))


def test_every_public_name_is_in_the_reference() -> None:
    assert undocumented(reference()) == []
    assert "::: logitstore.storage.errors" in reference()


def test_a_name_without_a_page_is_noticed() -> None:
    """Negative control."""
    without = reference().replace("::: logitstore.pipeline.losses.Dist\n", "")
    assert undocumented(without) == ["Dist"]


# Names in the pages of the reference, for readers of a clone


@pytest.fixture(scope="module")
def names() -> ModuleType:
    """Return the script that writes the lists of names."""
    spec = importlib.util.spec_from_file_location("names", DOCS / "site" / "names.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("path", sorted((DOCS / "reference").glob("*.md")), ids=lambda path: path.stem)
def test_a_page_of_the_reference_lists_its_names(path: Path, names: ModuleType) -> None:
    page = path.read_text(encoding="utf-8")
    assert names.listed(page) == page, "run `python docs/site/names.py`"
    items = re.findall(
        r"^- `[^`]+`(.*)", page.partition(names.BEGIN)[2].partition(names.END)[0], re.MULTILINE
    )
    assert len(items) >= len(re.findall(r"^::: ", page, re.MULTILINE))
    assert all(item.startswith(":") for item in items if item), "a name without a sentence"


def test_a_list_that_is_stale_is_noticed(names: ModuleType) -> None:
    """Negative control: another sentence, another argument, and a page without its list."""
    page = (DOCS / "reference" / "losses.md").read_text(encoding="utf-8")
    assert "- `soft_targets(" in page
    for stale in (
        page.replace("- `soft_targets(", "- `soft_targets(more, "),
        re.sub(rf"{names.BEGIN}.*{names.END}\n\n", "", page, flags=re.DOTALL),
    ):
        assert stale != page
        assert names.listed(stale) == page


def test_the_examples_of_the_list_of_names_hold(names: ModuleType) -> None:
    failed, tried = doctest.testmod(names)
    assert (failed, tried > 0) == (0, True)


# Paths in pages


def missing_paths(page: str) -> list[str]:
    """Return the paths in backticks that the tree does not hold.

    A path begins with a folder of the tree. A bare file name belongs to the last folder before it, and is not judged.
    """
    folders = "storage|pipeline|cli|tests|docs|benchmarks|experiments|logitstore"
    paths = re.findall(rf"`((?:{folders})/[\w./-]*)`", page)
    return sorted({path for path in paths if not (ROOT / path).exists()})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_paths_of_a_page_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert missing_paths(text) == []
    if page.stem == "architecture":
        rooms = re.findall(r"^\| ((?:`[\w.]+/?`(?:, )?)+) \|", text, re.MULTILINE)
        names = {name for room in rooms for name in re.findall(r"`([\w./]+)`", room)}
        assert names and all(
            (ROOT / "pipeline" / n).exists() or (ROOT / "storage" / n).exists() for n in names
        )


def test_a_path_that_is_not_there_is_noticed() -> None:
    """Negative control."""
    assert missing_paths("`storage/errors.py` and `pipeline/nowhere/todo.py`") == ["pipeline/nowhere/todo.py"]


def unknown_names(page: str) -> list[str]:
    """Return the identifiers in backticks that stand in no source file."""
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for top in ("storage", "pipeline", "cli", "tests/support", "tests/pipeline/losses")
        for path in (ROOT / top).rglob("*.py")
    )
    known = set(re.findall(r"\w+", sources)) | {"bash", "make"}
    return sorted(set(re.findall(r"`(_?[a-z]\w*|[A-Z]\w+)`", page)) - known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_names_of_a_page_are_there(page: Path) -> None:
    assert unknown_names(page.read_text(encoding="utf-8")) == []


def test_a_name_that_is_not_there_is_noticed() -> None:
    """Negative control."""
    assert unknown_names("`widened_pair` and `narrowed_pair`") == ["narrowed_pair"]


def test_every_folder_of_the_product_has_its_line_in_the_architecture() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for top in ("pipeline", "storage", "cli"):
        for folder in sorted((ROOT / top).iterdir()):
            if (folder / "__init__.py").is_file():
                assert f"`{folder.name}/`" in text, f"{top}/{folder.name}"


# Pictures and plots


@pytest.fixture(scope="module")
def drawing() -> Any:
    """Import the scripts of docs/images from there."""
    sys.path.insert(0, str(DOCS / "images"))
    try:
        yield importlib.import_module("draw"), importlib.import_module("plots")
    finally:
        sys.path.remove(str(DOCS / "images"))
        for name in ("draw", "plots"):
            sys.modules.pop(name, None)


def test_the_pictures_are_as_drawn(drawing: tuple[ModuleType, ModuleType]) -> None:
    draw, _ = drawing
    for name, content in draw.pictures().items():
        committed = (DOCS / "images" / name).read_text(encoding="utf-8")
        assert committed == content, f"{name}: run `make pictures`"


def test_the_plots_are_drawn_from_the_figures(drawing: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    _, plots = drawing
    plots.main(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    names = ("encoding", "loaders", "transform")
    assert drawn == [f"{name}-{theme}.svg" for name in names for theme in ("dark", "light")]
    for name in drawn:
        # Positions depend on the version of matplotlib; words and numbers do not.
        committed = (DOCS / "images" / name).read_text(encoding="utf-8")
        assert words_of(committed) == words_of((tmp_path / name).read_text(encoding="utf-8")), name


def test_the_examples_of_the_scripts_hold(drawing: tuple[ModuleType, ModuleType]) -> None:
    _, plots = drawing
    failed, tried = doctest.testmod(plots)
    assert (failed, tried > 0) == (0, True)


def words_of(svg: str) -> list[str]:
    """Return the texts of a picture."""
    return re.findall(r">([^<>]*\w[^<>]*)</(?:text|tspan)>", svg)


def test_the_words_of_a_plot_are_found() -> None:
    """Negative control: another number would be noticed."""
    words = words_of((DOCS / "images" / "loaders-light.svg").read_text(encoding="utf-8"))
    assert "378,780" in words or any(re.fullmatch(r"[\d,]{5,}", word) for word in words)


@pytest.mark.parametrize("path", sorted((DOCS / "figures").glob("*.json")), ids=lambda path: path.stem)
def test_figures_state_where_they_are_from(path: Path) -> None:
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert set(figures) == {"about", "command", "date", "hardware", "source", "units", "rows"}
    assert figures["command"].startswith("python benchmarks/")
    assert (ROOT / figures["command"].split()[1]).is_file()
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", figures["date"])
    assert figures["rows"] and figures["hardware"] and figures["source"]


def test_pictures_have_both_themes_and_no_foreign_assets() -> None:
    pictures = sorted((DOCS / "images").glob("*.svg"))
    assert {path.stem.rpartition("-")[2] for path in pictures} == {"light", "dark"}
    for path in pictures:
        hosts = set(re.findall(r'(?:href|src)="(https?://[^"]+)"', path.read_text(encoding="utf-8")))
        assert not hosts, path.name
