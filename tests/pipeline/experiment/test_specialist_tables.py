"""Specialists: a wrong table or store is one line, before anything is trained."""

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support.experiments import contents, parsed, run_document, student, teacher, train
from support.special import Field, content, grounds

from logitstore.pipeline.run import pending
from logitstore.pipeline.specialists.training import train_specialists
from logitstore.storage.errors import LogitStoreError
from logitstore.storage.parts import clustering_writer


def refusal(document: dict[str, Any]) -> LogitStoreError:
    """The error, of one line, that a document is refused with."""
    with pytest.raises(LogitStoreError) as caught:
        parsed(document, Path())
    assert "\n" not in str(caught.value)
    return caught.value


def said(document: dict[str, Any]) -> str:
    """Its line, without the file."""
    return str(refusal(document)).removeprefix("tiny.toml: ")


def clustered(**changes: Any) -> dict[str, Any]:
    """A document whose specialists are of its own [cluster], with some keys changed."""
    document = content()
    document["cluster"] = {"teacher": "wide", "clusters": 2, "classes_per_cluster": 2}
    document["specialists"] = {"train": train(), **changes}
    return document


def test_all_is_known_from_the_clustering() -> None:
    found = parsed(clustered(), Path())
    assert found.generalist.name == "wide"
    assert (found.clustering_name, found.specialist_prefix) == ("wide-2x2", "wide-2x2")


@pytest.mark.parametrize(
    ("changes", "key", "expected", "found", "remedy"),
    [
        pytest.param({"set": [1]}, "set", "a known key", "'set'", "did you mean 'sets'?", id="misspelt key"),
        pytest.param(
            {"generalist": "wid"},
            "generalist",
            "the name of one teacher",
            "'wid'",
            "did you mean 'wide'?",
            id="unknown generalist",
        ),
        pytest.param(
            {"sets": [0, 2]},
            "sets",
            "sets from 0 to 1, for cluster.clusters = 2",
            "2",
            "lower the numbers",
            id="set beyond the clustering",
        ),
        pytest.param(
            {"sets": [1, 1]}, "sets", "every value once", "1 2 times", "remove the repetition", id="set twice"
        ),
        pytest.param(
            {"sets": []},
            "sets",
            "'all', or a list of numbers of sets, from 0",
            "[]",
            "write sets = 'all', or list some numbers",
            id="no set",
        ),
        pytest.param({"share": 1.0}, "share", "a number below 1", "1.0", "correct share", id="share of 1"),
        pytest.param(
            {"share": 0.1, "train": train(batch_size=4)},
            "train.batch_size",
            "special rows and others in every batch",
            "4, with share = 0.1",
            "raise train.batch_size, or change share",
            id="no special row in a batch",
        ),
        pytest.param(
            {"train": train(batch_size=1)},
            "train.batch_size",
            "special rows and others in every batch",
            "1, with share = 0.5",
            "raise train.batch_size, or change share",
            id="one row in a batch",
        ),
        pytest.param(
            {"temperature": 2.0},
            "temperature",
            "variant = 'full'",
            "variant = 'joint'",
            "remove temperature",
            id="temperature without full",
        ),
        pytest.param(
            {"variant": "full", "head": "head"},
            "head",
            "variant = 'dustbin'",
            "variant = 'full'",
            "remove head",
            id="head without dustbin",
        ),
        pytest.param(
            {"train": train(label_smoothing=0.1)},
            "train.label_smoothing",
            "0 at most",
            "0.1",
            "correct label_smoothing",
            id="label smoothing",
        ),
        pytest.param(
            {"train": train(validation="evaluation_set")},
            "train.validation",
            "a share of the rows",
            "'evaluation_set'",
            "set validation = 0.1, a share of the rows that it does not learn from",
            id="validation on a set",
        ),
        pytest.param(
            {"train": train(keep="best")},
            "train.keep",
            "examples to validate on",
            "no validation",
            "set validation = 0.1, a share of the rows that it does not learn from",
            id="best of nothing",
        ),
        pytest.param(
            {"views": 3},
            "views",
            "a view below cache.views = 3",
            "3",
            "raise cache.views, or take a lower view",
            id="view beyond the cache",
        ),
        pytest.param(
            {"name": "n" * 63},
            "name",
            "names of 64 characters at most",
            "'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn...",
            "set name",
            id="long name",
        ),
    ],
)
def test_a_table_that_makes_no_specialists_is_refused(
    changes: dict[str, Any], key: str, expected: str, found: str, remedy: str
) -> None:
    error = refusal(clustered(**changes))
    assert error.where == f"tiny.toml: specialists.{key}"
    assert (error.expected, error.found, error.remedy) == (expected, found, remedy)


