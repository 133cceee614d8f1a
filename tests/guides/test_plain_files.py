"""The guide of plain files: its call runs, and the files of an export are those that it lists."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from support import stores
from support.stores import Teacher
from support.tree import ROOT

import logitstore

PAGE = (ROOT / "docs/guides/plain-files.md").read_text(encoding="utf-8")


def test_the_call_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", stores.some_logits(1, 14, 5)[0])
    (call,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
        if "import_" in block
    ]
    Path("example.py").write_text(call, encoding="utf-8")
    given = {"labels": np.arange(14) % 5, "ids": list(range(14))}
    done = runpy.run_path("example.py", init_globals=given)["done"]
    assert done.digest == logitstore.open_store("mnist.zarr").digest


def test_the_guide_lists_the_files_of_an_export(tmp_path: Path) -> None:
    store = stores.make(tmp_path / "store.zarr", rows=14, teachers={"wide": Teacher()}).store
    logitstore.export_logits(store, "wide", tmp_path / "out/wide.npy")
    assert {one.name for one in (tmp_path / "out").iterdir()} <= set(re.findall(r"`(wide[.\w]+)`", PAGE))
    (line,) = [line for line in PAGE.splitlines() if line.startswith("| `wide.parquet`")]
    assert set(re.findall(r"`(\w+)`", line)) == {"row", "source", "view", "id", "label", "peak"}
