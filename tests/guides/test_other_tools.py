"""The scripts of docs/guides/other-tools.md: each decodes a capture to the logits of our reader."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tree import ROOT

import logitstore

PAGE = (ROOT / "docs" / "guides" / "other-tools.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
CLOSE = 1e-6
"""Largest difference to our reader, as a share of the range of a row."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts, and the store of the page: two views of rows of rank 12, and some that escape."""
    path = tmp_path_factory.mktemp("tools")
    random = np.random.default_rng(0)
    head = random.standard_normal((12, 40), np.float32)
    logits = 3 * random.standard_normal((2, 500, 12), np.float32) @ head
    calibration = logits[0, ::2].copy()
    logits[:, 7::50] = 9 * random.standard_normal((2, 10, 40), np.float32)
    store = logitstore.create_store(
        path / "mine.zarr", num_classes=40, digests=np.zeros(500, np.uint64), block_rows=256
    )
    for name, encoding in (("whole", {"transform": {"max_kl": 1e-3}}), ("budget", {"max_kl": 1e-3})):
        with store.capture(
            name, provenance={}, views=2, encoding=encoding, calibration=calibration
        ) as capture:
            for view in (0, 1):
                for rows in capture.missing_blocks(view):
                    capture.write(rows, logits[view, rows.start : rows.stop], view, np.zeros(len(rows), "u8"))
    for name, source in SCRIPTS.items():
        (path / name).write_text(source, encoding="utf-8")
    return path


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder as the current one, from which `decode` is imported afresh."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "decode", raising=False)
    return folder


def expected(folder: Path, teacher: str = "whole") -> NDArray[np.float32]:
    """Return the logits of our reader: (view, row, class)."""
    capture = logitstore.open_store(folder / "mine.zarr").teachers[teacher]
    return np.stack([capture.read(slice(None), view) for view in (0, 1)])


def difference(found: NDArray[np.floating], wanted: NDArray[np.float32]) -> float:
    """Return the largest difference of a logit, as a share of its row's range."""
    assert found.shape == wanted.shape
    return float((np.abs(found - wanted).max(axis=-1) / np.abs(wanted).max(axis=-1)).max())


def logits_of(script: Path) -> NDArray[np.floating]:
    """Run a script and return its logits, read where they are lazy."""
    return np.asarray(runpy.run_path(str(script))["logits"])


@pytest.mark.parametrize("name", ["with_zarr.py", "with_dask.py", "with_tensorstore.py", "with_xarray.py"])
def test_a_tool_decodes_a_transform_as_our_reader_does(name: str, here: Path) -> None:
    assert difference(logits_of(here / name), expected(here)) <= CLOSE


def test_zarrs_decodes_it_as_our_reader_does(here: Path) -> None:
    """In a process of its own, since zarrs is chosen for a whole process."""
    source = SCRIPTS["with_zarrs.py"] + (
        "assert type(part['codes']._async_array.codec_pipeline).__name__ == 'ZarrsCodecPipeline'\n"
        "import numpy\nnumpy.save('zarrs.npy', logits)\n"
    )
    (here / "zarrs_saved.py").write_text(source, encoding="utf-8")
    done = subprocess.run([sys.executable, "zarrs_saved.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert difference(np.load(here / "zarrs.npy"), expected(here)) <= CLOSE


def test_codes_of_an_error_budget_are_one_product_away(here: Path) -> None:
    assert difference(logits_of(here / "budget.py"), expected(here, "budget")) <= CLOSE


def test_the_store_of_these_tests_has_escaped_rows(folder: Path) -> None:
    refine = logitstore.open_store(folder / "mine.zarr").teachers["whole"].reader.read("refine", slice(None))
    assert 0 < int((refine == 255).sum()) < len(refine) // 10


@pytest.mark.parametrize("changed", ["== 255", "/ -2.0", "& 1", "+ centre"])
def test_a_wrong_line_would_be_noticed(changed: str, here: Path) -> None:
    """Negative control: without the escaped rows, the refinement, the signs or the centre the logits differ."""
    wrong = {"== 255": "== 256", "/ -2.0": "* 0.0", "& 1": "& 0", "+ centre": ""}[changed]
    source = SCRIPTS["decode.py"]
    assert source.count(changed) == 1
    (here / "decode.py").write_text(source.replace(changed, wrong), encoding="utf-8")
    try:
        assert difference(logits_of(here / "with_zarr.py"), expected(here)) > 1e3 * CLOSE
    finally:
        (here / "decode.py").write_text(source, encoding="utf-8")


def test_every_script_of_the_page_is_run_here() -> None:
    assert list(SCRIPTS) == [
        "budget.py",
        "decode.py",
        "with_zarr.py",
        "with_zarrs.py",
        "with_dask.py",
        "with_tensorstore.py",
        "with_xarray.py",
    ]
    assert PAGE.count("```python") == len(SCRIPTS)