def test_specialists_of_nothing_are_refused() -> None:
    document = clustered()
    del document["cluster"]
    assert said(document) == (
        "specialists.clustering: expected [cluster] or specialists.clustering, found no such key; "
        "add one of the two"
    )
    document["specialists"]["clustering"] = "pairs"
    assert said(document) == (
        "specialists.generalist: expected cluster.teacher or specialists.generalist, found no such key; "
        "add specialists.generalist"
    )


def test_a_generalist_with_members_is_one_of_them() -> None:
    document = content(generalist="wide")
    document["teacher"] = [teacher("wide", members=2)]
    assert said(document) == (
        "specialists.generalist: expected the name of one teacher, found 'wide', which has several members; "
        "did you mean 'wide-0'?"
    )


def test_a_teacher_may_not_have_the_name_of_a_specialist() -> None:
    document = clustered(name="wide")
    document["teacher"].append(teacher("wide-1"))
    assert "specialists.name: expected a name of its own, found 'wide-1'" in said(document)


@pytest.mark.parametrize(
    ("specialists", "found", "remedy"),
    [
        pytest.param(None, "no [specialists]", "add [specialists]", id="no table"),
        pytest.param(
            {"variant": "full"},
            "specialists.variant = 'full'",
            "set specialists.variant = 'joint'",
            id="full",
        ),
        pytest.param(
            {"capture": False}, "specialists.capture = false", "set specialists.capture = true", id="not kept"
        ),
    ],
)
def test_what_is_not_kept_is_not_combined(
    specialists: dict[str, Any] | None, found: str, remedy: str
) -> None:
    document = clustered(**(specialists or {})) | {"combine": {}}
    if specialists is None:
        del document["specialists"]
    error = refusal(document)
    assert error.where == "tiny.toml: combine"
    assert error.expected == "captured specialists with a dustbin class"
    assert (error.found, error.remedy) == (found, f"{remedy}, or remove [combine]")


@pytest.mark.parametrize(
    ("disjoint", "top", "found"), [(True, 2, "top = 2"), (False, 1, "cluster.disjoint = false")]
)
def test_a_combination_without_a_closed_form_is_refused_when_the_file_is_read(
    disjoint: bool, top: int, found: str
) -> None:
    document = clustered() | {"combine": {"direction": "qp", "top": top}}
    document["cluster"]["disjoint"] = disjoint
    error = refusal(document)
    assert error.where == "tiny.toml: combine.direction"
    assert (error.expected, error.found) == ("cluster.disjoint = true and top = 1", found)
    assert error.remedy == "set cluster.disjoint = true and remove top, or set direction = 'pq'"
    document["cluster"]["disjoint"], document["combine"]["top"] = True, 1
    parsed(document, Path())


def test_the_combination_has_a_name_of_its_own_and_students_may_learn_from_it() -> None:
    document = clustered() | {"combine": {"name": "wide"}}
    assert "combine.name: expected a name of its own, found 'wide'" in said(document)
    document["combine"]["name"] = "wide-2x2-7"
    assert "combine.name: expected a name of its own" in said(document)
    document["combine"]["name"] = "both"
    document["student"] = [student("a", teachers={"both": 1.0})]
    assert parsed(document, Path()).teacher_weights(parsed(document, Path()).students[0]) == {"both": 1.0}
    document["student"] = [student("a", teachers={"bot": 1.0})]
    assert "did you mean 'both'?" in said(document)


