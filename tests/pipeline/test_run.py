"""A whole experiment: each change renews its consequences, and nothing else.

Every case runs the tiny experiment of `experiments` in a copy of a finished folder. What was made anew is seen
from the outside, by bytes and times of files, and from what `run` says it did.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr
from support import children, experiments
from support.experiments import (
    MLP_FACTORY,
    changed,
    contents,
    document,
    parsed,
    run_document,
    states,
    student,
    teacher,
)

from logitstore.pipeline.run import RunReport, pending
from logitstore.pipeline.train import todo as training
from logitstore.pipeline.workspace import Workspace
from logitstore.storage.api import begin_store, open_store
from logitstore.storage.errors import (
    BadLogitsError,
    ConfigError,
    LogitStoreError,
    NotAStoreError,
    SpecMismatch,
)

Content = dict[str, Any]


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A folder of its own in which everything is done."""
    return experiments.copy_finished(tmp_path)


def again(folder: Path, content: Content) -> tuple[RunReport, set[str], set[str]]:
    """Run `content` in a finished folder: the report, and the files changed and made."""
    before = states(folder / "out")
    report = run_document(content, folder, folder / "out")
    after = states(folder / "out")
    return report, changed(before, after), set(after) - set(before)


def student_files(*names: str) -> set[str]:
    """The files of students."""
    suffixes = ("json", "metrics.jsonl", "safetensors")
    return {f"models/students/{name}.{suffix}" for name in names for suffix in suffixes}


# Nothing to do


def test_a_second_run_does_nothing_and_touches_no_file(done: Path) -> None:
    report, touched, made = again(done, document())
    assert (list(report.done), touched, made) == ([], set(), set())
    assert [row.name for row in report.table] == [
        "wide", "deep", "3 wide + deep, arithmetic mean", "soft", "both", "hard",
    ]  # fmt: skip


SECOND_RUN = """
import sys
from pathlib import Path
from support.experiments import document, run_document
if len(sys.argv) > 2:
    import {extra}
folder = Path(sys.argv[1])
report = run_document(document(), folder, folder / "out")
print(report.done, len(report.table), sorted({{"torch", "dask", "click"}} & set(sys.modules)))
"""


def second_run(extra: str, *arguments: str) -> str:
    """What a second run prints that is made in a process of its own."""
    command = [sys.executable, "-c", SECOND_RUN.format(extra=extra), str(experiments.finished()), *arguments]
    environment = children.environment()
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_a_second_run_imports_no_torch() -> None:
    assert second_run("math") == "[] 6 []"


def test_an_import_of_torch_would_have_been_seen() -> None:
    """Negative control."""
    assert second_run("torch", "import it") == "[] 6 ['torch']"


# A change of the students


def change_temperature(content: Content) -> None:
    content["student"][0]["temperature"] = 5.0


def change_hard_weight(content: Content) -> None:
    content["student"][0]["hard_weight"] = 0.5


def change_learning_rate(content: Content) -> None:
    content["student"][0]["train"]["lr"] = 1e-2


def change_views(content: Content) -> None:
    content["student"][0]["views"] = 0


def add_a_seed(content: Content) -> None:
    content["student"][0]["train"]["seeds"] = [0, 1, 2]


STUDENT_CHANGES: list[tuple[Callable[[Content], None], list[str]]] = [
    (change_temperature, ["soft-seed0", "soft-seed1"]),
    (change_hard_weight, ["soft-seed0", "soft-seed1"]),
    (change_learning_rate, ["soft-seed0", "soft-seed1"]),
    (change_views, ["soft-seed0", "soft-seed1"]),
    (add_a_seed, ["soft-seed2"]),
]


