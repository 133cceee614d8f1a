"""Command lines and names of all pages, and examples of pages that have no test file of their own.

Every `logitstore …` line of every page is parsed by its command. Every path, make target and dotted name is looked up.
Examples of the pages of stages run on small stores.
"""

import contextlib
import importlib
import inspect
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from support import combinations, experiments
from support.tree import ROOT

import logitstore
from logitstore.cli.main import COMMANDS, cli
from logitstore.cli.options import Settings

DOCS = ROOT / "docs"
PAGES = sorted({*DOCS.rglob("*.md"), *ROOT.glob("*.md")} - {ROOT / "CHANGELOG.md", DOCS / "log.md"})


def blocks(page: str, language: str = "python") -> list[str]:
    """Return the blocks of a page in a language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# Command lines


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of each command line in the code of a page, without the words `logitstore` and its flags."""
    fences = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    for line in [*fences.replace("\\\n", " ").splitlines(), *inline]:
        if found := re.search(rf"(?:^|[ /])logitstore (?:-\w+ )*((?:{'|'.join(COMMANDS)})\b.*)", line):
            # A comment, a pipe, or the explanation in a column of its own ends it.
            yield shlex.split(re.split(r" {3,}|\s#\s|\s[|>&]", found[1])[0])


def problem(words: list[str]) -> str | None:
    """Return the error of a command line that its command cannot parse; arguments may be left out."""
    group: Any = cli
    command = group.get_command(click.Context(cli), words[0])
    try:
        command.make_context(words[0], list(words[1:]), obj=Settings())
    except click.MissingParameter:
        return None  # "`logitstore verify --deep`"
    except click.UsageError as error:
        placeholder = re.search(r"'[A-Z]+' is not", error.message)
        return None if placeholder else f"logitstore {shlex.join(words)}: {error.format_message()}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_lines_of_a_page_parse(page: Path) -> None:
    found = [problem(words) for words in commands(page.read_text(encoding="utf-8")) if len(words) > 1]
    assert [line for line in found if line is not None] == []


def test_a_command_line_that_does_not_parse_is_noticed() -> None:
    """Negative control: of a block and of a sentence; an unknown option, a wrong value, an argument too many."""
    page = (
        "```\nlogitstore verify STORE --deeper    every byte\n"
        "torchrun -m logitstore -q cache A B --stop-below 3\n```\n"
    )
    lines = [
        problem(words) for words in commands(page + "Run `logitstore inspect A B`, or `logitstore demo`.")
    ]
    assert [line is None for line in lines] == [False, False, False, True]
    every = [words for one in PAGES for words in commands(one.read_text(encoding="utf-8"))]
    assert len(every) > 50 and {words[0] for words in every} == set(COMMANDS)


# Names

FOLDERS = "storage|pipeline|cli|tests|docs|benchmarks|experiments"


