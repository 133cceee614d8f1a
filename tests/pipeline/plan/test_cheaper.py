"""A plan advises against a transform where its basis takes more bytes than its codes save."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from support import small_experiment as small

from logitstore.cli.main import cli
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.plan.stage import Plan, _cheaper, plan
from logitstore.storage.encodings.encoding import Encoding
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.top_k import TopK
from logitstore.storage.encodings.transform import Transform

MANY = 60
TRANSFORMS = ["transform = 0.01", "transform = 0.001", "transform = 0.0001"]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """An experiment of 300 rows of three classes."""
    return small.lay_out(tmp_path / "few")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """The same with 60 classes, whose logits move in four directions."""
    path = small.lay_out(tmp_path / "many")
    random = torch.Generator().manual_seed(0)
    weights = {"layer.weight": 3 * torch.randn(MANY, 4, generator=random), "layer.bias": torch.zeros(MANY)}
    save_file(weights, str(path.parent / "line.safetensors"))
    inputs = np.load(path.parent / "data.npz")["inputs"]
    inputs[small.MARKED] = inputs[0]  # a marked row has the same logit for every class
    names = np.array([f"c{number}" for number in range(MANY)])
    np.savez(path.parent / "data.npz", inputs=inputs, labels=np.arange(small.ROWS) % MANY, class_names=names)
    return path


def planned(path: Path) -> Plan:
    store = path.parent / "store.zarr"
    return plan(load_experiment(path), store, Models(path.parent / "models"), device="cpu")


def cheaper(made: Plan) -> dict[str, str | None]:
    return {encoding.name: encoding.cheaper for encoding in made.encodings}


def test_few_rows_of_few_classes_are_advised_against(few: Path) -> None:
    made = planned(few)
    sizes = {encoding.name: encoding.bytes for encoding in made.encodings}
    for name in TRANSFORMS:
        other = cheaper(made)[name]
        assert other is not None
        assert sizes[other] is not None and sizes[name] is not None and sizes[other] <= sizes[name]
    assert {name for name, other in cheaper(made).items() if other is not None} == set(TRANSFORMS)


def test_many_classes_are_not(many: Path) -> None:
    """Negative control."""
    assert set(cheaper(planned(many)).values()) == {None}


def test_a_looser_encoding_is_no_reason(few: Path) -> None:
    """A transform of 1e-2 is compared with error budgets down from it, one of 1e-4 with that of 1e-4 alone."""
    encodings: dict[str, Encoding] = {f"max_kl = {max_kl:g}": ErrorBudget(max_kl) for max_kl in (1e-2, 1e-4)}
    encodings |= {f"transform = {max_kl:g}": Transform(max_kl) for max_kl in (1e-2, 1e-4)}
    encodings["top_k = 1"] = TopK(1)
    sizes = {"max_kl = 0.01": 300, "max_kl = 0.0001": 500, "top_k = 1": 100}
    sizes |= {"transform = 0.01": 310, "transform = 0.0001": 450}
    own = planned(few).own
    plans = {name: replace(own, name=name, bytes=size) for name, size in sizes.items()}
    found = {name: _cheaper(name, encodings, plans) for name in encodings}
    assert {name: other for name, other in found.items() if other} == {"transform = 0.01": "max_kl = 0.01"}
    plans["transform = 0.0001"] = replace(own, name="", bytes=500)
    assert _cheaper("transform = 0.0001", encodings, plans) == "max_kl = 0.0001"
    # At temperatures from 10 on, an error budget of 1e-2 is as tight as 1e-4.
    encodings["transform = 0.0001"] = Transform(1e-4, (10.0, 20.0))
    assert _cheaper("transform = 0.0001", encodings, plans) == "max_kl = 0.01"


def test_a_model_of_logits_is_no_reason(few: Path) -> None:
    """Its logits do not depend on one another, so that it always looks so."""
    text = few.read_text(encoding="utf-8")
    trained = "train = { lr = 1e-2, epochs = 1, batch_size = 64 }"
    few.write_text(text.replace('weights = "line.safetensors"', trained), encoding="utf-8")
    assert set(cheaper(planned(few)).values()) == {None}


def test_the_command_gives_both_sizes(few: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(few.parent)
    call = ["plan", str(few), "--device", "cpu"]
    text = CliRunner().invoke(cli, call, catch_exceptions=False).stdout
    found = re.findall(
        r"^(transform = \S+) does not pay: \S+ KiB in all with its basis, \S+ KiB in (.+)$",
        text,
        re.MULTILINE,
    )
    record = json.loads(CliRunner().invoke(cli, [*call, "--json"], catch_exceptions=False).stdout)
    assert dict(found) == {one["name"]: one["cheaper"] for one in record["encodings"] if one["cheaper"]}
    assert [name for name, _ in found] == TRANSFORMS
    result = CliRunner().invoke(cli, ["plan", str(many), "--device", "cpu"], catch_exceptions=False)
    assert "does not pay" not in result.stdout