# Of a store


def refused(field: Field) -> str:
    """What is said instead of a training."""
    with pytest.raises(LogitStoreError) as caught:
        train_specialists(field.work)
    assert not (field.models.folder / "specialists").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_sets(folder: Path, sets: list[list[int]], **changes: Any) -> Field:
    """The grounds with a clustering "others" of these sets."""
    field = Field(grounds(folder), content(clustering="others", **changes))
    arrays = {"sets": np.array(sets), "assignment": np.zeros(4, np.int64)}
    # Somebody else's writer: ours refuses classes that are not in the store.
    unchecked = mock.patch.object(clustering_writer, "check_clustering", lambda arrays, *_: arrays)
    with mock.patch("os.fsync"), unchecked:
        field.store.write_clustering("others", arrays, identity={"made": "by hand"})
    return field


def test_a_clustering_that_is_not_there_is_named(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content(clustering="paris"))
    with pytest.raises(LogitStoreError) as caught:
        pending(field.work)
    assert str(caught.value) == (
        "specialists.clustering = 'paris': expected a clustering of the store, found no 'paris'; "
        "make it with `logitstore cluster`, or name one that is there: pairs"
    )
    assert "clusters/paris" in refused(field)


def test_a_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refused(Field(grounds(tmp_path), content(sets=[0, 5]))) == (
        "specialists.sets: expected sets from 0 to 1 of clusters/pairs, found 5; name sets that there are"
    )


def test_classes_that_are_not_in_the_store_are_refused(tmp_path: Path) -> None:
    assert "clusters/others/sets: expected classes from 0 to 3, found 0 to 9" in refused(
        with_sets(tmp_path, [[0, 9]])
    )


def test_a_set_of_all_classes_is_refused(tmp_path: Path) -> None:
    assert refused(with_sets(tmp_path, [[0, 1, 2, 3]])) == (
        "specialist 'others-0': expected from 1 to 3 classes, found 4; take another set, or another clustering"
    )


def test_a_generalist_that_is_not_cached_or_has_lost_its_weights_is_named(tmp_path: Path) -> None:
    document = content(generalist="deep")
    document["teacher"].append(teacher("deep"))
    assert "deep" in refused(Field(grounds(tmp_path / "a"), document))
    lost = Field(grounds(tmp_path / "b"), content())
    lost.models.weights_path("teachers", "wide").unlink()
    assert "the generalist 'wide': expected its weights" in refused(lost)


def relabelled(folder: Path, labels: Any) -> Field:
    """The grounds anew, with other labels and a teacher from the weights of the first."""
    field = Field(grounds(folder), content())
    with np.load(folder / "train.npz") as archive:
        held = dict(archive)
    held["labels"] = labels(held["labels"])
    np.savez(folder / "train.npz", **held)
    weights = folder / "wide.safetensors"
    shutil.copy(field.models.weights_path("teachers", "wide"), weights)
    shutil.rmtree(folder / "out")
    document = content()
    document["teacher"][0] = {k: v for k, v in document["teacher"][0].items() if k != "train"}
    document["teacher"][0]["weights"] = str(weights)
    plain = {k: v for k, v in document.items() if k not in ("specialists", "evaluation_set")}
    from support.special import write_pairs

    write_pairs(run_document(plain, folder, folder / "out").store)
    return Field(folder, document)


def test_an_unlabelled_store_is_refused(tmp_path: Path) -> None:
    assert refused(relabelled(tmp_path, lambda labels: np.full_like(labels, -1))) == (
        "specialist 'pairs-0': expected labels to train it from, found a store without any; label the transfer set"
    )


def test_a_set_without_rows_is_refused(tmp_path: Path) -> None:
    assert refused(
        relabelled(tmp_path, lambda labels: np.where((labels == 1) | (labels == 2), 3, labels))
    ) == (
        "specialist 'pairs-1': expected labelled rows of its classes, 1, 2, found none; "
        "take other sets (specialists.sets), or a transfer set that has such rows"
    )


