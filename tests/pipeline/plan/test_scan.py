"""A scan: every example that cannot be used, at once, with the first ten by name."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support import small_experiment as small
from support.messages import Sentences

from logitstore.cli.main import cli
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.plan.scan import scan_sets
from logitstore.storage.errors import BadDataError, FactoryError

IMAGES = (
    'arrays"\nargs = { file = "data.npz" }\norder',
    'image_folder"\nargs = { root = "images" }\norder',
)
OWN = ('logitstore.pipeline.datasets:arrays"\nargs = { file = "data.npz" }\norder', 'sets:made"\norder')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small.lay_out(tmp_path)
    return tmp_path


def images(folder: Path, bad: int, total: int = 30) -> None:
    """Write images, the first of which are bad."""
    for number in range(total):
        path = folder / "images" / "abc"[number % 3] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), number).save(path)
    for path in sorted((folder / "images").rglob("*.png"))[:bad]:
        path.write_text("no image")


def scanned(folder: Path, *changes: tuple[str, str]) -> Result:
    path = small.write_experiment(folder, *changes)
    return CliRunner().invoke(cli, ["plan", str(path), "--store", str(folder / "s.zarr"), "--scan"])


def test_all_bad_files_are_listed(folder: Path, sentence: Sentences) -> None:
    images(folder, bad=4)
    Image.new("L", (3, 2)).save(folder / "images/c/29.png")
    result = scanned(folder, IMAGES)
    assert result.exit_code == 65 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 4 + 1 + 1
    sentence(lines[0])
    for line, name in zip(lines, ("a/00", "a/03", "a/06", "a/09", "c/29"), strict=False):
        assert f"{name}.png: expected " in line
    assert "expected 2 x 2 pixels" in lines[4], "of another size than the first that is good"
    sentence(lines[5])


def test_many_are_counted(folder: Path, sentence: Sentences) -> None:
    images(folder, bad=23)
    lines = scanned(folder, IMAGES).stderr.splitlines()
    assert len(lines) == 10 + 1
    sentence(lines[10])


def test_good_sets_are_planned(folder: Path) -> None:
    """List nothing where nothing is bad: the negative control. The plan follows."""
    result = scanned(folder)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(
        f"transfer_set: all {small.ROWS} examples can be used\nevaluation_set: all {small.ROWS} examples can be used\n"
    )
    assert "teacher passes" in result.stdout


SETS = """
import numpy as np


class Made:
    class_names = ("a", "b", "c")

    def __len__(self):
        return 600

    def __getitem__(self, index):
        if index in (0, 300):
            raise OSError(f"no example {index}")
        shape = (5,) if index == 400 else (4,)
        label = 7 if index == 500 else index % 3
        return np.zeros(shape, np.float32 if index != 599 else np.float16), label


def made():
    return Made()


def nothing():
    return 5
"""


def test_sets_of_ones_own_are_read_one_by_one_where_they_fail(folder: Path) -> None:
    (folder / "sets.py").write_text(SETS)
    experiment = load_experiment(small.write_experiment(folder, OWN))
    calls: list[tuple[str, int, int]] = []

    def progress(task: str, done: int, total: int, unit: str = "rows", detail: str = "") -> None:
        calls.append((task, done, total))

    with pytest.raises(BadDataError) as caught:
        scan_sets(experiment, progress)
    first, *others, count = [str(caught.value), *caught.value.__notes__]
    assert "example 0: expected an example, found OSError: no example 0" in first
    for line, text in zip(
        others,
        (
            "example 300",
            "example 400: expected float32 of shape (4,), as in example 1",
            "example 500",
            "example 599",
        ),
        strict=True,
    ):
        assert text in line
    assert count == "5 of 600 examples cannot be used"
    assert calls[-1] == ("scanning transfer_set", 600, 600)


def test_inputs_of_a_dtype_that_no_store_holds_are_listed(folder: Path) -> None:
    (folder / "sets.py").write_text(
        SETS.replace("np.float32 if index != 599 else np.float16", "np.complex64")
    )
    with pytest.raises(BadDataError) as caught:
        scan_sets(load_experiment(small.write_experiment(folder, OWN)))
    assert "example 1: expected inputs of dtype" in caught.value.__notes__[0]
    assert caught.value.__notes__[-1].endswith("600 of 600 examples cannot be used")


def test_what_is_no_data_set_is_refused(folder: Path) -> None:
    (folder / "sets.py").write_text(SETS)
    change: Any = (OWN[0], OWN[1].replace("made", "nothing"))
    with pytest.raises(FactoryError, match="expected a map-style data set"):
        scan_sets(load_experiment(small.write_experiment(folder, change)))
