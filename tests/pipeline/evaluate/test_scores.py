"""The table: figures over seeds, scores that are kept and read back, and what a verdict may compare."""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import experiments
from support.experiments import MLP_FACTORY, document, parsed, student

from logitstore.pipeline.cluster.errors_inside import ErrorsInside
from logitstore.pipeline.evaluate import scores as scores_module
from logitstore.pipeline.evaluate.scores import (
    Score,
    Scores,
    Subject,
    TableRow,
    ensemble_name,
    ensembles,
    errors_in_sets,
    subjects,
    table,
    uncompared,
    verdicts,
)
from logitstore.pipeline.evaluation_set import EvaluationExamples
from logitstore.pipeline.experiment.document import Experiment, TeacherMember
from logitstore.pipeline.transfer import Examples, TransferRows
from logitstore.pipeline.workspace import Workspace

SCORES = st.builds(
    Score,
    examples=st.just(100),
    errors=st.integers(0, 100),
    nll=st.floats(0, 20),
    calibration_error=st.floats(0, 1),
    parameters=st.just(146),
)


def score(errors: int) -> Score:
    """A score of a hundred examples."""
    return Score(100, errors, errors / 10, 0.25, 146)


def subject(name: str, key: str, kind: str = "student") -> Subject:
    """Something to be scored."""
    return Subject(kind, name, key, {}, "", {name: f"sha256:{key}"}, name if kind == "student" else "")


# Figures


@given(st.lists(SCORES, min_size=1, max_size=6))
def test_figures_are_mean_and_spread_over_seeds(scores: list[Score]) -> None:
    row = TableRow("student", "small", tuple(scores))
    for field in ("errors", "nll", "calibration_error", "parameters"):
        values = [float(getattr(s, field)) for s in scores]
        assert row.average(field) == pytest.approx(mean(values))
        if len(values) == 1:
            assert math.isnan(row.spread(field))
        else:
            assert row.spread(field) == pytest.approx(stdev(values))
    assert row.average("accuracy") == pytest.approx(1 - row.average("errors") / 100)
    if len(scores) > 1:
        assert row.spread("accuracy") == pytest.approx(row.spread("errors") / 100, abs=1e-12)


def test_a_table_has_a_row_a_model_and_a_score_a_seed(tmp_path: Path) -> None:
    found = [subject("wide", "a", "teacher"), *(subject("small", key) for key in "bcd")]
    scores = Scores(tmp_path / "evaluation.json")
    assert table(found, scores) == []
    for number, one in enumerate(found[:3]):
        scores.put(one, score(number))
    assert table(found, scores) == [
        TableRow("teacher", "wide", (score(0),)),
        TableRow("student", "small", (score(1), score(2))),  # the third was not measured yet
    ]


# Scores


@given(st.dictionaries(st.text("0123456789abcdef", min_size=1, max_size=8), SCORES, min_size=1, max_size=4))
def test_scores_survive(kept: dict[str, Score]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evaluation.json"
        scores = Scores(path)
        for key, value in kept.items():
            scores.put(subject("x", key), value)
        again = Scores(path)
        for key, value in kept.items():
            assert again.get(subject("y", key)) == value
        assert again.get(subject("x", "none")) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"null",
        b'{"a": 1}',
        b'{"a": {"errors": 3}}',
        b'{"a": {"new": 1}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": {"examples": "9", "errors": 3, "nll": 1, "calibration_error": 1, "parameters": 1}}',
        b'{"a": {"examples": 9, "errors": 3.5, "nll": 1, "calibration_error": 1, "parameters": 1}}',
        b'{"a": {"examples": 9, "errors": true, "nll": 1, "calibration_error": 1, "parameters": 1}}',
        b'{"a": {"examples": 9, "errors": 10, "nll": 1, "calibration_error": 1, "parameters": 1}}',
        b'{"a": {"examples": 0, "errors": 0, "nll": 1, "calibration_error": 1, "parameters": 1}}',
        b'{"a": {"examples": 9, "errors": 3, "nll": NaN, "calibration_error": 1, "parameters": 1}}',
        b'{"a": {"examples": 9, "errors": 3, "nll": Infinity, "calibration_error": 1, "parameters": 1}}',
        b'{"a": {"examples": 9, "errors": 3, "nll": -1, "calibration_error": 1, "parameters": 1}}',
        b'{"a": {"examples": 9, "errors": 3, "nll": [[]], "calibration_error": 1, "parameters": 1}}',
        b'{"a": {"errors": 9, "inside": 10, "random_share": 0.5}}',
        b'{"a": {"errors": 9, "inside": 3, "random_share": NaN}}',
        b'{"a": {"errors": 1' + b"0" * 400 + b', "inside": 3, "random_share": 0.5}}',
    ],
    ids=range(22),
)
def test_a_broken_file_counts_as_none_and_is_measured_anew(tmp_path: Path, content: bytes) -> None:
    folder = experiments.copy_finished(tmp_path)
    path = folder / "out" / "evaluation.json"
    expected = path.read_bytes()
    path.write_bytes(content)
    assert Scores(path).get(subject("x", "a")) is None
    if content in (b"{", b'{"a": {"errors": 3}}'):  # two of them through a whole run
        report = experiments.run_document(document(), folder, folder / "out")
        assert len(report.done) == 9
        assert json.loads(path.read_bytes()) == json.loads(expected)


