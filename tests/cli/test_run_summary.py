"""The summary of `run`: the figures that the single stages print of the same work."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import small_experiment as small

from logitstore.cli.main import cli

VALIDATED = """
[[teacher]]
name = "deep"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [4] }
train = { lr = 1e-2, epochs = 2, batch_size = 64, validation = 0.2 }

[cluster]
teacher = "deep"
clusters = 2
classes_per_cluster = 2

[specialists]
train = { lr = 1e-2, epochs = 1, batch_size = 64, validation = 0.2 }

[[student]]
name = "seen"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [4] }
teachers = ["line"]
train = { lr = 1e-2, epochs = 1, batch_size = 64, validation = 0.2 }
"""


def call(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.stderr, result.stdout)
    return result.stdout


def figures_of_stages(printed: str) -> dict[str, str]:
    """Return the figures in the output of stages, by kind and name."""
    captured = re.findall(r"^captured  (\S+)  \((.*)\)$", printed, re.MULTILINE)
    validated = re.findall(r"^validated (\S+): (.*)$", printed, re.MULTILINE)
    return {f"captured {name}": told for name, told in captured} | {
        f"validated {name}": told for name, told in validated
    }


def figures_of_run(printed: str) -> dict[str, str]:
    """Return the same from the list of the work that `run` did."""
    found = {}
    for name, told in re.findall(r"^  (?:capture|train) \w+ (\S+)  \((.*)\)$", printed, re.MULTILINE):
        tally, _, validation = told.partition("validated: ")
        if tally:
            found[f"captured {name}"] = tally.removesuffix("; ")
        if validation:
            found[f"validated {name}"] = validation
    return found


def test_run_prints_the_figures_of_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    small.lay_out(tmp_path)
    file = small.write_experiment(tmp_path, more=VALIDATED)
    run = call("run", file, "--out", tmp_path / "run")
    store = tmp_path / "stages" / "store.zarr"
    printed = call("cache", file, store)
    printed += call("cluster", store, "--teacher", "deep", "--clusters", 2, "--classes-per-cluster", 2)
    printed += call("train", file, store)
    expected = figures_of_stages(printed)
    assert set(expected) == {
        "captured line",
        "captured deep",
        "validated deep",
        "validated deep-2x2-0",
        "validated deep-2x2-1",
        "validated seen-seed0",
    }
    assert figures_of_run(run) == expected
    assert json.loads(call("run", file, "--out", tmp_path / "run", "--json"))["done"] == []


def test_a_figure_that_run_leaves_out_is_noticed() -> None:
    """Negative control."""
    stages = "captured  wide  (97.00% right, 0.1 nats a row)\nvalidated wide: last epoch: 96.00% right\n"
    whole = "  capture teacher wide  (97.00% right, 0.1 nats a row; validated: last epoch: 96.00% right)\n"
    assert figures_of_run(whole) == figures_of_stages(stages)
    assert figures_of_run("  capture teacher wide\n") == {}
    assert set(figures_of_run(whole.replace("; validated: last epoch: 96.00% right", ""))) == {
        "captured wide"
    }
