"""Tests of `logitstore cluster`: its output, ensembles, drawings, and refusals in one line."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import experiments

from logitstore.cli.main import cli
from logitstore.storage.api import open_store

SIZES = ("--clusters", "2", "--classes-per-cluster", "3")


def call(store: Path, *options: str, code: int = 0) -> Result:
    """Run the command; its result."""
    result = CliRunner().invoke(cli, ["cluster", str(store), *options])
    assert result.exit_code == code, result.output
    return result


def refused(store: Path, *options: str, code: int = 64) -> str:
    """The one line that the command refuses with, before it changes anything."""
    before = experiments.contents(store)
    result = call(store, *options, code=code)
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert experiments.contents(store) == before
    return result.stderr


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of the finished store: four classes, teachers "wide" and "deep"."""
    return experiments.copy_finished(tmp_path) / "out" / "store.zarr"


def test_it_prints_sets_single_classes_and_errors_beside_chance(store: Path, tmp_path: Path) -> None:
    figure = tmp_path / "clusters.png"
    options = ("--teacher", "wide", "--clusters", "1", "--classes-per-cluster", "3", "--figure", str(figure))
    text = call(store, *options).stdout
    sets = open_store(store).clustering("wide-1x3").small("sets").tolist()
    names = [f"stroke {number}" for number in range(4)]
    assert text.splitlines()[1] == "  0: " + ", ".join(names[number] for number in sets[0])
    (single,) = set(range(4)) - set(sets[0])
    assert text.splitlines()[2] == f"  in no set: 1 (stroke {single})"
    assert "random sets would hold 50.0% ± " in text and ", 100 draws\n" in text
    assert figure.stat().st_size > 5000
    figure.unlink()
    again = call(store, *options).stdout
    assert again == "nothing to do: clusters/wide-1x3 is made and unchanged\n" + text
    assert figure.exists(), "a figure of what is there is drawn all the same"


def test_a_figure_without_matplotlib_is_refused_before_anything_is_computed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = tmp_path / "clusters.png"
    options = ("--teacher", "wide", *SIZES, "--name", "new")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )
    said = refused(store, *options, "--figure", str(figure))
    assert (
        f"--figure {figure}: expected the package matplotlib, which draws it, found no such package; "
        "pip install 'logitstore[plots]'"
    ) in said
    assert "new" not in open_store(store).clusterings
    assert call(store, *options).stdout  # negative control: without a figure nothing needs it


def test_a_figure_of_what_will_be_projected_is_refused_before_it_is(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = tmp_path / "clusters.png"
    options = ("--teacher", "wide", *SIZES, "--name", "new", "--figure", str(figure))
    with monkeypatch.context() as patch:
        patch.setattr("logitstore.pipeline.cluster.memory.fits", lambda *_: False)
        said = refused(store, *options)
    assert f"--figure {figure}: expected memory = " in said
    assert "for the whole matrix, found memory for a projection of its columns into 4,096" in said
    call(store, *options)
    assert figure.exists()


def test_its_json_has_everything(store: Path) -> None:
    options = ("--teacher", "wide", "--teacher", "deep=3", *SIZES, "--temperature", "2")
    found: dict[str, Any] = json.loads(call(store, *options, "--json").stdout)
    assert found["name"] == "ensemble-2x3" and found["teacher"] is None
    assert found["teachers"] == {"wide": 0.25, "deep": 0.75}
    assert found["inertia"] > 0 and found["dimensions"] is None and found["algorithm"] == "online-kmeans"
    assert found["errors_inside"]["draws"] == 100 and found["errors_inside"]["random_deviation"] >= 0
    inspected = json.loads(CliRunner().invoke(cli, ["inspect", str(store), "--json"]).stdout)
    (shown,) = (one for one in inspected["clusterings"] if one["name"] == "ensemble-2x3")
    assert {key: shown[key] for key in ("sets", "single", "teachers")} == {
        key: found[key] for key in ("sets", "single", "teachers")
    }
    lines = call(store, *options).stdout.splitlines()
    assert lines[1] == "classes that deep + wide confuse (clusters/ensemble-2x3)"
    assert lines[-3].startswith("deep + wide make ")
    assert lines[-2:] == [f"digest  {found['digest']}", f"store   {found['store']}"]
    text = CliRunner().invoke(cli, ["inspect", str(store)]).stdout
    assert f"  deep + wide, T = 2, online-kmeans, inertia {found['inertia']:.4g}\n" in text


def test_every_option_reaches_the_identity(store: Path) -> None:
    sizes = ("--clusters", "2", "--classes-per-cluster", "2")
    options = ("--method", "minibatch", "--restarts", "3", "--normalise", "--disjoint", "--seed", "4")
    call(store, "--teacher", "wide", *sizes, *options, "--name", "new")
    identity = open_store(store).clustering("new").spec.identity
    assert identity["algorithm"] == "minibatch-kmeans" and identity["seed"] == 4
    assert (identity["restarts"], identity["normalise"], identity["disjoint"]) == (3, True, True)
    assert (
        "minibatch-kmeans, correlations, disjoint sets"
        in CliRunner().invoke(cli, ["inspect", str(store)]).stdout
    )


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (
            ("--teacher", "third", *SIZES),
            65,
            "teachers/third: expected one of the sealed parts of this store",
        ),
        (
            ("--teacher", "wide", "--teacher", "third", *SIZES),
            65,
            "teachers/third: expected one of the sealed",
        ),
        (
            ("--teacher", "wide", "--clusters", "5", "--classes-per-cluster", "2"),
            64,
            "clusters: expected from 1 to the number of classes, 4, found 5; ",
        ),
        (
            ("--teacher", "wide", "--clusters", "2", "--classes-per-cluster", "1"),
            64,
            "classes_per_cluster: expected ",
        ),
        (
            ("--teacher", "wide", "--clusters", "2", "--classes-per-cluster", "4"),
            64,
            "classes_per_cluster: expected at least 2 and fewer than all 4 classes, found 4; ",
        ),
        (
            ("--teacher", "wide", *SIZES, "--disjoint"),
            64,
            "disjoint: expected at most 4 classes in all sets together",
        ),
        (("--teacher", "wide", *SIZES, "--method", "best"), 64, "logitstore: cluster: method: expected "),
        (("--teacher", "wide", *SIZES, "--memory", "0"), 64, "logitstore: cluster: memory: expected "),
        (
            ("--teacher", "wide=0", *SIZES),
            64,
            "--teacher wide=0: expected each teacher once, with a weight above 0",
        ),
        (("--teacher", "wide=much", *SIZES), 64, "--teacher wide=much: expected each teacher once"),
        (("--teacher", "wide", "--teacher", "wide=2", *SIZES), 64, "found wide twice"),
        (
            ("--teacher", "wide", *SIZES, "--figure", "a.gif"),
            64,
            "--figure a.gif: expected a file name that ends in",
        ),
        (("--teacher", "wide", *SIZES, "--figure", "no/where/a.png"), 64, "found a missing folder no/where"),
    ],
)
def test_what_cannot_be_is_one_line(store: Path, options: tuple[str, ...], code: int, expected: str) -> None:
    assert expected in refused(store, *options, code=code)