def test_rows_without_a_label_are_neither_special_nor_others(tmp_path: Path) -> None:
    field = relabelled(tmp_path, lambda labels: np.where(np.arange(len(labels)) < 20, -1, labels))
    from logitstore.pipeline.specialists.todo import special_rows

    special = special_rows(field.work, field.runs[0])
    labels = field.store.samples.labels
    assert len(special.special) + len(special.others) == (labels >= 0).sum() == len(labels) - 20
    assert special.prior == pytest.approx(np.isin(labels[labels >= 0], [0, 2]).mean())


# Commands


def test_train_trains_captures_and_combines_and_says_so(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from logitstore.cli.main import cli

    grounds(tmp_path)
    toml = """
[transfer_set]
factory = "logitstore.pipeline.datasets:arrays"
args = { file = "train.npz" }
[[teacher]]
name = "wide"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [12], dropout = 0.1 }
train = { optimizer = "adam", lr = 2e-2, epochs = 3, batch_size = 32 }
[cache]
views = 3
augment = { factory = "logitstore.pipeline.augment:shift", args = { pixels = 1 } }
batch_size = 24
block_rows = 64
[specialists]
generalist = "wide"
clustering = "pairs"
train = { lr = 2e-2, epochs = 1, batch_size = 16 }
[combine]
[[student]]
name = "back"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [6] }
teachers = ["combined"]
train = { lr = 2e-2, epochs = 1 }
"""
    (tmp_path / "a.toml").write_text(toml)
    store = str(tmp_path / "out" / "store.zarr")
    call = ["train", str(tmp_path / "a.toml"), store]
    before = contents(tmp_path / "out")
    planned = CliRunner().invoke(cli, [*call, "--dry-run"], catch_exceptions=False)
    assert planned.output.splitlines() == [
        "train specialist pairs-0",
        "train specialist pairs-1",
        "capture specialist pairs-0",
        "capture specialist pairs-1",
        "combine into combined",
        "train student back-seed0",
    ]
    assert contents(tmp_path / "out") == before
    with mock.patch("os.fsync"):
        done = CliRunner().invoke(cli, [*call, "-q", "--device", "cpu"], catch_exceptions=False)
    models = tmp_path / "out" / "models"
    assert done.stdout.splitlines() == [
        f"trained   {models / 'specialists' / 'pairs-0.safetensors'}",
        f"trained   {models / 'specialists' / 'pairs-1.safetensors'}",
        "captured  pairs-0",
        "captured  pairs-1",
        "combined  combined",
        f"trained   {models / 'students' / 'back-seed0.safetensors'}",
    ]
    again = CliRunner().invoke(cli, [*call, "-q"], catch_exceptions=False)
    assert again.output == (
        "nothing to do: everything is trained and unchanged (the store holds the inputs; the transfer set was not read)\n"
    )


def test_a_whole_experiment_runs_from_teachers_to_the_student_of_the_combination(tmp_path: Path) -> None:
    grounds(tmp_path)
    document = clustered(train=train(epochs=1)) | {"combine": {}}
    document["student"] = [student("back", teachers={"combined": 1.0}, train=train(epochs=1))]
    report = run_document(document, tmp_path, tmp_path / "whole")
    assert report.done[1:] == [
        "make clustering wide-2x2",
        *(f"{verb} specialist wide-2x2-{n}" for verb in ("train", "capture") for n in (0, 1)),
        "combine into combined",
        "train student back-seed0",
    ]
    assert report.store.teachers["combined"].classes.tolist() == [0, 1, 2, 3]
    assert run_document(document, tmp_path, tmp_path / "whole").done == []
    document["specialists"]["sets"] = [0]
    with pytest.raises(LogitStoreError, match=r"give the new one another combine\.name"):
        run_document(document, tmp_path, tmp_path / "whole")
