"""Sets without a fingerprint: a changed label, name, order, length or row is refused at every door, with the row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support import experiments
from support.experiments import ROWS, contents, document, parsed, student, teacher

from logitstore.pipeline import same_set, transfer
from logitstore.pipeline.cache import capture, stage, todo
from logitstore.pipeline.cache.stage import cache
from logitstore.pipeline.evaluate.stage import evaluate
from logitstore.pipeline.plan.stage import plan
from logitstore.pipeline.run import pending, run
from logitstore.pipeline.same_set import check_repeatable, check_samples
from logitstore.pipeline.train.stage import train_students
from logitstore.pipeline.transfer import Examples, TransferRows, set_identity
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import BadDataError, LogitStoreError, RowMismatch, SpecMismatch
from logitstore.storage.parts.writer import SamplesWriter
from logitstore.storage.stream.items import listed_labels

Content = dict[str, Any]


def own_set(factory: str = "own", **changes: Any) -> Content:
    """An experiment of one teacher and one student on a set of one's own, whose inputs are not kept."""
    whole = document()
    kept = {
        "factory": f"support.own_sets:{factory}",
        "args": {"file": "train.npz"},
        "store_inputs": False,
        "order": "shuffled",
    }
    return {
        "transfer_set": kept | changes,
        "evaluation_set": whole["evaluation_set"],
        "teacher": [teacher("wide", train=experiments.train(epochs=1))],
        "cache": {"batch_size": 24, "block_rows": 64},
        "student": [student("soft", train=experiments.train(epochs=1, seeds=[0]))],
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the data."""
    experiments.write_data(tmp_path)
    return tmp_path


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the set count as large: 64 of its rows are read."""
    monkeypatch.setattr(transfer, "WHOLE_BYTES", 0)


def workspace(base: Path, content: Content) -> Workspace:
    """A workspace of `base/out`, with a transfer set that was just opened."""
    return Workspace.of_folder(parsed(content, base), base / "out", device="cpu")


def run_all(base: Path, content: Content) -> Any:
    """Run everything in `base/out`."""
    with mock.patch("os.fsync"):
        return run(parsed(content, base), base / "out", device="cpu")


def change(base: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    """Change the arrays of the set."""
    with np.load(base / "train.npz") as archive:
        arrays = dict(archive)
    alter(arrays)
    np.savez(base / "train.npz", **arrays)


def label(row: int) -> Callable[[dict[str, Any]], None]:
    """Change the label of an example."""

    def alter(arrays: dict[str, Any]) -> None:
        arrays["labels"][row] = (arrays["labels"][row] + 1) % 4

    return alter


def pixel(row: int) -> Callable[[dict[str, Any]], None]:
    """Change the input of an example."""

    def alter(arrays: dict[str, Any]) -> None:
        arrays["inputs"][row, 0, 0] ^= 1

    return alter


def exchanged(arrays: dict[str, Any]) -> None:
    """Exchange two examples of different classes."""
    one, other = 3, int(np.flatnonzero(arrays["labels"] != arrays["labels"][3])[0])
    for name in ("inputs", "labels"):
        arrays[name][[one, other]] = arrays[name][[other, one]]


def names_exchanged(arrays: dict[str, Any]) -> None:
    """Exchange the names of two classes."""
    arrays["class_names"][[0, 1]] = arrays["class_names"][[1, 0]]


def renamed(arrays: dict[str, Any]) -> None:
    """Rename a class."""
    arrays["class_names"][2] = "other"


def shorter(arrays: dict[str, Any]) -> None:
    """Remove the last example."""
    arrays["inputs"], arrays["labels"] = arrays["inputs"][:-1], arrays["labels"][:-1]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a label": (
        label(77),
        r"^row \d+ \(index 77 of the transfer set\): label: expected \d, as in the store, found \d ",
    ),
    "a label of the last row": (
        label(ROWS - 1),
        rf"^row \d+ \(index {ROWS - 1} of the transfer set\): label: ",
    ),
    "rows exchanged": (exchanged, r"^row \d+ \(index \d+ of the transfer set\): label: "),
    "class names exchanged": (
        names_exchanged,
        r"class_name: expected 'stroke 0' as class 0, as in the store, found 'stroke 1', which is class 1 there",
    ),
    "a class name": (
        renamed,
        r"class_name: expected 'stroke 2' as class 2, as in the store, found 'other'; ",
    ),
    "another length": (
        shorter,
        rf"samples: expected rows = {ROWS}, from which it was made, found {ROWS - 1}",
    ),
}
DOORS: dict[str, Callable[[Workspace], object]] = {
    "run": pending,
    "cache": cache,
    "train": lambda work: (work.models.weights_path("students", "soft-seed0").unlink(), train_students(work)),
    "evaluate": evaluate,
    "plan": lambda work: plan(work.experiment, work.path, work.models, device="cpu"),
}


