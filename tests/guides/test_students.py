"""The guide docs/guides/students.md: its student is begun from a file, trained, and loaded in three lines."""

import re
import runpy
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from support.tree import ROOT

from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.run import run

PAGE = (ROOT / "docs" / "guides" / "students.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


def test_the_student_of_the_page_is_begun_trained_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(BLOCKS) == ["make_pretrained.py", "students.toml", "load.py"]
    monkeypatch.chdir(tmp_path)
    for name, source in BLOCKS.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    runpy.run_path("make_pretrained.py")
    with mock.patch("os.fsync"):
        run(load_experiment("students.toml"), Path("runs/students"), device="cpu")
    assert "begins with pretrained.safetensors, but for a new head of 10 classes" in caplog.text
    student = runpy.run_path("load.py")["student"]
    kept = load_file("runs/students/models/students/small-seed0.safetensors")
    assert all(torch.equal(student.state_dict()[name], tensor) for name, tensor in kept.items())
    assert student(torch.zeros(2, 8, 8, dtype=torch.uint8)).shape == (2, 10)