# What there is to score


def finished_subjects(content: dict[str, Any]) -> list[Subject]:
    """What of a document is there in the finished folder."""
    folder = experiments.finished()
    experiment = parsed(content, folder)
    work = Workspace.of_folder(experiment, folder / "out")
    return list(subjects(work, EvaluationExamples(experiment, work.rows)))


def test_keys_belong_to_weights_and_to_the_evaluation_set() -> None:
    found = finished_subjects(document())
    assert [s.run or s.name for s in found] == [
        "wide", "deep", "3 wide + deep, arithmetic mean",
        "soft-seed0", "soft-seed1", "both-seed0", "hard-seed0", "hard-seed1",
        "wide-2x2",
    ]  # fmt: skip
    assert len({s.key for s in found}) == len(found)
    assert [s.key for s in finished_subjects(document())] == [s.key for s in found]
    content = document()
    content["evaluation_set"]["args"]["fraction"] = 0.5
    assert not {s.key for s in finished_subjects(content)} & {s.key for s in found}


@pytest.mark.timeout(30)
def test_a_pipe_in_the_place_of_the_scores_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "evaluation.json")
    assert Scores(tmp_path / "evaluation.json").get(subject("x", "a")) is None
    assert "no scores (OSError: [Errno 22] a pipe in the place of a file" in caplog.text


def test_one_entry_that_is_no_score_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "evaluation.json"
    Scores(path).put(subject("x", "a"), score(3))
    path.write_text(json.dumps({**json.loads(path.read_text()), "b": {"errors": math.nan}}))
    assert Scores(path).get(subject("x", "a")) == score(3)
    assert "1 of 2 entries are no scores; they are measured again" in caplog.text


def keys(content: dict[str, Any]) -> dict[str, str]:
    """The key of each subject."""
    return {s.run or s.name: s.key for s in finished_subjects(content)}