@pytest.fixture(scope="module", params=["own", "listed"])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Content]:
    """A finished run of a set without, and with, a list of its labels; never to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    experiments.write_data(folder)
    content = own_set(request.param)
    run_all(folder, content)
    return folder, content


@pytest.fixture
def done(finished: tuple[Path, Content], tmp_path: Path) -> tuple[Path, Content]:
    """A copy of it."""
    import shutil

    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy", finished[1]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_set_is_refused_at_every_door(done: tuple[Path, Content], kind: str, door: str) -> None:
    base, content = done
    alter, message = CHANGES[kind]
    change(base, alter)
    before = contents(base / "out" / "store.zarr")
    with pytest.raises((RowMismatch, SpecMismatch), match=message):
        DOORS[door](workspace(base, content))
    assert contents(base / "out" / "store.zarr") == before


@pytest.mark.parametrize("door", DOORS)
def test_an_unchanged_set_passes_every_door(done: tuple[Path, Content], door: str) -> None:
    """Control of the test above."""
    base, content = done
    with mock.patch("os.fsync"):
        DOORS[door](workspace(base, content))
    assert not pending(workspace(base, content))


def test_without_the_comparison_a_changed_label_goes_in(done: tuple[Path, Content]) -> None:
    """Negative control: the rows alone tell that the label has changed."""
    base, content = done
    change(base, label(77))
    with mock.patch.object(todo, "check_samples", return_value=""), pytest.raises(SpecMismatch) as caught:
        pending(workspace(base, content))
    assert "transfer_set.content" in str(caught.value)  # the teacher's record tells as well
    with (
        mock.patch.object(todo, "check_samples", return_value=""),
        mock.patch.object(todo, "set_identity", return_value=None),
        mock.patch.object(todo, "as_recorded", lambda ours, theirs: dict(theirs)),
    ):
        assert not pending(workspace(base, content))


# What is looked at


def test_a_small_set_is_read_in_full_and_the_line_says_so(done: tuple[Path, Content]) -> None:
    base, content = done
    assert run_all(base, content).compared == f"inputs and labels of all {ROWS} rows compared"


@pytest.mark.usefixtures("sampled")
def test_of_a_large_set_all_listed_labels_and_64_inputs_are_compared(base: Path) -> None:
    content = own_set("listed")
    run_all(base, content)
    assert run_all(base, content).compared == f"labels of all {ROWS} rows and the inputs of 64 compared"
    rows = TransferRows(parsed(content, base))
    unread = int(np.setdiff1d(np.arange(ROWS), rows.looked.indices)[0])
    change(base, label(unread))
    with pytest.raises(
        RowMismatch, match=rf"\(index {unread} of the transfer set\): label: .*1 of {ROWS} rows"
    ):
        pending(workspace(base, content))
    change(base, lambda arrays: label(unread)(arrays) or label(unread)(arrays) or label(unread)(arrays))
    assert not pending(workspace(base, content))
    change(base, pixel(int(rows.looked.indices[9])))
    with pytest.raises(
        RowMismatch, match=r": expected an input with digest \w{16}, as in the store, found \w{16} \(1 of 64"
    ):
        pending(workspace(base, content))


def test_labels_that_a_set_lists_are_compared_beside_its_fingerprint(base: Path) -> None:
    """A fingerprint of one's own may not cover them."""
    content = own_set("stated")
    run_all(base, content)
    assert run_all(base, content).compared == "fingerprint of the transfer set and all labels compared"
    change(base, label(33))
    with pytest.raises(RowMismatch, match=r"\(index 33 of the transfer set\): label: "):
        pending(workspace(base, content))


