"""The notes of a capture: all its causes are recorded, shown, and compared before a teacher is loaded.

Each test changes one thing of a capture that is whole, or begun.
"""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner
from support import small_experiment as small

from logitstore.cli.main import cli
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.cache.todo import find_todo
from logitstore.pipeline.experiment.document import load_experiment
from logitstore.pipeline.run import run
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.errors import LogitStoreError, SpecMismatch

MIRRORED = """

def mirrored():
    return lambda example, generator: example[::-1].copy()
"""


def lay_out(folder: Path) -> Path:
    """The small experiment with two views and an augmentation of its own; no student."""
    small.lay_out(folder)
    (folder / "views_of_mine.py").write_text(MIRRORED)
    return write(folder)


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the experiment with some of its text changed."""
    views = 'views = 2\naugment = { factory = "views_of_mine:mirrored" }\nbatch_size = 32'
    path = small.write_experiment(folder, ("batch_size = 32", views), *changes)
    path.write_text(path.read_text().partition("[[student]]")[0])
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the experiment and its store."""
    folder = tmp_path_factory.mktemp("whole")
    path = lay_out(folder)
    with mock.patch("os.fsync"):
        run(load_experiment(path), folder / "out", device="cpu")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, whose modules are not those of another copy."""
    places = [entry for entry in sys.path if not (Path(entry) / "views_of_mine.py").exists()]
    monkeypatch.setattr(sys, "path", places)
    for name in ("faulty", "views_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return small.copy_of(whole, tmp_path / "copy")


def run_without_teachers(folder: Path) -> str:
    """Run it where no teacher may be loaded; what is said, empty where there is nothing to do."""
    no_teacher = mock.patch(
        "logitstore.pipeline.cache.stage.load_without_head", side_effect=AssertionError("loaded")
    )
    with no_teacher, mock.patch("os.fsync"):
        try:
            run(load_experiment(folder / "small.toml"), folder / "out", device="cpu")
        except LogitStoreError as error:
            assert isinstance(error, SpecMismatch), error
            return str(error)
    return ""


def arguments(folder: Path) -> None:
    write(folder, ('factory = "faulty:linear"', 'factory = "faulty:linear"\nargs = { spoilt = "2" }'))


def another_factory(folder: Path) -> None:
    write(folder, ("faulty:linear", "faulty:pair"))


def weights(folder: Path) -> None:
    file = folder / "line.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def augmentation_source(folder: Path) -> None:
    (folder / "views_of_mine.py").write_text(MIRRORED.replace("[::-1]", "[:]"))


def augmentation_seed(folder: Path) -> None:
    write(folder, ('"views_of_mine:mirrored" }', '"views_of_mine:mirrored", seed = 5 }'))


def precision(folder: Path) -> None:
    write(folder, ("[cache]", '[cache]\nprecision = "bfloat16"'))


def batches(folder: Path) -> None:
    write(folder, ("batch_size = 32", "batch_size = 16"))


def encoding(folder: Path) -> None:
    write(folder, ("[cache]", '[cache]\nencoding = "float32"'))


def data(folder: Path) -> None:
    small.write_data(folder / "data.npz", change=7)


def order(folder: Path) -> None:
    write(folder, ('order = "as_is"', 'order = "shuffled"'))


CHANGES: dict[Callable[[Path], None], str] = {
    arguments: "teachers/line: expected teacher.args.spoilt = nothing, with which it was {}, found '2'; ",
    another_factory: "teacher.factory = 'faulty:linear', with which it was {}, found 'faulty:pair'; ",
    weights: "teachers/line: expected teacher.weights = 'sha256:",
    augmentation_source: "teachers/line: expected augmentation.source = 'sha256:",
    augmentation_seed: "teachers/line: expected augmentation.seed = 0, with which it was {}, found 5; ",
    precision: "teachers/line: expected precision = 'float32', with which it was {}, found 'bfloat16'; ",
    batches: "teachers/line: expected batch_size = 32, with which it was {}, found 16; ",
    encoding: "teachers/line: expected encoding",
    data: "samples: expected transfer_set = 'sha256:",
    order: "samples: expected order",
}


def make_begun(folder: Path) -> None:
    """Take the seal of the capture away: samples are sealed, the capture has all blocks but the last."""
    shutil.rmtree(folder / "out")
    from logitstore.storage.parts.writer import CaptureWriter

    write_block, calls = CaptureWriter.write, []

    def killed(self: CaptureWriter, *arguments: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        write_block(self, *arguments, **more)

    with (
        mock.patch.object(CaptureWriter, "write", killed),
        mock.patch("os.fsync"),
        pytest.raises(KeyboardInterrupt),
    ):
        run(load_experiment(folder / "small.toml"), folder / "out", device="cpu")
    begun = open_store(folder / "out" / "store.zarr").begun("teachers/line")
    assert begun is not None and begun.blocks_done == 4


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_a_capture_follows_from_is_compared_before_a_teacher_is_loaded(
    folder: Path, change: Callable[[Path], None]
) -> None:
    assert run_without_teachers(folder) == ""
    change(folder)
    assert CHANGES[change].format("captured") in run_without_teachers(folder)


@pytest.mark.parametrize(
    "change", [c for c in CHANGES if c not in (data, order)], ids=lambda change: change.__name__
)
def test_so_it_is_of_one_that_is_begun(folder: Path, change: Callable[[Path], None]) -> None:
    make_begun(folder)
    change(folder)
    said = run_without_teachers(folder)
    assert CHANGES[change].format("begun") in said
    assert said.endswith("with the 4 blocks that are there")


def test_a_capture_that_is_begun_is_not_gone_on_with_from_other_source(folder: Path) -> None:
    make_begun(folder)
    module = folder / "faulty.py"
    module.write_text(module.read_text() + "\n# another line\n")
    del sys.modules["faulty"]  # as in another process
    assert "teachers/line: expected source.faulty.py = 'sha256:" in run_without_teachers(folder)


def test_nor_is_it_where_the_source_changes_after_it_was_looked_at(folder: Path) -> None:
    """While other teachers were trained, say: the module is imported when the teacher is loaded."""
    make_begun(folder)
    work = Workspace.of_folder(load_experiment(folder / "small.toml"), folder / "out", device="cpu")
    todo = find_todo(work)
    before = small.files(folder / "out")
    module = folder / "faulty.py"
    module.write_text(module.read_text() + "\n# another line\n")
    del sys.modules["faulty"]  # as in another process
    with pytest.raises(SpecMismatch) as caught, mock.patch("os.fsync"):
        cache(work, todo)
    assert caught.value.expected.startswith("source.faulty.py = 'sha256:")
    assert small.files(folder / "out") == before


def test_of_a_sealed_capture_a_change_of_the_source_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = folder / "faulty.py"
    module.write_text(module.read_text() + "\n# another line\n")
    with caplog.at_level(logging.WARNING, logger="logitstore.pipeline.cache.todo"):
        assert run_without_teachers(folder) == ""
    assert "teacher line: faulty.py has changed since it was captured; its capture is kept" in caplog.text


def test_a_capture_without_that_note_is_gone_on_with(folder: Path) -> None:
    """As captures were made before there was such a note."""
    with mock.patch("logitstore.pipeline.cache.notes.source_note", return_value={}):
        make_begun(folder)
    (folder / "faulty.py").write_text(small.MODULE + "\n# another line\n")
    with mock.patch("os.fsync"):
        run(load_experiment(folder / "small.toml"), folder / "out", device="cpu")
    assert "source" not in open_store(folder / "out" / "store.zarr").teachers["line"].provenance


def test_inspect_shows_all_of_it(whole: Path) -> None:
    store = str(whole / "out" / "store.zarr")
    text = CliRunner().invoke(cli, ["inspect", store]).output
    for key in (
        "teacher.factory = faulty:linear",
        "teacher.weights = sha256:",
        "augmentation.factory = views_of_mine:mirrored",
        "augmentation.source = sha256:",
        "transfer_set = sha256:",
        "precision = float32",
        "batch_size = 32",
        "device = cpu",
        "torch = ",
        "numpy = ",
        "python = ",
        "source.faulty.py = sha256:",
    ):
        assert f"  {key}" in text, key
    shown = json.loads(CliRunner().invoke(cli, ["inspect", store, "--json"]).output)
    made_by = shown["captures"][0]["provenance"]
    assert made_by["source"].keys() == {"faulty.py", "views_of_mine.py"}
    assert made_by["transfer_set"] == shown["samples"]["identity"]["transfer_set"]
    assert {"teacher", "augmentation", "precision", "device", "torch"} <= set(made_by)