def test_a_score_is_that_of_a_network_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two teachers of one file of weights and other arguments have two scores."""
    folder = experiments.finished()
    weights = str(folder / "out" / "models" / "teachers" / "wide.safetensors")
    content = document()
    content["teacher"] = [
        {"name": name, "factory": MLP_FACTORY, "args": args, "weights": weights}
        for name, args in (("wide", {"hidden": [12]}), ("deep", {"hidden": [12], "dropout": 0.0}))
    ]
    del content["cluster"]
    content["student"] = []
    found = keys(content)
    assert found["wide"] != found["deep"]
    content["teacher"][1]["args"] = {"hidden": [12]}
    same = keys(content)
    assert same["wide"] == same["deep"] == found["wide"]


def test_a_score_is_that_of_the_local_code_and_of_the_way_it_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = keys(document())
    with monkeypatch.context() as patched:
        patched.setattr(scores_module, "_MEASURED", {**scores_module._MEASURED, "version": 3})
        assert not set(keys(document()).values()) & set(before.values())
    with monkeypatch.context() as patched:
        patched.setattr(TeacherMember, "source", {"mine.py": "sha256:0"})
        # Records of these models are of before, so that they are compared by what they hold.
        changed = {name for name, key in keys(document()).items() if key != before[name]}
        assert changed == {"wide", "deep", "3 wide + deep, arithmetic mean", "wide-2x2"}
    assert keys(document()) == before


def test_a_score_is_that_of_the_classes_as_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before, names = keys(document()), [f"stroke {number}" for number in range(4)]
    for of_evaluation, of_transfer in ((names[::-1], names), (names, names[::-1])):
        monkeypatch.setattr(Examples, "class_names", of_evaluation)
        monkeypatch.setattr(TransferRows, "class_names", of_transfer)
        assert not set(keys(document()).values()) & set(before.values())
    monkeypatch.setattr(TransferRows, "class_names", names)
    monkeypatch.setattr(Examples, "class_names", names)
    assert keys(document()) == before


def test_a_model_that_would_be_another_is_not_there() -> None:
    content = document()
    content["student"][0]["temperature"] = 9.0
    assert [s.run for s in finished_subjects(content) if s.kind == "student"] == [
        "both-seed0", "hard-seed0", "hard-seed1",
    ]  # fmt: skip


def test_an_ensemble_of_other_shares_or_another_mean_has_another_key() -> None:
    keys = set()
    for changes in ({}, {"teachers": {"wide": 1.0, "deep": 1.0}}, {"mean": "geometric"}):
        content = document()
        content["student"][1] |= changes
        keys |= {s.key for s in finished_subjects(content) if s.kind == "ensemble"}
    assert len(keys) == 3


def experiment_with(*students: dict[str, Any]) -> Experiment:
    """The tiny experiment with these students."""
    return parsed(document() | {"student": list(students)}, Path())


def test_ensembles_are_those_that_students_learn_from_each_once() -> None:
    pair = {"wide": 1.0, "deep": 1.0}
    experiment = experiment_with(
        student("a", teachers=pair),
        student("b", teachers={"wide": 7.0, "deep": 7.0}, temperature=9.0),
        student("c", teachers=pair, mean="geometric"),
        student("d"),
        student("e", targets="hard"),
    )
    half = {"wide": 0.5, "deep": 0.5}
    assert ensembles(experiment) == [(half, "arithmetic"), (half, "geometric")]
    assert ensemble_name(half, "geometric") == "wide + deep, geometric mean"


def test_ensembles_of_other_shares_are_rows_of_their_own(tmp_path: Path) -> None:
    """Their scores are no seeds of one another."""
    equal, unequal = {"wide": 0.5, "deep": 0.5}, {"wide": 0.75, "deep": 0.25}
    assert ensemble_name(unequal, "arithmetic") == "3 wide + deep, arithmetic mean"
    # Shares whose names round alike, too, are different ensembles.
    found = [
        Subject("ensemble", ensemble_name(shares, "arithmetic"), key, shares, "arithmetic", {}, "")
        for key, shares in zip("abc", (equal, unequal, {"wide": 0.75 + 1e-12, "deep": 0.25}), strict=True)
    ]
    assert found[1].name == found[2].name
    scores = Scores(tmp_path / "evaluation.json")
    for number, one in enumerate(found):
        scores.put(one, score(number))
    assert [row.scores for row in table(found, scores)] == [(score(0),), (score(1),), (score(2),)]


# Verdicts


def verdict_of(
    soft: dict[str, Any],
    hard: dict[str, Any],
    errors: tuple[int, int] = (3, 5),
    says: Callable[[Experiment, Sequence[TableRow]], list[str]] = verdicts,
) -> list[str]:
    """The verdicts on two students with two seeds each, or with `says=uncompared` why there is none."""
    experiment = experiment_with(soft, hard)
    rows = [
        TableRow("student", name, (score(e), score(e + 1)))
        for name, e in ((soft["name"], errors[0]), (hard["name"], errors[1]))
    ]
    return says(experiment, rows)


def test_a_verdict_says_which_is_better_in_the_mean() -> None:
    soft, hard = student("soft"), student("hard", targets="hard")
    figures = r"errors against \d\.\d in the mean"
    assert verdict_of(soft, hard) == [
        (
            "soft is better than hard: 3.5 errors against 5.5 in the mean (2 and 2 seeds), "
            "a difference of 2.0 ± 0.7 (standard error)."
        )
    ]
    for errors in ((5, 3), (4, 4)):  # equal is not better
        (sentence,) = verdict_of(soft, hard, errors)
        assert sentence.startswith("soft is not better than hard: ")
        assert pytest.importorskip("re").search(figures, sentence)


def test_a_difference_within_two_standard_errors_is_not_clear() -> None:
    """Two seeds, one error apart: the standard error of a difference is 0.7."""
    soft, hard = student("soft"), student("hard", targets="hard")
    for theirs, claim in ((4, "is not clearly better than"), (5, "is better than")):
        (sentence,) = verdict_of(soft, hard, (3, theirs))
        assert sentence.startswith(f"soft {claim} hard: ")


# Errors inside sets


@pytest.mark.parametrize("errors", [ErrorsInside(57, 40, 0.24, 0.09, 100), ErrorsInside(0, 0, 0.24)])
def test_errors_inside_sets_survive_and_make_no_row_of_the_table(
    tmp_path: Path, errors: ErrorsInside
) -> None:
    found = [subject("wide", "a", "teacher"), subject("wide-3x4", "b", "sets")]
    scores = Scores(tmp_path / "evaluation.json")
    scores.put(found[0], score(3))
    assert errors_in_sets(found, scores) is None
    scores.put(found[1], errors)
    again = Scores(tmp_path / "evaluation.json")
    kept = errors_in_sets(found, again)
    assert kept is not None and repr(kept) == repr(errors)  # NaN is not equal to itself
    assert table(found, again) == [TableRow("teacher", "wide", (score(3),))]


@pytest.mark.parametrize(
    "change",
    [
        {"args": {"hidden": [7]}},
        {"factory": "logitstore.pipeline.models:convnet", "args": {}},
    ],
)
def test_a_verdict_compares_the_same_model_alone(change: dict[str, Any]) -> None:
    assert MLP_FACTORY not in change.values()
    assert verdict_of(student("soft"), student("hard", targets="hard") | change) == []
    assert verdict_of(student("soft") | change, student("hard", targets="hard") | change) != []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views": 0}, "views (cycle and 0)"),
        ({"rows": 0.5}, "rows (1.0 and 0.5)"),
        ({"epochs": 9}, "train.epochs (2 and 9)"),
        ({"batch_size": 16}, "train.batch_size (32 and 16)"),
        ({"optimizer": "sgd"}, "train.optimizer (adam and sgd)"),
        ({"lr": 0.5}, "train.lr (0.01 and 0.5)"),
        ({"weight_decay": 0.1}, "train.weight_decay (0.0 and 0.1)"),
        ({"schedule": "cosine"}, "train.schedule (constant and cosine)"),
        ({"ema": 0.9}, "train.ema (None and 0.9)"),
        ({"precision": "bfloat16"}, "train.precision (float32 and bfloat16)"),
        ({"seeds": [2, 3]}, "train.seeds ([0, 1] and [2, 3])"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_verdict_compares_what_was_trained_alike_alone(change: dict[str, Any], said: str) -> None:
    """Negative control: alike on both sides, there is a verdict."""

    def changed(one: dict[str, Any]) -> dict[str, Any]:
        own = {key: value for key, value in change.items() if key in ("views", "rows")}
        of_training = {key: value for key, value in change.items() if key not in own}
        base = {"lr": 0.01, "epochs": 2, "batch_size": 32, "seeds": [0, 1], "optimizer": "adam"}
        return one | own | {"train": base | of_training}

    alike = {"train": {"lr": 0.01, "epochs": 2, "batch_size": 32, "seeds": [0, 1], "optimizer": "adam"}}
    soft, hard = student("soft") | alike, student("hard", targets="hard") | alike
    assert verdict_of(soft, changed(hard)) == []
    (sentence,) = verdict_of(soft, changed(hard), says=uncompared)
    assert sentence == f"soft and hard are not compared: they differ in {said}."
    (sentence,) = verdict_of(changed(soft), changed(hard))
    assert sentence.startswith("soft is better than hard: ")
    assert verdict_of(changed(soft), changed(hard), says=uncompared) == []


def test_settings_of_hard_targets_alone_do_not_forbid_a_verdict() -> None:
    hard = student("hard", targets="hard")
    hard["train"] = hard["train"] | {"label_smoothing": 0.1, "checkpoint_every": 3}
    (sentence,) = verdict_of(student("soft"), hard)
    assert sentence.startswith("soft is better than hard: ")


def test_a_student_with_a_counterpart_needs_no_word_on_others() -> None:
    soft, hard = student("soft"), student("hard", targets="hard")
    more = student("more", targets="hard") | {"rows": 0.5}
    rows = [TableRow("student", name, (score(3), score(4))) for name in ("soft", "hard", "more")]
    experiment = experiment_with(soft, hard, more)
    (sentence,) = verdicts(experiment, rows)
    assert sentence.startswith("soft is not better than hard: ")
    assert uncompared(experiment, rows) == []


def test_students_of_which_one_lacks_a_seed_are_not_compared() -> None:
    experiment = experiment_with(student("soft"), student("hard", targets="hard"))
    rows = [
        TableRow("student", "soft", (score(1), score(2))),
        TableRow("student", "hard", (score(3),)),
    ]
    assert verdicts(experiment, rows) == []
    (sentence,) = uncompared(experiment, rows)
    assert sentence == "soft and hard are not compared: they differ in seeds trained (2 and 1)."


def test_there_is_no_verdict_on_what_has_no_score_or_no_counterpart() -> None:
    experiment = experiment_with(student("soft"), student("hard", targets="hard"))
    rows = [TableRow("student", "soft", (score(1),))]
    of_teacher = [TableRow("teacher", "hard", (score(1),)), *rows]
    for says in (verdicts, uncompared):
        assert says(experiment, rows) == says(experiment, of_teacher) == []
        assert verdict_of(student("soft"), student("softer"), says=says) == []
