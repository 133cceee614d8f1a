"""The guides and the experiment file: every key, its default, and every example.

Each section of the page describes one table class: its keys are the class's own, neither fewer nor more.
TOML blocks are experiments, or fragments to which the least is added that makes them one; blocks that begin with
the name of a file are files, and those of the page are run in their order, in one folder.
"""

import inspect
import json
import re
import runpy
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.tree import ROOT

from logitstore.pipeline.experiment import document, networks, tables, training
from logitstore.pipeline.experiment.document import load_experiment, parse_experiment
from logitstore.pipeline.experiment.schema import Table
from logitstore.pipeline.factories.call import resolve
from logitstore.pipeline.run import run
from logitstore.storage.errors import ConfigError

GUIDES = ROOT / "docs" / "guides"
PAGE = (GUIDES / "experiment.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(GUIDES.glob("*.md"))}

SECTIONS: dict[str, type[Table]] = {
    "The file": document.Experiment,
    "`factory` and `args`": training.Factory,
    "`[card]`": tables.Card,
    "`[transfer_set]`": tables.TransferSet,
    "`[evaluation_set]`": tables.EvaluationSet,
    "`[[teacher]]`": tables.Teacher,
    "`[cache]`": tables.Cache,
    "`augment`": training.Augmentation,
    "`augment` in `[cache]`": tables.ViewAugmentation,
    "`[cluster]`": tables.Cluster,
    "`[specialists]`": tables.Specialists,
    "`[combine]`": tables.Combine,
    "`[[student]]`": tables.Student,
    "`loss`": training.Loss,
    "`train`": training.Train,
    "Validation": training.ValidatedTrain,
    "`train` of a teacher": training.TeacherTrain,
    "`train` of specialists": training.SpecialistTrain,
    "`train` of a student": training.StudentTrain,
}
"""Heading of each section, and the class whose own keys it lists."""
BASES = {networks.Network, networks.NewNetwork}
"""Classes without a section: their keys are in the sections of the classes made from them."""

MINIMAL: dict[str, Any] = {
    "transfer_set": {"factory": "logitstore.pipeline.datasets:digits"},
    "teacher": [{"name": "wide", "factory": "logitstore.pipeline.models:mlp", "weights": "wide.safetensors"}],
}
"""What a fragment lacks to be an experiment."""


def defaults_of(table: type[Table]) -> dict[str, str]:
    """The keys that a class adds to its bases, each with its default as the page writes it."""
    described = [base for base in table.__mro__[1:] if base not in BASES]
    inherited = {name for base in described for name in getattr(base, "model_fields", {})}
    defaults = {}
    for name, field in table.model_fields.items():
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        if field.is_required():
            default = "required"
        elif isinstance(value, Table):
            default = "its defaults"
        else:
            default = "none" if value is None or value in ({}, ()) else f"`{json.dumps(value)}`"
        if name not in inherited:
            defaults[field.alias or name] = default
    return defaults


def defaults_said(page: str, heading: str) -> dict[str, str]:
    """The keys that a section's table lists, each with its default."""
    section = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    assert section is not None, f"no section {heading}"
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", section[1], re.MULTILINE)
    return dict(rows)


def untrue(page: str) -> list[str]:
    """The sections that do not say what the class says."""
    wrong = []
    for heading, table in SECTIONS.items():
        said, true = defaults_said(page, heading), defaults_of(table)
        if said != true:
            wrong.append(f"{heading}: page {said}, code {true}")
    return wrong


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, source) of the code blocks of a page."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [(language, source) for language, source in fenced if language in languages]


def check_fragment(source: str) -> None:
    """Refuse a TOML block that is no part of an experiment, or whose factories do not take its arguments."""
    document = tomllib.loads(source)
    parse_experiment({**MINIMAL, **document}, where="guide", base=Path())
    for factory, args in factories(document):
        if factory.startswith("logitstore."):
            inspect.signature(resolve(factory)).bind(
                **args, **({"input_shape": (8, 8), "num_classes": 10} if ".models:" in factory else {})
            )


