"""Files that factories read: their contents identify what is made from them."""

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import experiments
from support.messages import Sentences

from logitstore.pipeline.cache import todo as caching
from logitstore.pipeline.evaluate import scores as scoring
from logitstore.pipeline.evaluate.scores import subjects
from logitstore.pipeline.evaluation_set import EvaluationExamples
from logitstore.pipeline.experiment import document as experiment_file
from logitstore.pipeline.experiment.training import Factory
from logitstore.pipeline.factories import file_digest, read_files
from logitstore.pipeline.factories.file_digest import folder_digest
from logitstore.pipeline.models.build import build_model
from logitstore.pipeline.specialists.todo import find_specialists
from logitstore.pipeline.train import todo as students
from logitstore.pipeline.train.todo import missing_students
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.errors import FactoryError, SpecMismatch

MODULE = """
from dataclasses import dataclass
from pathlib import Path

from logitstore.pipeline.models import mlp

BESIDE = Path(__file__).with_name("beside.txt")

@dataclass
class Tables:
    first: Path

def net(hidden, stats: Path | None = None, *, input_shape, num_classes):
    float(stats.read_text() if stats else 0)
    return mlp(hidden, input_shape=input_shape, num_classes=num_classes)

def text(stats: str): ...
def listed(stats: list[Path]): ...
def nested(tables: Tables): ...
def default(stats: Path = BESIDE): ...
def writes(stats: Path, *, input_shape, num_classes):
    stats.write_text("2")

def scaled(stats: Path):
    factor = int(float(stats.read_text()))
    return lambda row, generator: (row + factor).astype(row.dtype)
"""


def forget_modules() -> None:
    """What is imported next is imported anew, as in another process."""
    for name in [name for name in sys.modules if name.startswith("rf_")]:
        del sys.modules[name]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module and two files."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(read_files, "_warned", set())
    forget_modules()
    (tmp_path / "rf_nets.py").write_text(MODULE)
    (tmp_path / "scale.txt").write_text("1")
    (tmp_path / "beside.txt").write_text("1")
    yield tmp_path
    forget_modules()


def found(base: Path, function: str, **args: Any) -> dict[str, str]:
    table = Factory(factory=f"rf_nets:{function}", args=args)
    return read_files.files_read([table], base=base)


@pytest.mark.parametrize(
    ("function", "args", "names"),
    [
        ("net", {"hidden": [6], "stats": "scale.txt"}, {"scale.txt"}),
        ("net", {"hidden": [6]}, set()),
        ("net", {"hidden": [6], "stats": "absent.txt"}, set()),
        ("text", {"stats": "scale.txt"}, set()),
        ("listed", {"stats": ["scale.txt", "beside.txt"]}, {"scale.txt", "beside.txt"}),
        ("default", {}, {"beside.txt"}),
        ("default", {"stats": "./scale.txt"}, {"./scale.txt"}),
        ("absent", {"stats": "scale.txt"}, {"scale.txt"}),
    ],
)
def test_the_files_are_the_paths_that_a_factory_is_called_with(
    base: Path, function: str, args: dict[str, Any], names: set[str]
) -> None:
    assert found(base, function, **args).keys() == names


