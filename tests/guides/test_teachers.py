"""The guide docs/guides/teachers.md: its files are made and its experiment is run, in its order."""

import re
import runpy
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from support.tree import ROOT

from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.models.networks import mlp
from logitstore.pipeline.run import run

PAGE = (ROOT / "docs" / "guides" / "teachers.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


def test_the_files_of_the_page_are_made_and_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, source in BLOCKS.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    runpy.run_path(str(tmp_path / "make_files.py"))
    with mock.patch("os.fsync"):
        store = run(load_experiment(tmp_path / "from-files.toml"), tmp_path / "out", device="cpu").store
    by_factory, exported = (store.teachers[name].read(slice(None)) for name in ("by-factory", "exported"))
    # The same network twice; an exported graph may sum in another order.
    np.testing.assert_allclose(by_factory, exported, atol=2e-3)
    assert np.ptp(exported, axis=1).min() > 0.01


def test_the_ready_teacher_of_the_page_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the other test, behind the key of a checkpoint."""
    monkeypatch.chdir(tmp_path)
    for name, source in BLOCKS.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    torch.manual_seed(0)
    state = mlp([20], input_shape=(8, 8), num_classes=10).state_dict()
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pth")
    with mock.patch("os.fsync"):
        store = run(load_experiment(tmp_path / "ready.toml"), tmp_path / "out", device="cpu").store
    assert np.ptp(store.teachers["loaded"].read(slice(None)), axis=1).min() > 0.01


def test_every_file_of_the_page_is_used_here() -> None:
    assert list(BLOCKS) == ["make_files.py", "from-files.toml", "my_teachers.py", "ready.toml"]
