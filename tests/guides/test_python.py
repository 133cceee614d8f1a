"""The scripts of docs/guides/python.md: they run as they stand, and a second run finds everything done."""

import re
import runpy
from pathlib import Path

import pytest
from support import experiments
from support.tree import ROOT

import logitstore

PAGE = (ROOT / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.usefixtures("without_fsync")
def test_the_scripts_run_and_find_their_work_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(SCRIPTS) == ["in_hand.py", "resumed.py", "watched.py"]
    monkeypatch.chdir(tmp_path)
    for name, source in SCRIPTS.items():
        Path(name).write_text(source, encoding="utf-8")
        runpy.run_path(name)
    said = capsys.readouterr().out
    errors = int(said.split()[0])
    assert 0 < errors < 60, f"{errors} of 500 errors"
    assert Path("runs/small/students/student-seed0.safetensors").is_file()
    store = logitstore.open_store("digits.zarr")
    assert (list(store.teachers), store.clusterings) == (["wide"], ["wide-3x3"])
    before = experiments.states(tmp_path)
    for name in SCRIPTS:
        runpy.run_path(name)
    assert experiments.states(tmp_path) == before
    assert capsys.readouterr().out == said


def test_every_form_of_data_set_is_tried() -> None:
    """The table of the page, and the tests that hold it."""
    tried = (ROOT / "tests" / "pipeline" / "in_hand" / "test_data_sets.py").read_text(encoding="utf-8")
    for name in ("TensorDataset", "DataLoader", "PIL", "classes", "ClassLabel", "without_labels"):
        assert name in tried, name
