"""The Dockerfile: its files exist and make the whole wheel; its extras, versions and user are as documented.

No image is built here. `COPY` is followed by hand, and the wheel is built and started from the copied files.
"""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.children import environment
from support.tree import FOLDERS, ROOT, installed_path, product_files, wheel_files

import logitstore

pytestmark = pytest.mark.xdist_group("wheel")  # one process builds wheels, so that two cores suffice
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "guides" / "installing.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOR_CONTRIBUTORS = {"test", "lint", "docs"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their words, continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    lines = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(name.upper(), words.strip()) for name, words in lines]


def copied(text: str) -> Iterator[tuple[str, str]]:
    """Yield source and target of each file or folder that is copied from the checkout."""
    for name, words in instructions(text):
        if name in ("COPY", "ADD") and "--from=" not in words:
            *sources, target = words.split()
            for source in sources:
                yield source, f"{target}{source}" if target.endswith("/") else target


def defaults(text: str) -> dict[str, str]:
    """Return the build arguments with their defaults; "none" without one."""
    words = [words for name, words in instructions(text) if name == "ARG"]
    return {name: value or "none" for name, _, value in (word.partition("=") for word in words)}


def is_sent(path: str, ignored: str = IGNORED) -> bool:
    """Return whether a path at the root of the checkout is sent to the build: the last pattern that matches decides."""
    sent = True
    for pattern in ignored.splitlines():
        if pattern and not pattern.startswith("#") and fnmatch.fnmatch(path, pattern.removeprefix("!")):
            sent = pattern.startswith("!")
    return sent


def problems(text: str, ignored: str = IGNORED) -> list[str]:
    """Return a line for each rule that a Dockerfile breaks."""
    found = []
    for source, _ in copied(text):
        if not (ROOT / source).exists():
            found.append(f"COPY {source}: no such file")
        elif not is_sent(source, ignored):
            found.append(f"COPY {source}: .dockerignore leaves it out")
    found += [
        f"COPY: the folder {folder} is missing" for folder in FOLDERS if folder not in dict(copied(text))
    ]
    arguments = defaults(text)
    for extra in arguments.get("EXTRAS", "").split(","):
        if extra not in PROJECT["optional-dependencies"]:
            found.append(f"EXTRAS: no extra {extra!r}")
    if f"{arguments.get('TORCH', '').removesuffix('+cpu')}\n" not in (ROOT / "constraints.txt").read_text():
        found.append("TORCH: another version than that of constraints.txt")
    users = [words for name, words in instructions(text) if name == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        found.append("USER: root")
    (entry,) = [words for name, words in instructions(text) if name == "ENTRYPOINT"]
    if entry.strip('["]') not in PROJECT["scripts"]:
        found.append(f"ENTRYPOINT: no script {entry}")
    return found


def test_the_dockerfile_keeps_the_rules() -> None:
    assert problems(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("COPY cli cli\n", "", "COPY: the folder cli is missing"),
        ("LICENSE ./", "LICENCE ./", "COPY LICENCE: no such file"),
        ("COPY cli cli\n", "COPY cli cli\nCOPY tests tests\n", "COPY tests: .dockerignore leaves it out"),
        ("torch,plots,remote", "torch,report", "EXTRAS: no extra 'report'"),
        ("torch==2", "torch==1", "TORCH: another version than that of constraints.txt"),
        ("USER logitstore\n", "", "USER: root"),
        ("USER logitstore\n", "USER logitstore\nUSER 0:0\n", "USER: root"),
        ('["logitstore"]', '["logits"]', 'ENTRYPOINT: no script ["logits"]'),
    ],
)
def test_a_broken_dockerfile_is_noticed(old: str, new: str, problem: str) -> None:
    """Negative control: each rule finds the line that breaks it."""
    assert old in DOCKERFILE
    assert problems(DOCKERFILE.replace(old, new)) == [problem]


def test_the_copied_files_make_the_whole_wheel_and_it_runs(tmp_path: Path) -> None:
    """The commands of the page, without their downloads."""
    source, dist, there = tmp_path / "source", tmp_path / "dist", tmp_path / "there"
    source.mkdir()
    for name, target in copied(DOCKERFILE):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, source / target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    assert "python -m pip wheel --no-deps --wheel-dir dist .\n" in PAGE
    for words in (
        ["wheel", "--no-deps", "--wheel-dir", "dist", "--no-build-isolation", "./source"],
        ["install", "--no-deps", "--find-links", "dist", "--no-index", "--target", "there", "logitstore"],
    ):
        done = subprocess.run([*pip, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (wheel,) = dist.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert set(wheel_files(wheel)) == {installed_path(path) for path in product_files(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-c", "import logitstore; print(logitstore.__version__, logitstore.__file__)"],
        cwd=there,
        env=environment(PYTHONPATH=str(there)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout.split() == [logitstore.__version__, str(there / "logitstore" / "__init__.py")]


def table(header: str) -> dict[str, list[str]]:
    """Return the rows of a table of the page by their first cell."""
    (body,) = re.findall(rf"^\| {header} \|.*\n\| ---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in body.splitlines()]
    return {name: rest for name, *rest in rows}


def test_the_page_lists_the_extras_and_the_build_arguments() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(table("extra")) == set(extras) - FOR_CONTRIBUTORS | {"none"}
    assert all(f"`{extra}`" in PAGE for extra in extras)
    assert {name: value for name, (value, _) in table("build argument").items()} == defaults(DOCKERFILE)
    assert f"Python {PROJECT['requires-python'].removeprefix('>=')} or newer" in PAGE


NAMED = r"logitstore\[([\w,]+)\]|'\.\[([\w,]+)\]'"


def unknown_extras(page: str) -> set[str]:
    """Return the extras that a page names and pyproject.toml lacks."""
    named = {extra for pair in re.findall(NAMED, page) for extra in "".join(pair).split(",")}
    return named - set(PROJECT["optional-dependencies"])


PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]


def test_every_extra_that_a_page_names_is_there() -> None:
    texts = [
        page.read_text(encoding="utf-8") for page in PAGES if page.name not in ("CHANGELOG.md", "log.md")
    ]
    assert sum(bool(re.search(NAMED, text)) for text in texts) >= 3
    assert unknown_extras("\n".join(texts)) == set()
    # Negative control.
    assert unknown_extras("pip install 'logitstore[torch,report]' and '.[docs]'") == {"report"}
