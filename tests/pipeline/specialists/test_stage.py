"""The experiment on Omniglot: its figures are right, from the zip to the tables.

The whole of it runs here on a zip of six made-up characters; the real one is only counted, where it is there.
"""

import doctest
import importlib
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tree import ROOT

from logitstore.storage.api import open_store
from logitstore.storage.errors import ConfigError

CHARACTERS = tuple(f"{alphabet}/character0{n}" for alphabet in ("Greek", "Latin") for n in (1, 2, 3))


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The modules of experiments/, which lie in no package."""
    names = ("omniglot", "specialist_figures", "specialists")
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(ROOT / "experiments"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip like Omniglot's, of small images: each character is a bar of its own, each drawer a noise of its own."""
    path = tmp_path_factory.mktemp("omniglot") / "omniglot_images_background.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, character in enumerate(CHARACTERS):
            for drawer in range(1, 21):
                pixels = np.full((14, 14), 255, np.uint8)
                pixels[2 * number : 2 * number + 2, 3:11] = 0
                noise = np.random.default_rng([number, drawer]).integers(0, 14, (3, 2))
                pixels[noise[:, 0], noise[:, 1]] = 0
                encoded = BytesIO()
                Image.fromarray(pixels).save(encoded, "PNG")
                name = f"images_background/{character}/{number:04}_{drawer:02}.png"
                archive.writestr(name, encoded.getvalue())
    return path


# The data


def test_drawers_part_the_drawings_and_none_is_in_both(scripts: dict[str, ModuleType], archive: Path) -> None:
    omniglot = scripts["omniglot"]
    train = omniglot.characters(archive, size=14)
    test = omniglot.characters(archive, omniglot.TEST_DRAWERS, size=14)
    assert (len(train), len(test)) == (6 * 15, 6 * 5)
    assert not set(train.ids) & set(test.ids)
    assert {omniglot.drawer_of(name) for name in test.ids} == {4, 8, 12, 16, 20}
    assert train.class_names == test.class_names == CHARACTERS
    assert np.array_equal(np.bincount(train.labels), np.full(6, 15))
    row = train.labels.tolist().index(4)
    assert train.inputs[row, 8:10, 3:11].min() == 255, "ink is 255"
    assert np.median(train.inputs) == 0, "on a background of 0"


