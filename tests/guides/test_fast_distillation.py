"""The guide of FKD's recipe: its files run as they stand, and its bytes are those that the benchmark counts."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from support.tree import ROOT

import logitstore
from logitstore.storage.describe import describe

PAGE = (ROOT / "docs" / "guides" / "fast-distillation.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


SMALLER = (
    ("per_class=2", "per_class=1"),
    ("epochs=6", "epochs=4"),
    ("lr=3e-3, epochs=4", "lr=1e-2, epochs=1"),
    ("batch_size=128, views", "batch_size=128, rows=slice(0, 100), views"),
)
"""Changes to the files, so that they run in seconds."""


def figures(name: str) -> list[str]:
    """Return the cells of a row of the table of bytes."""
    (row,) = re.findall(rf"^\| {re.escape(name)} \| (.*) \|$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.usefixtures("without_fsync")
def test_the_files_run_and_a_student_learns_from_the_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(FILES) == ["pictures.py", "teaching.py", "distilling.py", "own_loop.py"]
    assert all(old in "".join(FILES.values()) for old, _ in SMALLER)
    for name, source in FILES.items():
        for old, new in SMALLER:
            source = source.replace(old, new)
        (tmp_path / name).write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    runpy.run_path("distilling.py")
    errors, shape = capsys.readouterr().out.split(maxsplit=1)
    assert int(errors) < 700, f"{errors} of 1,000 errors; 999 by chance"
    assert shape == "(4, 1000, 1000)\n"

    capture = describe(logitstore.open_store("crops.zarr"))[0]["captures"][0]
    row, basis, *_ = figures("transform, max_kl 1e-2")
    # The teacher has half the images here, and another basis.
    assert capture["row_bytes"] == pytest.approx(float(row), rel=0.3)
    assert capture["transform"]["basis_bytes"] / 8000 == pytest.approx(float(basis), rel=0.3)

    runpy.run_path("own_loop.py")
    assert capsys.readouterr().out.startswith("4000 crops of (3, 16, 16), last loss ")
    # Negative control: crops that the teacher did not see.
    other = Path("own_loop.py").read_text(encoding="utf-8").replace("seed=0", "seed=1")
    Path("other.py").write_text(other, encoding="utf-8")
    with pytest.raises(logitstore.LogitStoreError, match="expected the input that the teacher saw"):
        runpy.run_path("other.py")


def test_the_bytes_of_fkd_are_as_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fkd

    for crops in (fkd.CROPS, fkd.MANY_CROPS):
        arrays, file = fkd.fkd_bytes(crops)
        cell, *_ = figures(f"FKD's files, {crops} crops an image")
        assert cell == f"{file:.1f}, {arrays:.1f} of them arrays"
    assert fkd.fkd_bytes(1)[0] == 4 * 4 + 1 + 2 * 5 * 4
    sys.modules.pop("fkd")


def test_every_encoding_of_the_benchmark_is_in_the_table() -> None:
    named = re.findall(
        r'^    "([^"]+)": ', (ROOT / "benchmarks" / "fkd.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(named) == 4
    for name in named:
        assert figures(name)
