"""The guide docs/guides/dask.md: its example runs as it stands, on the store of the guide to loops."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy
from support.tree import ROOT

import logitstore

GUIDES = ROOT / "docs" / "guides"


def _examples(page: str) -> list[str]:
    text = (GUIDES / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_example_of_the_page_prints_what_numpy_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (only,) = _examples("dask.md")
    for name, source in (("make_store.py", _examples("your-own-loop.md")[0]), ("statistics.py", only)):
        (tmp_path / name).write_text(source, encoding="utf-8")
        runpy.run_path(name)
    store = logitstore.open_store("small.zarr")
    logits = store.teachers["linear"].read(slice(None))
    mean = entropy(softmax(logits, axis=1), axis=1).mean()
    accuracy = np.mean(logits.argmax(axis=1) == store.samples.labels)
    assert capsys.readouterr().out == f"entropy {mean:.3f} nats, accuracy {accuracy:.1%}\n"