@pytest.mark.usefixtures("sampled")
def test_of_a_large_set_without_a_list_the_rest_is_said_not_to_be_read(base: Path) -> None:
    content = own_set("own")
    run_all(base, content)
    assert (
        run_all(base, content).compared
        == f"inputs and labels of 64 of {ROWS} rows compared, the others not read"
    )
    rows = TransferRows(parsed(content, base))
    change(base, label(int(rows.looked.indices[30])))
    with pytest.raises(RowMismatch, match=": label: "):
        pending(workspace(base, content))


@pytest.mark.usefixtures("sampled")
def test_a_list_of_other_labels_than_those_of_the_items_does_not_count(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SAMPLED_ROWS", 5)
    content = own_set("turned")
    rows = TransferRows(parsed(content, base))
    assert (rows.looked.indices >= 100).any(), "the sample would not tell"
    assert len(rows.looked.labelled) == 5
    # A sample that does not hit a row of the difference: the items of the store's rows are asked for.
    monkeypatch.setattr(transfer, "_sample", lambda num_rows: np.arange(5))
    run_all(base, content)
    rows = TransferRows(parsed(content, base))
    assert len(rows.looked.labelled) == ROWS
    assert not pending(workspace(base, content))


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("door", ["run", "plan"])
def test_other_arguments_of_a_large_set_are_refused(base: Path, door: str) -> None:
    """A seed or a fold may change rows that are not read."""
    run_all(base, own_set("listed"))
    content = own_set("listed", args={"file": "train.npz", "seed": 1})
    with pytest.raises(
        SpecMismatch, match=r"expected made_by.args.seed = nothing, from which it was made, found 1"
    ):
        DOORS[door](workspace(base, content))


def test_a_small_set_may_move(base: Path) -> None:
    """Its content is compared in full, so that its arguments need not be."""
    run_all(base, own_set("listed"))
    (base / "train.npz").rename(base / "moved.npz")
    assert not pending(workspace(base, own_set("listed", args={"file": "moved.npz"})))


def test_an_experiment_from_another_folder_has_nothing_to_do(
    done: tuple[Path, Content], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, content = done
    monkeypatch.chdir(base.parent)
    relative = Path(base.name)
    assert not pending(Workspace.of_folder(parsed(content, relative), relative / "out", device="cpu"))
    monkeypatch.chdir(base)
    assert not pending(Workspace.of_folder(parsed(content, Path()), Path("out"), device="cpu"))


def test_ids_are_compared(base: Path) -> None:
    change(base, lambda arrays: arrays.update(ids=np.array([f"id-{i}" for i in range(ROWS)])))
    content = own_set()
    run_all(base, content)
    change(base, lambda arrays: arrays["ids"].__setitem__(5, "id-x"))
    with pytest.raises(
        RowMismatch,
        match=r"\(index 5 of the transfer set\): id: expected 'id-5', as in the store, found 'id-x'",
    ):
        pending(workspace(base, content))


def test_samples_that_are_begun_are_compared(base: Path) -> None:
    """Otherwise a store would hold old labels in its first blocks and new ones in the others."""
    content = own_set(order="as_is")
    genuine, blocks = SamplesWriter.write, []

    def write(self: SamplesWriter, rows: Any, **columns: Any) -> None:
        genuine(self, rows, **columns)
        blocks.append(rows)
        raise KeyboardInterrupt

    with mock.patch.object(SamplesWriter, "write", write), pytest.raises(KeyboardInterrupt):
        run_all(base, content)
    assert blocks == [range(64)]
    whole = own_set(order="as_is")
    change(base, label(10))
    with pytest.raises(
        RowMismatch, match=r"^row 10 \(index 10 of the transfer set\): label: .* \(1 of 64 rows"
    ):
        pending(workspace(base, whole))
    # A change of rows that the store does not have yet is none.
    change(base, lambda arrays: [label(10)(arrays) for _ in range(3)] and label(100)(arrays))
    check_samples(workspace(base, whole).store, workspace(base, whole).rows)


LISTS: dict[str, tuple[Any, list[int] | None]] = {
    "labels": ([3, 1], [3, 1]),
    "a tensor": (torch.tensor([3, 1]), [3, 1]),
    "fractions": ([0.5, 1.5], None),
    "too few": ([3], None),
    "text": ("31", None),
    "a function": (len, None),
    "nothing": (None, None),
}


@pytest.mark.parametrize("kind", LISTS)
def test_labels_that_a_set_lists(kind: str) -> None:
    class Set(list[Any]):
        targets = LISTS[kind][0]

    found = listed_labels(Set([0, 0]))
    assert (None if found is None else found.tolist()) == LISTS[kind][1]


def test_subsets_and_concatenations_list_those_of_their_sets() -> None:
    class Set(list[Any]):
        targets = (5, 6, 7)

    whole: Any = Set([0, 0, 0])
    subset: Any = torch.utils.data.Subset(whole, [2, 0])
    both = torch.utils.data.ConcatDataset([subset, whole])
    listed = listed_labels(both)
    assert listed is not None
    assert listed.tolist() == [7, 5, 5, 6, 7]
    assert listed_labels(torch.utils.data.ConcatDataset([subset, [0]])) is None


# Teachers that are trained here


def test_a_teacher_of_another_set_is_never_taken_nor_overwritten(base: Path) -> None:
    """Two experiments of one folder have a teacher of the same name."""
    content = own_set()
    first = Workspace.of_store(parsed(content, base), base / "one.zarr", device="cpu")
    with mock.patch("os.fsync"):
        cache(first)
    before = contents(base / "models")
    change(base, label(20))
    second = Workspace.of_store(parsed(content, base), base / "two.zarr", device="cpu")
    with pytest.raises(
        SpecMismatch,
        match=r"teacher 'wide' \(.*wide.json\): expected transfer_set.content = .*on which it was trained",
    ):
        cache(second)
    assert contents(base / "models") == before
    other = Workspace.of_store(parsed(content, base), base / "two.zarr", base / "others", device="cpu")
    with mock.patch("os.fsync"):
        assert cache(other).captured == ("wide",)


def test_the_record_of_an_earlier_version_stays_valid(done: tuple[Path, Content]) -> None:
    """It holds nothing of a set without a fingerprint."""
    base, content = done
    work = workspace(base, content)
    recorded = work.models.recorded_identity("teachers", "wide")
    assert recorded is not None
    member = work.experiment.teacher_members()[0]
    found = todo.find_teacher(work, member)
    assert found is not None
    work.models.put("teachers", "wide", {**recorded, "transfer_set": None}, found.weights, {})
    assert todo.find_teacher(workspace(base, content), member) is not None
    work.models.put("teachers", "wide", {**recorded, "transfer_set": "sha256:other"}, found.weights, {})
    assert todo.find_teacher(workspace(base, content), member) is None


@pytest.mark.usefixtures("sampled")
def test_another_source_of_a_large_set_is_no_other_teacher(base: Path) -> None:
    """The rows are compared; the source of samples that are begun has to be the same."""
    rows = TransferRows(parsed(own_set("listed"), base))
    rows.made_by = {**rows.made_by, "source": {"mine.py": "sha256:new"}}
    old = {**rows.made_by, "source": {"mine.py": "sha256:old"}}
    ours = {"transfer_set": set_identity(rows)}
    theirs = {"transfer_set": {**rows.made_by, **ours["transfer_set"], **old}}  # type: ignore[dict-item]
    assert todo.as_recorded(ours, theirs) == theirs
    samples = {**rows.identity, "made_by": old}
    assert same_set.samples_identity(rows, samples, is_begun=False) == samples
    assert same_set.samples_identity(rows, samples, is_begun=True) == rows.identity
    older = {key: value for key, value in samples.items() if key != "made_by"}
    assert same_set.samples_identity(rows, older, is_begun=False) == older


# Sets that are never the same

NEVER: dict[str, str] = {
    "noisy": r"example 0: expected the same each time: digest \w+, found digest \w+ when it is fetched again",
    "guessing": r"example \d+: expected the same each time: label \d, found label \d when it is fetched again",
    "counting": r"example \d+: expected the same each time: digest \w+, found digest \w+ ",
    "of_thread": r"example 0: expected the same each time: digest \w+, found digest \w+ when it is fetched again",
    "split": r"example 0: expected the same each time: .* from the factory called again",
}


@pytest.mark.parametrize("factory", NEVER)
def test_a_set_that_is_never_the_same_is_found_before_a_teacher_is_trained(base: Path, factory: str) -> None:
    with pytest.raises(BadDataError, match=f"^transfer_set, {NEVER[factory]}"):
        run_all(base, own_set(factory))
    assert not list((base / "out").rglob("*"))


def test_what_the_trial_misses_is_found_in_the_rows_that_the_teachers_are_shown(base: Path) -> None:
    """All rows of a small set are read before: a call of every one, and the trial, come first."""
    with pytest.raises(
        BadDataError, match=r"^transfer_set, example \d+: expected the same each time: digest"
    ):
        run_all(base, own_set("rare"))
    assert not list((base / "out").rglob("seal.json"))
    with mock.patch.object(capture, "check_read_again"):  # negative control
        run_all(base, own_set("rare"))


def test_a_label_that_changes_after_the_trial_is_found_before_it_becomes_that_of_the_samples(
    base: Path,
) -> None:
    """The input is the same: only the label tells, and every later comparison would be with the new one."""
    rows = TransferRows(parsed(own_set(), base))
    assert rows.looked.is_whole
    which = range(40, 50)
    inputs, labels = rows.rows(which)
    same_set.check_read_again(rows, which, digest_rows(inputs), labels)  # control
    before = int(labels[3])
    labels[3] = (before + 1) % 4
    with pytest.raises(BadDataError) as caught:
        same_set.check_read_again(rows, which, digest_rows(inputs), labels)
    assert caught.value.where == f"transfer_set, example {rows.source[43]}"
    assert caught.value.expected == f"the same each time: label {before}"
    assert caught.value.found == f"label {labels[3]} when it is fetched again"


@pytest.mark.parametrize("factory", ["noisy", "split"])
def test_without_the_trial_it_would_be_found_when_the_teachers_have_run(base: Path, factory: str) -> None:
    """Negative control."""
    with (
        mock.patch.object(stage, "check_repeatable"),
        mock.patch.object(capture, "check_read_again"),
        pytest.raises(LogitStoreError) as caught,
    ):
        run_all(base, own_set(factory))
        pending(workspace(base, own_set(factory)))
    assert "each time" not in str(caught.value)
    assert (base / "out" / "models" / "teachers").is_dir()


def test_a_set_that_stays_the_same_passes_the_trial(base: Path) -> None:
    for factory in ("own", "listed", "turned"):
        check_repeatable(TransferRows(parsed(own_set(factory), base)))


def test_an_evaluation_set_is_tried_too(base: Path) -> None:
    content = own_set() | {
        "evaluation_set": {"factory": "support.own_sets:noisy", "args": {"file": "test.npz"}}
    }
    with pytest.raises(BadDataError, match=r"^evaluation_set, example 0: expected the same each time"):
        run_all(base, content)


def evaluation_set(base: Path) -> Examples:
    """Open a set without a fingerprint or a list of labels, as an evaluation set."""
    content = own_set()
    content["evaluation_set"] = {"factory": "support.own_sets:own", "args": {"file": "train.npz"}}
    experiment = parsed(content, base)
    assert experiment.evaluation_set is not None
    return Examples(experiment.evaluation_set, base, "evaluation_set")


def test_the_content_of_an_evaluation_set_holds_names_and_every_label(base: Path) -> None:
    seen = {evaluation_set(base).content}
    for alter in (label(60), pixel(61), names_exchanged, exchanged):
        change(base, alter)
        seen.add(evaluation_set(base).content)
    assert len(seen) == 5


@pytest.mark.usefixtures("sampled")
def test_a_score_is_of_every_example_of_a_large_set_not_of_a_sample_of_them(base: Path) -> None:
    """A score is kept by the content of its set: after a change of any example it is measured again."""
    before = evaluation_set(base)
    row = int(np.setdiff1d(np.arange(ROWS), before.looked.labelled)[0])  # which no comparison would read
    seen = {before.content}
    for alter in (label(row), pixel(row)):
        change(base, alter)
        assert before.digest(evaluation_set(base).looked) == before.digest(before.looked)
        seen.add(evaluation_set(base).content)
    assert len(seen) == 3