def has_attribute(name: str) -> bool:
    """Return whether a dotted name is that of a module, or of something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found: Any = importlib.import_module(".".join(parts[:end]))
            break
    else:
        return False
    for part in parts[end:]:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def stale(page: str) -> list[str]:
    """Return the paths, make targets and names of the package that a page has and the project lacks."""
    paths = re.findall(rf"(?:`|python )((?:{FOLDERS})/[\w./-]*\w)(?=[`\s])", page)
    targets = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    called = " ".join(re.findall(r"(?:`|^)make ([a-z][a-z -]*[a-z])", page, re.MULTILINE)).split()
    dotted = set(re.findall(r"\blogitstore(?:[.:][A-Za-z_]\w*)+(?![\w*])", page))
    names = {name for name in dotted if not name.endswith((".md", ".toml", ".zarr"))}
    return [
        *sorted({path for path in paths if not (ROOT / path).exists()}),
        *sorted(set(called) - set(targets)),
        *sorted(name for name in names if not has_attribute(name.replace(":", "."))),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_paths_targets_and_names_of_a_page_are_there(page: Path) -> None:
    assert stale(page.read_text(encoding="utf-8")) == []


def test_a_stale_name_is_noticed() -> None:
    """Negative control."""
    page = (
        "`storage/api.py`, `tests/nowhere.py` and `python benchmarks/gone.py 4`, `make test` and `make tset`, "
        "`logitstore.open_store`, `logitstore.pipeline.losses:Gone`, `logitstore.storage.gone.name`"
    )
    gone = ["logitstore.pipeline.losses:Gone", "logitstore.storage.gone.name"]
    assert stale(page) == ["benchmarks/gone.py", "tests/nowhere.py", "tset", *gone]


# Examples of stages


def run(source: str, *changes: tuple[str, str], **names: object) -> dict[str, Any]:
    """Run an example, with some of its text changed; return the names that it leaves."""
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    Path("example.py").write_text(source, encoding="utf-8")
    return runpy.run_path("example.py", names)


def test_the_examples_of_clusters_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(experiments.finished() / "out" / "store.zarr", tmp_path / "store.zarr")
    monkeypatch.chdir(tmp_path)
    smaller = ("clusters=20", "clusters=2"), ("classes_per_cluster=50", "classes_per_cluster=3")
    (example,) = blocks("guides/clusters.md")
    names = run(example, *smaller)
    assert names["part"].small("sets").shape == (2, 3)
    (line,) = blocks("guides/clusters.md", "sh")
    words = shlex.split(line.replace("20", "2").replace("50", "3"))[1:]
    done = CliRunner().invoke(cli, words)
    assert (done.exit_code, "nothing to do: clusters/wide-2x3" in done.output) == (0, True), done.output
    assert Path("clusters.png").stat().st_size > 1000


def test_the_examples_of_combination_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = combinations.make(tmp_path / "STORE").opened()
    (example,) = blocks("guides/combination.md")
    pattern = "wide-24x40-*", "s-*"
    run(example, pattern, store=store)
    assert "combined" in logitstore.open_store("STORE").teachers
    words = next(
        words for words in commands((DOCS / "guides" / "combination.md").read_text()) if len(words) > 2
    )
    done = CliRunner().invoke(cli, [word.replace(*pattern) for word in words])
    assert (done.exit_code, "nothing to do" in done.output) == (0, True), done.output


def test_the_examples_of_specialists_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    combinations.make(tmp_path / "runs" / "mine" / "store.zarr")
    listing, elsewhere = blocks("guides/specialists.md")
    run(listing)
    assert len(capsys.readouterr().out.splitlines()) >= len(combinations.SETS)
    # The call on another transfer set is tried with its stages; here are its names and arguments.
    names = run(elsewhere[: elsewhere.index("home =")])
    inspect.signature(names["capture_specialists"]).bind(None, onto=None)
    inspect.signature(names["Workspace"].of_folder).bind(None, Path("runs/mine"))


def test_the_example_of_remote_stores_runs_with_a_store_at_hand(tmp_path: Path) -> None:
    """Places other than disks are tried in tests/storage/test_remote.py."""
    store = combinations.make(tmp_path / "teachers.zarr")
    first, second, _, linked = blocks("remote.md")
    (tmp_path / "example.py").write_text(linked.replace("snapshots/0123abcd/store.zarr", str(store.path)))
    assert (
        runpy.run_path(str(tmp_path / "example.py"), {"logitstore": logitstore})["store"].num_rows
        == combinations.ROWS
    )
    at_hand = "s3://bucket/teachers.zarr", str(store.path)
    (tmp_path / "example.py").write_text(first.replace(*at_hand), encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "example.py"))
    assert len(names["stream"]) == 1
    (tmp_path / "example.py").write_text(second[: second.index("store =")], encoding="utf-8")
    assert {"bucket", "ObjectStore"} <= set(runpy.run_path(str(tmp_path / "example.py")))