def test_a_path_inside_an_object_is_where_the_factory_looks_for_it(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pydantic makes the object, and nothing moves its paths to the experiment's folder."""
    assert found(base, "nested", tables={"first": "scale.txt"}) == {}
    monkeypatch.chdir(base)
    assert found(base, "nested", tables={"first": "scale.txt"}).keys() == {"scale.txt"}


def test_nothing_is_imported_where_no_path_can_be(base: Path) -> None:
    (base / "rf_plain.py").write_text("from pathlib import Path\ndef net(width: int): ...\n")
    table = Factory(factory="rf_plain:net", args={"width": 3})
    assert read_files.files_read([table], base=base) == {}
    assert "rf_plain" not in sys.modules
    found(base, "net", hidden=[6])
    assert "rf_nets" in sys.modules


def test_a_file_that_is_named_as_a_text_is_warned_of(
    base: Path, caplog: pytest.LogCaptureFixture, sentence: Sentences
) -> None:
    with caplog.at_level(logging.WARNING):
        found(base, "text", stats="scale.txt")
        found(base, "text", stats="scale.txt")
        found(base, "net", hidden=[6], stats="scale.txt")
    (record,) = caplog.records
    sentence(record.getMessage())
    assert "the content of scale.txt is not compared" in record.getMessage()


def test_a_folder_that_holds_the_experiment_is_not_digested(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its results lie there, so it changes with every run."""
    with caplog.at_level(logging.WARNING):
        assert found(base, "net", hidden=[6], stats=".") == {}
    assert "holds the experiment file, so its content is not compared" in caplog.text


def test_a_file_that_changes_while_it_is_read_is_refused(base: Path, sentence: Sentences) -> None:
    table, experiment = (
        Factory(factory="rf_nets:writes", args={"stats": "scale.txt"}),
        work_of(base, content()).experiment,
    )
    with pytest.raises(FactoryError) as caught:
        build_model(table, experiment, input_shape=(8, 8), num_classes=3, seed=0)
    sentence(caught.value)
    assert caught.value.expected.startswith("the file scale.txt as it was before the call")


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tables" / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "deep/c.txt"):
        (tmp_path / "tables" / name).write_text(name)
    (tmp_path / "outside.txt").write_text("1")
    (tmp_path / "tables" / "link").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "tables" / "around").symlink_to(tmp_path)
    return tmp_path / "tables"


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda folder: (folder / "deep" / "c.txt").write_text("other.txt_"),
    "name": lambda folder: (folder / "a.txt").rename(folder / "z.txt"),
    "exchange": lambda folder: (
        (folder / "a.txt").write_text("b.txt"),
        (folder / "b.txt").write_text("a.txt"),
    ),
    "new": lambda folder: (folder / "deep" / "new").touch(),
    "gone": lambda folder: (folder / "b.txt").unlink(),
    "link": lambda folder: ((folder / "link").unlink(), (folder / "link").symlink_to("a.txt")),
}


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_FILES", None])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_a_folder_is_seen(
    folder: Path, change: str, limit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a sample, which holds all of these few files."""
    if limit is not None:
        monkeypatch.setattr(file_digest, limit, 1)
    before = folder_digest(folder)
    CHANGES[change](folder)
    assert folder_digest(folder) != before


@pytest.mark.parametrize("limit", ["MOST_BYTES", None])
def test_times_links_and_caches_are_no_change(
    folder: Path, limit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setattr(file_digest, limit, 1)
    before = folder_digest(folder)
    os.utime(folder / "a.txt", (1, 1))
    (folder.parent / "outside.txt").write_text("2")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").touch()
    copy = shutil.copytree(folder, folder.parent / "copy", symlinks=True)
    assert folder_digest(folder) == folder_digest(copy) == before


def test_a_large_folder_counts_by_a_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change in the middle of a large file is then not seen, and is seen in a folder within the limits."""
    path = folder / "large"
    path.write_bytes(bytes(1 << 18))

    def changed() -> bool:
        path.write_bytes(bytes(1 << 18))
        before = folder_digest(folder)
        path.write_bytes(bytes(1 << 17) + b"1" + bytes((1 << 17) - 1))
        return folder_digest(folder) != before

    assert changed()
    monkeypatch.setattr(file_digest, "MOST_BYTES", 1 << 10)
    assert not changed()


# The doors of an experiment

NET: dict[str, Any] = {"factory": "rf_nets:net", "args": {"hidden": [6], "stats": "scale.txt"}}


def content(**changes: Any) -> dict[str, Any]:
    """A teacher and a student that read a file."""
    document = experiments.whole_document() | {
        "teacher": [experiments.teacher("wide", **NET)],
        "student": [experiments.student("a", **NET, train=experiments.train(seeds=[0]))],
    }
    return document | changes


def work_of(base: Path, document: dict[str, Any]) -> Workspace:
    return Workspace.of_folder(experiments.parsed(document, base), base / "out", device="cpu")


def keys_of(work: Workspace) -> list[str]:
    assert work.experiment.evaluation_set is not None
    return [subject.key for subject in subjects(work, EvaluationExamples(work.experiment, work.rows))]


@pytest.fixture
def done(base: Path) -> Path:
    experiments.write_data(base)
    experiments.run_document(content(), base, base / "out")
    return base


def test_a_trained_teacher_and_its_capture(done: Path) -> None:
    again = experiments.run_document(content(), done, done / "out")
    assert not again.done
    (done / "scale.txt").write_text("2")
    with pytest.raises(SpecMismatch) as caught:
        experiments.run_document(content(), done, done / "out")
    assert caught.value.expected.startswith("files_read.scale.txt = 'sha256:")


def test_a_student_and_its_score_and_specialists(done: Path) -> None:
    """All that the file is part of, seen one by one; nothing else is."""
    work = work_of(done, content())
    record = dict(work.models.recorded_identity("teachers", "wide") or {})
    with mock.patch.object(caching, "teacher_identity", return_value=record):
        before, scores = find_specialists(work), keys_of(work)
        assert all(before.values()) and missing_students(work) == []
        (done / "scale.txt").write_text("2")
        assert not any(find_specialists(work).values())
        assert len(missing_students(work)) == 1
        assert not set(keys_of(work)) & set(scores)


@pytest.mark.parametrize("key", ["teacher", "views"])
def test_a_teacher_with_weights_and_views(base: Path, key: str) -> None:
    """Its weights are the same; its capture, sealed or begun, is refused."""
    experiments.write_data(base)
    document = experiments.document() | {"student": []}
    del document["evaluation_set"], document["cluster"]
    document["teacher"] = [experiments.teacher("wide", **(NET if key == "teacher" else {}))]
    experiments.run_document(document, base, base / "first")
    shutil.copy(base / "first" / "models" / "teachers" / "wide.safetensors", base / "wide.safetensors")
    (table,) = document["teacher"]
    del table["train"]
    table["weights"] = "wide.safetensors"
    if key == "views":
        document["cache"] |= {"augment": {"factory": "rf_nets:scaled", "args": {"stats": "scale.txt"}}}
    experiments.run_document(document, base, base / "out")
    assert not experiments.run_document(document, base, base / "out").done
    (base / "scale.txt").write_text("2")
    with pytest.raises(SpecMismatch) as caught:
        caching.missing_captures(work_of(base, document))
    assert caught.value.expected.startswith("files_read.scale.txt = 'sha256:")


def test_what_is_older_is_kept_with_a_warning(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiments.write_data(base)
    with nobody_reads():
        experiments.run_document(content(), base, base / "out")
    with caplog.at_level(logging.WARNING):
        experiments.run_document(content(), base, base / "out")
    assert "written by a version that kept no digests of files of a model" in caplog.text


def test_identities_without_files_are_those_of_before(base: Path) -> None:
    experiments.write_data(base)
    work = work_of(base, experiments.whole_document())
    (member,) = work.experiment.teacher_members()
    ours = (
        caching.teacher_identity(member, work.rows),
        caching.capture_identity(work.experiment, member, work.rows, "sha256:0"),
    )
    with nobody_reads():
        assert ours == (
            caching.teacher_identity(member, work.rows),
            caching.capture_identity(work.experiment, member, work.rows, "sha256:0"),
        )
    assert not any("files_read" in identity for identity in ours)


def test_identities_that_hold_no_files_would_be_caught(done: Path) -> None:
    """Negative control: the run finds nothing to do where nobody digests the files."""
    shutil.rmtree(done / "out")
    with nobody_reads():
        experiments.run_document(content(), done, done / "out")
        (done / "scale.txt").write_text("2")
        assert not experiments.run_document(content(), done, done / "out").done


@contextlib.contextmanager
def nobody_reads() -> Iterator[None]:
    """Leave the files out of all identities, as earlier versions did."""
    with contextlib.ExitStack() as stack:
        for module in (caching, experiment_file, students, scoring):
            stack.enter_context(mock.patch.object(module, "files_read", return_value={}))
        yield