def test_some_alphabets_are_numbered_anew(scripts: dict[str, ModuleType], archive: Path) -> None:
    found = scripts["omniglot"].characters(archive, (1,), 14, ["Latin"])
    assert found.class_names == CHARACTERS[3:]
    assert found.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drawers": [0, 3]}, r"drawers: expected numbers from 1 to 20, found \[0\]"),
        ({"drawers": []}, "drawers: expected numbers from 1 to 20, found none"),
        ({"alphabets": ["Klingon"]}, "alphabets: expected one of Greek, Latin, found 'Klingon'"),
    ],
)
def test_drawers_and_alphabets_that_there_are_none_of(
    scripts: dict[str, ModuleType], archive: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        scripts["omniglot"].characters(archive, **arguments)


def test_the_real_drawings(scripts: dict[str, ModuleType], shared_data: Path) -> None:
    """964 characters of 30 alphabets; the pair that is twice in the set is on one side."""
    omniglot = scripts["omniglot"]
    path = shared_data / omniglot.ZIP.name
    if not path.is_file():
        pytest.skip(f"needs {path}")
    test = omniglot.characters(path, omniglot.TEST_DRAWERS)
    assert test.inputs.shape == (4820, 28, 28)
    _, alphabets = omniglot.alphabets_of(test.class_names)
    assert (len(test.class_names), len(alphabets)) == (964, 30)
    assert {3, 19} <= set(omniglot.TRAIN_DRAWERS)
    assert len(omniglot.TRAIN_DRAWERS) == 15


# The figures


def test_agreement_is_one_for_the_truth_and_none_by_chance(scripts: dict[str, ModuleType]) -> None:
    figures = scripts["specialist_figures"]
    truth = np.repeat(np.arange(30), 32)
    assert figures.agreement_with(truth, (truth + 7) % 30) == pytest.approx(1)
    mean, deviation = figures.agreement_by_chance(truth, truth)
    assert abs(mean) < 0.02 and deviation < 0.02
    half = np.where(np.arange(960) % 2 == 0, truth, 0)
    assert 0.2 < figures.agreement_with(truth, half) < 0.9


def test_errors_inside_sets_are_counted_by_pairs(scripts: dict[str, ModuleType]) -> None:
    figures = scripts["specialist_figures"]
    labels, predictions = np.array([0, 1, 2, 3, 0]), np.array([1, 1, 3, 0, 3])
    sets = np.array([[0, 1], [2, 3]])
    assert figures.share_inside(sets, labels, predictions, 4) == 0.5
    assert figures.share_inside(sets, labels, labels, 4) == 0
    random = figures.random_sets(sets, 4, np.random.default_rng(0))
    assert random.shape == (2, 2) and (np.diff(random, axis=1) > 0).all()


def test_mean_and_spread_are_over_seeds(scripts: dict[str, ModuleType]) -> None:
    figures = scripts["specialist_figures"]
    assert figures.spread([1.0, 2.0, 4.5], "+.1f") == "+2.5 ± 1.8"
    assert figures.spread([-1.0]) == "-1.00"


# The whole


@pytest.mark.parametrize("name", ["QUICK", "Settings"])
def test_the_experiment_is_one_that_can_be_run(scripts: dict[str, ModuleType], name: str) -> None:
    module = scripts["specialists"]
    settings = module.QUICK if name == "QUICK" else module.Settings()
    found = module.parsed(module.document(settings, 1, Path("omniglot.zip")), "this")
    assert found.cluster.clusters >= (20 if name == "Settings" else 2)
    assert [student.name for student in found.students] == list(module.STUDENTS)
    nets = {(student.factory, json.dumps(student.args)) for student in [*found.students, *found.teachers]}
    assert len(nets) == 1, "students have the generalist's form: what differs is what they learn from"
    assert len({student.train.epochs for student in found.students}) == 1


@pytest.fixture(scope="module")
def tiny(scripts: dict[str, ModuleType], archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The whole experiment, done, on the made-up characters."""
    module = scripts["specialists"]
    settings = module.Settings(
        channels=(4,),
        hidden=16,
        dropout=0.0,
        epochs=2,
        lr=1e-2,
        batch_size=16,
        views=2,
        clusters=2,
        classes_per_cluster=3,
        other_temperatures=(1.0,),
        specialist_epochs=1,
    )
    seed = module.Seed(settings, 0, archive, tmp_path_factory.mktemp("tiny") / "seed-0")
    seed.do(lambda *_: None)
    return seed


def test_every_stage_runs_and_is_measured(scripts: dict[str, ModuleType], tiny: Any) -> None:
    found = json.loads(tiny.results.read_bytes())
    assert list(found["captures"]) == [
        "generalist",
        "combined",
        *scripts["specialists"].VARIANTS,
        *scripts["specialists"].STUDENTS,
    ]
    assert sum(row["examples"] for row in found["coverage"]) == 6 * 5
    # With the most likely class alone, an example that no set covers cannot be lost.
    assert all(row["change"] >= 0 for row in found["coverage"] if row["covering"] == "0")
    cost = found["cost"]
    assert cost["generalist and 2 specialists"]["parameters"] > 2 * cost["generalist"]["parameters"]
    test = open_store(tiny.folder / "test" / "store.zarr")
    right = test.teachers["generalist"].read(slice(None)).argmax(axis=1) == test.samples.labels
    assert found["captures"]["generalist"]["accuracy"] == pytest.approx(right.mean())


def test_the_experiments_own_table_and_the_test_store_agree(tiny: Any) -> None:
    """The combination is run over the evaluation set in one, and combined from float16 captures in the other."""
    from logitstore.pipeline.run import run

    report = run(tiny.experiment(), tiny.folder)
    assert list(report.done) == []
    table = {row.name: row.scores[0] for row in report.table}
    found = json.loads(tiny.results.read_bytes())
    for name in ("generalist", "combined", "from-labels", "from-combined"):
        ours = found["captures"][name]
        assert table[name].examples == 30
        assert table[name].nll == pytest.approx(ours["nll"], abs=2e-3), name
        assert abs(table[name].errors - 30 * (1 - ours["accuracy"])) < 1.01, name
    assert table["combined"].parameters == found["cost"]["generalist and 2 specialists"]["parameters"]
    assert table["combined"].nll != pytest.approx(table["generalist"].nll, abs=2e-3), "they differ here"


def test_what_is_done_is_not_done_again(tiny: Any) -> None:
    before = tiny.results.read_bytes()
    stores = [tiny.folder / "store.zarr", tiny.folder / "test" / "store.zarr"]
    digests = [open_store(path).digest for path in stores]
    times = {path: path.stat().st_mtime_ns for path in tiny.folder.rglob("*.safetensors")}
    tiny.do(lambda *_: None)
    assert [open_store(path).digest for path in stores] == digests
    assert {path: path.stat().st_mtime_ns for path in tiny.folder.rglob("*.safetensors")} == times
    assert tiny.results.read_bytes() == before


def test_the_tables_hold_the_papers_figures_beside_ours(scripts: dict[str, ModuleType], tiny: Any) -> None:
    found = json.loads(tiny.results.read_bytes())
    text = scripts["specialist_figures"].tables([found, {**found, "seed": 1}])
    for words in ("± 0.00", "43.1", "26.1", "141,993", "from-combined", "random sets of the same size"):
        assert words in text, text
    assert not re.search(r"\bnan\b", text), text


@pytest.mark.parametrize("name", ["omniglot", "specialist_figures", "specialists"])
def test_examples_in_docstrings_are_true(scripts: dict[str, ModuleType], name: str) -> None:
    found = doctest.testmod(scripts[name])
    assert found.attempted > 0 and found.failed == 0


def test_without_the_zip_it_says_so_and_stops(
    scripts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LOGITSTORE_DATA", str(tmp_path))
    scripts["specialists"].main(["--quick", "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("skipped: needs ")
    assert not (tmp_path / "out").exists()