def factories(value: object) -> Iterable[tuple[str, dict[str, Any]]]:
    """Every factory of a document, with its arguments."""
    if isinstance(value, dict):
        if "factory" in value:
            yield value["factory"], value.get("args", {})
        for inner in value.values():
            yield from factories(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from factories(inner)


# Keys


def test_every_table_has_its_section() -> None:
    classes = {
        value
        for module in (document, tables, training)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Table) and value is not Table
    }
    assert classes == {*SECTIONS.values(), *BASES}


def test_every_key_and_default_is_named_and_no_other() -> None:
    assert not untrue(PAGE), "\n".join(untrue(PAGE))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| `label_smoothing` |", "| `smoothing` |"),  # another name
        ("| `seeds` | list of seeds | `[0]` |", "| `seeds` | list of seeds | `[1]` |"),  # another default
        ("| `lr` | number above 0 | required |", "| `lr` | number above 0 | none |"),
        ("| `hard_weight` ", "hard_weight "),  # left out
    ],
)
def test_a_page_that_is_untrue_is_noticed(old: str, new: str) -> None:
    """Negative control."""
    assert PAGE.count(old) == 1
    assert len(untrue(PAGE.replace(old, new))) == 1


def test_keys_in_the_text_exist() -> None:
    """`key = value` and `"key"` in running text, of all guides, as keys or as arguments of our factories."""
    known = {key for table in SECTIONS.values() for key in defaults_of(table)}
    for name in (
        "datasets:digits",
        "datasets:idx",
        "datasets:image_folder",
        "datasets:torchvision",
        "datasets:hugging_face",
        "datasets:arrays",
        "augment:shift",
        "augment:crop_flip",
        "augment:mixup",
        "augment:random_resized_crop",
        "augment:rand_augment",
        "augment:seeded",
    ):
        known |= set(inspect.signature(resolve(f"logitstore.pipeline.{name}")).parameters)
    with_keys = 0
    for name, page in PAGES.items():
        text = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
        used = set(re.findall(r"`(?:\[\w+\] )?(\w+) = [^`]*`", text))
        assert used <= known, f"{name}: {used - known}"
        with_keys += bool(used)
    assert with_keys > 10  # pages of other tools and of sharing name none


# Examples


@pytest.mark.parametrize(
    "source", [s for page in PAGES.values() for _, s in blocks(page, "toml")], ids=lambda s: s.split("\n")[0]
)
def test_every_block_is_part_of_an_experiment(source: str) -> None:
    check_fragment(source)


def test_a_block_that_is_none_is_noticed() -> None:
    """Negative control: a key that is none, and a factory without an argument that it needs."""
    with pytest.raises(ConfigError, match=r"guide: cache\.view: .* did you mean 'views'\?"):
        check_fragment("[cache]\nview = 2\n")
    with pytest.raises(TypeError, match="file"):
        check_fragment('[transfer_set]\nfactory = "logitstore.pipeline.datasets:arrays"\n')


def test_the_four_experiments_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder of an experiment is added to it
    made = []
    for language, source in blocks(PAGE.partition("## Four experiments")[2], "python", "toml"):
        named = re.match(r"# (\S+\.(?:py|toml))\n", source)
        path = tmp_path / (named[1] if named else "block")
        path.write_text(source, encoding="utf-8")
        if language == "python" and named is None:
            runpy.run_path(str(path))
        elif language == "toml" and named is not None:
            with mock.patch("os.fsync"):
                report = run(load_experiment(path), tmp_path / "runs" / path.stem, device="cpu")
            assert report.done, f"{path.name} did nothing"
            made.append((path.stem, sorted(report.store.teachers)))
    assert made == [
        ("from-weights", ["wide"]),
        ("members", ["wide-0", "wide-1", "wide-2"]),
        ("own-model", ["mine"]),
        ("unlabelled", ["wide"]),
    ]
    monkeypatch.delitem(sys.modules, "my_models")


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    """Files exist, and so do the headings that links point at."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", PAGES[name]):
        path = GUIDES / (target or name)
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^##+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"