@pytest.mark.parametrize(("change", "trained"), STUDENT_CHANGES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_change_of_a_student_trains_that_student_alone(
    done: Path, change: Callable[[Content], None], trained: list[str]
) -> None:
    content = document()
    change(content)
    report, touched, made = again(done, content)
    assert [line for line in report.done if "evaluate" not in line] == [f"train student {n}" for n in trained]
    assert touched | made == student_files(*trained) | {"evaluation.json"}
    assert list(run_document(content, done, done / "out").done) == []


def test_going_back_to_the_old_temperature_gives_the_old_weights(done: Path) -> None:
    before = contents(done / "out")
    content = document()
    change_temperature(content)
    again(done, content)
    weights = "models/students/soft-seed0.safetensors"
    assert contents(done / "out")[weights] != before[weights]
    again(done, document())
    assert contents(done / "out")[weights] == before[weights]


def test_an_identity_that_ignores_the_temperature_would_be_caught(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the tests above: with a mutant identity nothing is trained, and that is seen."""
    genuine = training.student_identity

    def mutant(*arguments: Any) -> dict[str, Any]:
        return genuine(*arguments) | {"temperature": 3.0}

    monkeypatch.setattr(training, "student_identity", mutant)
    content = document()
    change_temperature(content)
    with pytest.raises(AssertionError):
        students = pending(workspace(content, done)).students
        assert [run.name for run in students] == ["soft-seed0", "soft-seed1"]


def workspace(content: Content, folder: Path) -> Workspace:
    """The workspace of a document."""
    return Workspace.of_folder(parsed(content, folder), folder / "out", device="cpu")


# A change of the teachers


@pytest.mark.parametrize("first", [False, True])
def test_one_more_teacher_is_all_that_is_captured(done: Path, first: bool) -> None:
    """`first`: the new one stands before the others in the file; a hard student then shows its views."""
    content = document()
    if first:
        content["student"][2]["views"] = 0
    run_document(content, done, done / "out")
    content["teacher"].insert(0 if first else 2, teacher("third", seed=9))
    content["student"].append(
        student("fresh", teachers=["third", "deep"], train=experiments.train(seeds=[4]))
    )
    report, touched, made = again(done, content)
    hard = {"hard-seed0", "hard-seed1"} if first else set()
    assert {line for line in report.done if "evaluate" not in line} == {
        "capture teacher third", "train student fresh-seed4", *(f"train student {name}" for name in hard),
    }  # fmt: skip
    # A hard student is pinned to the capture whose views it is shown, that of the first teacher.
    kept = {n: n.endswith(".safetensors") for n in student_files(*hard)}
    assert touched - {n for n, is_same in kept.items() if is_same} == {
        "evaluation.json", *(n for n, is_same in kept.items() if not is_same),
    }  # fmt: skip
    assert {name for name in made if not name.startswith("store.zarr/teachers/third/")} == student_files(
        "fresh-seed4"
    ) | {
        "models/teachers/third.json",
        "models/teachers/third.metrics.jsonl",
        "models/teachers/third.safetensors",
        "store.zarr/__logitstore__/log/5.json",
    }
    assert list(report.store.teachers) == ["wide", "deep", "third"]  # in the order of their seals
    assert list(run_document(content, done, done / "out").done) == []


def retrain(content: Content) -> None:
    content["teacher"][0]["train"]["epochs"] = 1


def reseed(content: Content) -> None:
    content["teacher"][0]["seed"] = 3


def widen(content: Content) -> None:
    content["teacher"][0]["args"]["hidden"] = [13]


def other_pixels(content: Content) -> None:
    content["cache"]["augment"]["args"]["pixels"] = 2


def more_views(content: Content) -> None:
    content["cache"]["views"] = 4


def other_encoding(content: Content) -> None:
    content["cache"]["encoding"] = "float32"


def other_batches(content: Content) -> None:
    content["cache"]["batch_size"] = 25


def other_order(content: Content) -> None:
    content["transfer_set"]["order"] = "as_is"


def fewer_rows(content: Content) -> None:
    content["transfer_set"]["args"]["fraction"] = 0.5


REFUSED: list[tuple[Callable[[Content], None], str]] = [
    (
        retrain,
        r"teachers/wide: expected train\.epochs = 3, with which it was trained, found 1; change it back",
    ),
    (reseed, r"teachers/wide: expected seed = 0, with which it was trained, found 3; change it back"),
    (widen, r"teachers/wide: expected args\.hidden = \[12\], with which it was trained, found \[13\]"),
    (
        other_pixels,
        r"teachers/wide: expected augmentation\.args\.pixels = 1, with which it was captured, found 2",
    ),
    (more_views, r"teachers/wide: expected views = 3, with which it was captured, found 4"),
    (other_encoding, r"teachers/wide: expected encoding\.kind = 'float16', with which it was captured"),
    (other_batches, r"teachers/wide: expected batch_size = 24, with which it was captured, found 25"),
    (other_order, r"samples: expected order\.kind = 'shuffled', from which it was made, found 'as_is'"),
    (fewer_rows, r"samples: expected rows = 150, from which it was made, found 75; change the transfer set"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda v: getattr(v, "__name__", ""))
def test_another_thing_under_an_old_name_is_refused_before_anything_is_run(
    done: Path, change: Callable[[Content], None], message: str
) -> None:
    before = states(done / "out")
    content = document()
    change(content)
    content["teacher"].append(teacher("third"))  # it would have to be trained, and is not
    with pytest.raises(SpecMismatch, match=message):
        run_document(content, done, done / "out")
    assert states(done / "out") == before


@pytest.mark.parametrize("kind", ["group", "folder", "file"])
def test_a_place_that_holds_something_else_is_left_alone(tmp_path: Path, kind: str) -> None:
    """And no teacher is trained for it."""
    experiments.write_data(tmp_path)
    path = tmp_path / "out" / "store.zarr"
    path.parent.mkdir()
    if kind == "group":
        zarr.create_group(path)
    elif kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    else:
        path.write_text("mine")
    before = states(tmp_path)
    with pytest.raises(
        NotAStoreError, match=r"store\.zarr.*: expected a .*, found .*; name the folder of a store"
    ):
        run_document(document(), tmp_path, tmp_path / "out")
    assert states(tmp_path) == before


@pytest.mark.parametrize(("rows", "classes", "found"), [(75, 4, "rows = 75"), (150, 5, "classes = 5")])
def test_a_store_of_another_size_is_refused_before_it_has_any_samples(
    tmp_path: Path, rows: int, classes: int, found: str
) -> None:
    """It was begun, killed, and then the transfer set was changed: the rest of the rows would be lost."""
    experiments.write_data(tmp_path)
    begin_store(tmp_path / "out" / "store.zarr", num_rows=rows, num_classes=classes, block_rows=64)
    before = states(tmp_path)
    with pytest.raises(SpecMismatch, match=f"samples: expected {found}, from which it was made, found"):
        run_document(document(), tmp_path, tmp_path / "out")
    assert states(tmp_path) == before


def test_members_are_teachers_of_their_own(tmp_path: Path) -> None:
    experiments.write_data(tmp_path)
    content = document()
    content["teacher"] = [teacher("wide", members=2, seed=7), teacher("seven", seed=7)]
    content["cluster"]["teacher"] = "wide-1"
    content["student"] = [student("soft", train=experiments.train(seeds=[0]))]
    report = run_document(content, tmp_path, tmp_path / "out")
    assert list(report.store.teachers) == ["wide-0", "wide-1", "seven"]
    weights = contents(tmp_path / "out" / "models" / "teachers")
    # The seeds count up from the teacher's, and are all that the members differ by.
    assert weights["wide-0.safetensors"] == weights["seven.safetensors"] != weights["wide-1.safetensors"]
    assert [row.name for row in report.table] == [
        "wide-0", "wide-1", "seven", "wide-0 + wide-1, arithmetic mean", "soft",
    ]  # fmt: skip


# What is gone or torn


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("models/students/both-seed0.safetensors", "removed"),
        ("models/students/both-seed0.safetensors", "flipped"),
        ("models/students/both-seed0.json", "flipped"),
        ("models/teachers/deep.safetensors", "removed"),
        ("models/teachers/deep.json", "removed"),
    ],
)
def test_a_model_file_that_is_gone_or_damaged_is_made_again(done: Path, name: str, damage: str) -> None:
    path = done / "out" / name
    before = contents(done / "out")
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    report, _, _ = again(done, document())
    what = "train student both-seed0" if "students" in name else "capture teacher deep"
    assert list(report.done) == [what]
    after = contents(done / "out")
    timed = (".json", ".jsonl")
    same = {n: digest for n, digest in after.items() if not n.endswith(timed) or n.startswith("store.zarr")}
    assert changed(same, before) == set()
    assert set(after) == set(before)


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("samples/label/zarr.json", "write samples again"),
        ("teachers/wide/peak/zarr.json", "capture teacher wide"),
        ("teachers/wide/zarr.json", "capture teacher wide"),
        ("clusters/wide-2x2/sets/zarr.json", "make clustering wide-2x2"),
    ],
)
def test_a_part_without_its_metadata_is_missing_and_gets_them_back(done: Path, key: str, stage: str) -> None:
    before = contents(done / "out" / "store.zarr")
    (done / "out" / "store.zarr" / key).unlink()
    report, _, _ = again(done, document())
    assert list(report.done) == [stage]
    assert contents(done / "out" / "store.zarr") == before


def test_a_dry_run_refuses_a_clustering_that_cannot_be(tmp_path: Path) -> None:
    experiments.write_data(tmp_path)
    content = document()
    content["cluster"]["clusters"] = experiments.CLASSES + 1
    with pytest.raises(ConfigError, match="clusters: expected from 1 to"):
        pending(workspace(content, tmp_path))
    assert not (tmp_path / "out").exists()


def test_without_the_store_all_but_the_teachers_is_made_again(done: Path) -> None:
    """And as the captures come out the same, so does their seal, and no student is trained."""
    before = states(done / "out")
    shutil.rmtree(done / "out" / "store.zarr")
    todo = pending(workspace(document(), done))
    assert [member.name for member in todo.cache.captures] == ["wide", "deep"]
    assert todo.cluster is not None and todo.cluster.part_name == "wide-2x2"
    run_document(document(), done, done / "out")
    after = states(done / "out")
    assert {name: state.digest for name, state in after.items()} == {
        name: state.digest for name, state in before.items()
    }
    # Not even the students were trained again: they are pinned to seals, which came out the same.
    assert {name for name in changed(before, after) if name.startswith("models/")} == set()


def test_a_run_that_stopped_between_samples_and_captures_goes_on(tmp_path: Path) -> None:
    """Samples are sealed first; then nothing may ask for a capture that is not there yet."""
    experiments.write_data(tmp_path)
    content = document()
    content["student"] = [student("hard", targets="hard", train=experiments.train(seeds=[0]))]
    del content["cluster"]
    run_document(content, tmp_path, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "store.zarr", tmp_path / "out" / "store.zarr")
    for name in ("2", "3"):
        (tmp_path / "out" / "store.zarr" / "__logitstore__" / "log" / f"{name}.json").unlink()
    for part in ("wide", "deep"):
        for seal in ("seal.json", "seal.bin"):
            (tmp_path / "out" / "store.zarr" / "teachers" / part / "__logitstore__" / seal).unlink()
    assert list(open_store(tmp_path / "out" / "store.zarr").teachers) == []
    run_document(content, tmp_path, tmp_path / "out")
    assert contents(tmp_path / "out" / "store.zarr") == contents(tmp_path / "whole" / "store.zarr")


# Scores


def test_only_changed_models_are_evaluated_anew(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from logitstore.pipeline.evaluate import stage as evaluate

    scored: list[str] = []
    genuine = evaluate._Scorer.score

    def score(self: Any, subject: Any) -> Any:
        scored.append(subject.run or subject.name)
        return genuine(self, subject)

    monkeypatch.setattr(evaluate._Scorer, "score", score)
    content = document()
    change_temperature(content)
    again(done, content)
    assert scored == ["soft-seed0", "soft-seed1"]
    scored.clear()
    again(done, document())  # back: the old weights have their scores still
    assert scored == []
    content["evaluation_set"]["args"]["fraction"] = 0.5
    again(done, content | {"student": document()["student"]})
    assert len(scored) == 9  # two teachers, an ensemble, five students, the sets


def test_without_an_evaluation_set_there_is_no_table(done: Path) -> None:
    content = document()
    del content["evaluation_set"]
    report, touched, made = again(done, content)
    assert (list(report.done), list(report.table), touched, made) == ([], [], set(), set())


# What the rows are and where inputs come from


@pytest.mark.parametrize("order", ["as_is", "shuffled"])
def test_students_are_the_same_with_and_without_stored_inputs(tmp_path: Path, order: str) -> None:
    experiments.write_data(tmp_path)
    content = document()
    content["transfer_set"]["order"] = order
    del content["teacher"][1], content["cluster"], content["evaluation_set"]
    content["student"] = [
        student(name, args={"hidden": [3]}, train=experiments.train(seeds=[0], epochs=2), **more)
        for name, more in (("soft", {}), ("hard", {"targets": "hard"}), ("all", {"views": "all"}))
    ]
    run_document(content, tmp_path, tmp_path / "with")
    content["transfer_set"]["store_inputs"] = False
    report = run_document(content, tmp_path, tmp_path / "without")
    assert report.store.samples.inputs is None
    with_inputs, without = (contents(tmp_path / name / "models") for name in ("with", "without"))
    assert {n: d for n, d in with_inputs.items() if n.endswith(".safetensors")} == {
        n: d for n, d in without.items() if n.endswith(".safetensors")
    }
    source = report.store.samples.source.tolist()
    assert sorted(source) == list(range(experiments.ROWS))
    assert (source == sorted(source)) == (order == "as_is")


def test_a_factory_of_a_students_own_is_pinned_by_name(done: Path) -> None:
    """Another factory is another student, even where the arguments are the same."""
    content = document()
    content["student"][1] = content["student"][1] | {"factory": "support.experiments:spoils_its_input"}
    assert content["student"][1]["factory"] != MLP_FACTORY
    report, _, _ = again(done, content)
    assert "train student both-seed0" in report.done


# Models that do not fit


def one_class_more(hidden: list[int], *, input_shape: list[int], num_classes: int) -> Any:
    """A model of a user's own, with its number of classes written into it."""
    from logitstore.pipeline.models.networks import mlp

    return mlp(hidden, input_shape=input_shape, num_classes=num_classes + 1)


def own_bug(hidden: list[int], *, input_shape: list[int], num_classes: int) -> Any:
    """A model of a user's own that fails when it is run."""

    def change(logits: Any, number: int) -> Any:
        raise KeyError("my own bug")

    return experiments.after_logits(change, hidden, input_shape, num_classes)


@pytest.mark.parametrize("kind", ["teacher", "student"])
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            "one_class_more",
            r"logits of 4 classes, as in the transfer set, found logits of 5 classes; give the {kind} the classes of",
        ),
        ("own_bug", r"logits of shape \(batch, classes\), found KeyError: 'my own bug'; correct the model"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_trained(
    tmp_path: Path, kind: str, factory: str, message: str
) -> None:
    """Though it is the last one."""
    experiments.write_data(tmp_path)
    content = document()
    content[kind][-1]["factory"] = f"{__name__}:{factory}"
    name = content[kind][-1]["name"]
    with pytest.raises(BadLogitsError, match=f"^{kind} '{name}': expected {message.format(kind=kind)}"):
        run_document(content, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stage_one_alone_tries_a_teacher_before_it_trains_it(tmp_path: Path) -> None:
    from logitstore.pipeline.cache.teachers import train_teacher

    experiments.write_data(tmp_path)
    content = document()
    content["teacher"][0] |= {"factory": f"{__name__}:one_class_more", "args": {"hidden": [5]}}
    recorder = experiments.Recorder()
    work = replace(workspace(content, tmp_path), progress=recorder)
    with pytest.raises(BadLogitsError, match="teacher 'wide': expected logits of 4 classes"):
        train_teacher(work, work.experiment.teacher_members()[0])
    assert (recorder.calls, (tmp_path / "out").exists()) == ([], False)


# Networks of one's own


NETWORKS = """
from collections import namedtuple

from torch import nn

Out = namedtuple("Out", "logits aux")


class Lazy(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(7), nn.LazyBatchNorm1d(), nn.LazyLinear(classes))

    def forward(self, inputs):
        return self.layers(inputs.float() / 255)


class Auxiliary(Lazy):
    def forward(self, inputs):
        logits = super().forward(inputs)
        return Out(logits, logits) if self.training else logits


def lazy(*, num_classes):
    return Lazy(num_classes)


def auxiliary(*, num_classes):
    return Auxiliary(num_classes)


def frozen(*, num_classes):
    network = Lazy(num_classes)
    network.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))
    return network.requires_grad_(False)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with data and a module of networks."""
    experiments.write_data(tmp_path)
    (tmp_path / "ls_own_networks.py").write_text(NETWORKS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("ls_own_networks", None)


def of_kinds(teacher: str, student: str) -> dict[str, Any]:
    """A document whose teacher and student are of the module."""
    document = experiments.document()
    del document["cluster"]
    seeds = experiments.train(seeds=[0], batch_size=149)  # the last row is alone
    return document | {
        "teacher": [experiments.teacher("wide", factory=f"ls_own_networks:{teacher}", args={})],
        "student": [
            experiments.student("s", factory=f"ls_own_networks:{student}", args={}, views=0, train=seeds)
        ],
    }


def test_lazy_networks_are_trained_captured_loaded_and_scored(own: Path) -> None:
    """Layers get their shapes before weights are loaded and counted; the row that is alone in a batch is left out."""
    report = experiments.run_document(of_kinds("lazy", "lazy"), own, own / "out")
    parameters = 16 * 7 + 7 + 2 * 7 + 7 * 4 + 4
    assert [row.scores[0].parameters for row in report.table] == [parameters, parameters]
    assert not experiments.run_document(of_kinds("lazy", "lazy"), own, own / "out").done


@pytest.mark.parametrize(
    ("teacher", "student", "where", "found"),
    [
        ("lazy", "auxiliary", "student 's' in training mode", "a Out"),
        ("auxiliary", "lazy", "teacher 'wide' in training mode", "a Out"),
        ("lazy", "frozen", "student 's'", "nothing to train: 2 frozen ones"),
        ("frozen", "lazy", "teacher 'wide'", "nothing to train: 2 frozen ones"),
    ],
)
def test_a_network_that_cannot_be_trained_is_found_before_anything_is_written(
    own: Path, teacher: str, student: str, where: str, found: str
) -> None:
    with pytest.raises(LogitStoreError) as caught:
        experiments.run_document(of_kinds(teacher, student), own, own / "out")
    assert (caught.value.where, caught.value.found) == (where, found)
    assert not (own / "out").exists()


def test_what_a_killed_run_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    """Whether there is anything to do or not."""
    folder = experiments.copy_finished(tmp_path)
    out = folder / "out"
    before = experiments.contents(out)
    for name in (
        "teachers/.wide.safetensors",
        "students/.soft-seed0.json",
        "students/.hard-seed1.metrics.jsonl",
    ):
        (out / "models" / f"{name}.0123456789ab").write_bytes(b"half")
    (out / ".evaluation.json.0123456789ab").write_bytes(b"half")
    assert not experiments.run_document(experiments.document(), folder, out).done
    assert experiments.contents(out) == before
