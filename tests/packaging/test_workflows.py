"""The files that a forge reads: workflows, issue forms, hooks of a commit, the citation.

Nothing here runs them. A workflow that names a missing make target, an action without a version or more
rights than it needs is found before it is pushed.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from support.tree import ROOT

import logitstore

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = frozenset(
    re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
)
RECIPES = (ROOT / "docs" / "recipes").glob("*.md")
WRITING = {"docs.yml": {"pages", "id-token"}, "release.yml": {"id-token"}}
"""Rights to write that a workflow needs."""


def problems(text: str, may_write: set[str]) -> Iterator[str]:
    """Yield a line for each rule that a workflow breaks."""
    workflow: dict[str, Any] = yaml.safe_load(text)
    if workflow.get("permissions") != {"contents": "read"}:
        yield "permissions: expected contents: read for the whole workflow"
    for name, job in workflow["jobs"].items():
        rights = job.get("permissions", {})
        extra = {right for right, level in rights.items() if level == "write"} - may_write
        if extra:
            yield f"{name}: writes {', '.join(sorted(extra))}"
        if "timeout-minutes" not in job:
            yield f"{name}: no timeout-minutes"
        for step in job["steps"]:
            uses = step.get("uses", "")
            if uses and not re.fullmatch(r"[\w./-]+@(release/)?v\d+", uses):
                yield f"{name}: {uses} is not pinned by a major version"
            for command in re.findall(r"^make (.+)$", step.get("run", ""), re.MULTILINE):
                missing = {word for word in command.split() if "=" not in word} - TARGETS
                if missing:
                    yield f"{name}: make has no target {', '.join(sorted(missing))}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_keeps_the_rules(path: Any) -> None:
    assert list(problems(path.read_text(encoding="utf-8"), WRITING.get(path.name, set()))) == []


def test_the_three_workflows_are_there() -> None:
    assert [path.name for path in WORKFLOWS] == ["docs.yml", "release.yml", "tests.yml"]


BROKEN = """
on: push
permissions: { contents: write }
jobs:
  one:
    runs-on: ubuntu-latest
    permissions: { packages: write }
    steps:
      - uses: actions/checkout@main
      - run: make lint tset
"""


def test_a_broken_workflow_is_noticed() -> None:
    """Negative control: each rule finds the line that breaks it."""
    assert list(problems(BROKEN, set())) == [
        "permissions: expected contents: read for the whole workflow",
        "one: writes packages",
        "one: no timeout-minutes",
        "one: actions/checkout@main is not pinned by a major version",
        "one: make has no target tset",
    ]


def test_the_tests_run_on_every_python_from_the_oldest() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={versions[0]}"
    minors = [int(version.removeprefix("3.")) for version in versions]
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_what_is_run_in_continuous_integration_is_what_a_contributor_is_told() -> None:
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert "run: make lint test\n" in workflow
    assert "make lint test" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_stores_are_tried_on_other_systems() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    systems = {name: job["runs-on"] for name, job in workflow["jobs"].items() if name in ("macos", "windows")}
    assert systems == {"macos": "macos-latest", "windows": "windows-latest"}
    for name in systems:
        steps = [step.get("run", "") for step in workflow["jobs"][name]["steps"]]
        assert "python -m support.other_systems native check" in steps
        named = re.findall(r"tests/\S+\.py", " ".join(steps))
        assert all((ROOT / path).is_file() for path in named) and bool(named) == (name == "macos")
    # git would convert the ends of lines of the stores that are read there.
    assert "tests/data/** -text" in (ROOT / ".gitattributes").read_text(encoding="utf-8")


def pins(name: str) -> set[str]:
    """Return the packages that a file of constraints pins."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}


def test_the_libraries_of_the_integrations_are_pinned_once_and_tried() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = " ".join(re.findall(r"^LIBRARIES(?:_ALONE)? := (.+)$", makefile, re.MULTILINE)).split()
    wanted = {
        "transformers",
        "torchvision",
        "timm",
        "lightning",
        "accelerate",
        "datasets",
        "botocore",
        "jmespath",
    }
    assert wanted == set(named)
    assert set(named) <= pins("constraints-integrations.txt")
    # torch is that of the other tests: pip must not bring another build of it.
    assert "torch" in pins("constraints.txt")
    assert not pins("constraints.txt") & pins("constraints-integrations.txt")


@pytest.mark.parametrize("file", [".ci/run", ".github/workflows/tests.yml"])
def test_the_libraries_are_tried_after_the_tests(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert 0 < text.index("test\n") < text.index("make test-integrations\n")


def unknown_targets(page: str) -> set[str]:
    """Return the targets that a page names in code and that make lacks."""
    called = re.findall(r"(?:`|^)make ([a-z][a-z -]*[a-z])", page, re.MULTILINE)
    return {target for words in called for target in words.split()} - TARGETS


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in RECIPES)]
)
def test_the_commands_that_a_contributor_reads_are_there(page: str) -> None:
    assert unknown_targets((ROOT / page).read_text(encoding="utf-8")) == set()


def test_a_target_that_is_not_there_is_noticed() -> None:
    """Negative control."""
    assert unknown_targets("Run `make lint tests`, then:\nmake test-slow   # slow\n") == {
        "tests",
        "test-slow",
    }


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_an_issue_form_has_what_a_forge_requires(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
    assert form["name"] and form["description"] and form["body"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_the_hooks_of_a_commit_call_targets_of_make() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = [repo for repo in config["repos"] if repo["repo"] == "local"]
    called = {hook["entry"].removeprefix("make ") for hook in local["hooks"]}
    assert called <= TARGETS
    assert all("rev" in repo for repo in config["repos"] if repo is not local)


def test_the_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == logitstore.__version__
    assert citation["cff-version"] == "1.2.0"
