"""Changed code: a training or a capture is never gone on with from other code, and is never called unchanged."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import experiments, special, trainings

from faults.tally import Tally
from logitstore.pipeline.cache import todo as caching
from logitstore.pipeline.experiment.document import Experiment
from logitstore.pipeline.factories import products
from logitstore.pipeline.models import records
from logitstore.pipeline.models.loaders import with_stable_names
from logitstore.pipeline.specialists.todo import find_specialists, specialist_runs
from logitstore.pipeline.specialists.training import train_specialist
from logitstore.pipeline.train.stage import train_student
from logitstore.pipeline.train.todo import find_student, student_seeds
from logitstore.pipeline.trainer import resume
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import open_store
from logitstore.storage.errors import SpecMismatch

FILES = {
    "ls_code_nets.py": """
from logitstore.pipeline.models import mlp
from ls_code_helper import nothing
from ls_code_pack.inner import identity

def net(hidden, body, *, input_shape, num_classes):
    return identity(mlp(hidden, input_shape=input_shape, num_classes=num_classes))
""",
    "ls_code_helper.py": "nothing = 0\n",
    "ls_code_pack/__init__.py": "",
    "ls_code_pack/inner.py": "def identity(network):\n    return network\n",
    "ls_code_named.py": "body = 0\n",
}
"""A factory's module, what it imports, and what an argument names."""
FACTORY: dict[str, Any] = {
    "factory": "ls_code_nets:net",
    "args": {"hidden": [6], "body": "ls_code_named:body"},
}


def content() -> dict[str, Any]:
    """A teacher that is trained here, specialists of it, a student that is finished and one that is interrupted."""
    often = {"epochs": 2, "checkpoint_every": 1}
    document = special.content(1, train=experiments.train(batch_size=16, **often))
    del document["evaluation_set"]
    return document | {
        "teacher": [experiments.teacher("wide", **FACTORY)],
        "student": [
            experiments.student("a", **FACTORY, train=experiments.train(seeds=[0], **often)),
            experiments.student("done", **FACTORY, train=experiments.train(seeds=[0])),
        ],
    }


def forget_modules() -> None:
    """What is imported next is imported anew, as in another process."""
    for name in [name for name in sys.modules if name.startswith("ls_code_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules and all of it done, but for a student and a specialist that are half trained."""
    folder = tmp_path_factory.mktemp("code")
    experiments.write_data(folder)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    with mock.patch.object(sys, "path", list(sys.path)):
        first = content()
        del first["specialists"]
        first["student"] = first["student"][1:]
        experiments.run_document(first, folder, folder / "out")
        special.write_pairs(open_store(folder / "out" / "store.zarr"))
        work = workspace(folder)
        half, _ = student_seeds(work.experiment)
        one, other = specialist_runs(work.experiment, work.store)
        with mock.patch("os.fsync"):
            train_specialist(work, other)
            with trainings.interruption(3):
                train_student(work, half)
            with trainings.interruption(2):
                train_specialist(work, one)
        forget_modules()
    return folder


@pytest.fixture
def folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, of which nothing is imported."""
    shutil.copytree(world, tmp_path / "copy")
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget_modules()
    yield tmp_path / "copy"
    forget_modules()


def workspace(folder: Path) -> Workspace:
    """The workspace of the document in a folder."""
    experiment: Experiment = experiments.parsed(content(), folder)
    return Workspace.of_folder(experiment, folder / "out", device="cpu")


# What is asked after a change: whether it was noticed, which is that it is refused or to be made anew.


def refused(call: Callable[[], Any]) -> bool:
    """Does the call name a file of the source?"""
    try:
        with mock.patch("os.fsync"):
            call()
    except SpecMismatch as error:
        return "\n" not in str(error) and "source." in error.expected
    return False


def student_in_the_middle(folder: Path) -> bool:
    work = workspace(folder)
    half, _ = student_seeds(work.experiment)
    return refused(lambda: train_student(work, half))


def specialist_in_the_middle(folder: Path) -> bool:
    work = workspace(folder)
    half, _ = specialist_runs(work.experiment, work.store)
    # The generalist is of before as well: its own door is shut before this one.
    record = work.models.recorded_identity("teachers", "wide")
    with mock.patch.object(caching, "teacher_identity", return_value=dict(record or {})):
        return refused(lambda: train_specialist(work, half))


def capture_in_the_middle(folder: Path) -> bool:
    store = folder / "out" / "store.zarr"
    for name in ("2", "3"):  # the log names samples, wide and the clustering
        (store / "__logitstore__" / "log" / f"{name}.json").unlink()
    shutil.rmtree(store / "clusters" / "pairs")
    for seal in ("seal.json", "seal.bin"):
        (store / "teachers" / "wide" / "__logitstore__" / seal).unlink()
    work = workspace(folder)
    assert work.store.begun("teachers/wide") is not None
    return refused(lambda: caching.missing_captures(work))


def finished_student(folder: Path) -> bool:
    work = workspace(folder)
    _, done = student_seeds(work.experiment)
    return find_student(work, done) is None


def finished_specialist(folder: Path) -> bool:
    work = workspace(folder)
    record = work.models.recorded_identity("teachers", "wide")
    with mock.patch.object(caching, "teacher_identity", return_value=dict(record or {})):
        _, done = find_specialists(work).values()
    return done is None


def trained_teacher(folder: Path) -> bool:
    work = workspace(folder)
    return caching.find_teacher(work, work.experiment.teacher_members()[0]) is None


def captured_teacher(folder: Path) -> bool:
    work = workspace(folder)
    return refused(lambda: caching.missing_captures(work))


DOORS = (
    student_in_the_middle,
    specialist_in_the_middle,
    capture_in_the_middle,
    finished_student,
    finished_specialist,
    trained_teacher,
    captured_teacher,
)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_changed_code_is_noticed_at_every_door(
    folder: Path, tally: Tally, door: Callable[[Path], bool]
) -> None:
    unseen = []
    for file, text in FILES.items():
        copy = shutil.copytree(folder, folder.parent / file.replace("/", "-"))
        (copy / file).write_text(text + "# another line\n")
        forget_modules()
        sys.path[:] = [entry for entry in sys.path if not entry.startswith(str(folder.parent))]
        if not door(copy):
            unseen.append(f"{file}: {door.__name__}")
    tally.reached("code", len(FILES), "changes", unseen)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_code_that_has_not_changed_is_no_reason(folder: Path, door: Callable[[Path], bool]) -> None:
    """Otherwise the doors above would be shut to everything."""
    assert not door(folder)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_an_identity_without_code_is_seen(folder: Path, tally: Tally, door: Callable[[Path], bool]) -> None:
    """Negative control: the doors are open where nobody digests code."""
    (folder / "ls_code_helper.py").write_text("nothing = 'other'\n")
    genuine = with_stable_names

    def without_source(identity: Any) -> dict[str, Any]:
        return {key: value for key, value in genuine(identity).items() if key != "source"}

    nothing: dict[str, str] = {}
    with (
        mock.patch.object(products, "local_source", return_value=nothing),
        mock.patch.object(caching, "noted_files", return_value=nothing),
        mock.patch.object(records, "with_stable_names", without_source),
        mock.patch.object(resume, "with_stable_names", without_source),
    ):
        tally.control("code", f"code in the identity: {door.__name__}", not door(folder))
